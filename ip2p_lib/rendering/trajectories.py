"""Sampling trajectories in one batch, each at a step of its own (3.1.2).

``trees`` builds trajectories and ``continuous_batching`` runs them. Wherever these are,
``TrajectoryBatch.step`` is one call of the U-Net and a dozen operations on tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ip2p_lib import rng
from ip2p_lib.device import to_device_async
from ip2p_lib.diffusion.guidance import caption_denoiser
from ip2p_lib.diffusion.samplers import sampler_step
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.rendering.candidates import Candidate
from ip2p_lib.rendering.render import noise_key
from ip2p_lib.rendering.shared_attention import share_self_attention


@dataclass(eq=False)
class Trajectory:
    """One image on its way from noise, for one or several candidates.

    ``x`` and ``x0`` are its state before and after it is in a batch, not meanwhile.
    """

    settings: Candidate  # seed and guidance scale, the same for a whole tree
    text: Tensor  # (L, D)
    x: Tensor  # (C, h, w) latent
    x0: Tensor  # (C, h, w) clean latent, as last predicted
    candidates: list[Candidate] = field(default_factory=list)  # largest p first
    source: Trajectory | None = None  # of a second image: the first one's
    step: int = 0  # steps done
    image: Tensor = field(default_factory=lambda: torch.empty(0))  # once decoded

    def num_sharing(self, steps: int) -> int:
        """How many of its candidates share attention in its next step."""
        limit = self.step / max(steps - 1, 1)  # as in ``shared_attention.is_active``
        return sum(c.p > limit for c in self.candidates)

    def branch(self, steps: int) -> Trajectory | None:
        """Split off the candidates whose p has passed, if any but not all have."""
        n = self.num_sharing(steps)
        if not 0 < n < len(self.candidates):
            return None
        leaving, self.candidates = self.candidates[n:], self.candidates[:n]
        return replace(self, candidates=leaving)


@dataclass
class TrajectoryBatch:
    """A batch with a fixed number of rows, and the branches that wait for one.

    The state of a trajectory in row i is row i of ``x``, ``x0`` and ``text``.
    """

    backbone: StableDiffusion
    coefficients: Tensor  # of ``samplers.sampler_coefficients``
    size: int

    def __post_init__(self) -> None:
        model, steps = self.backbone, len(self.coefficients)
        self.rows: list[Trajectory | None] = [None] * self.size
        self.branches: deque[Trajectory] = deque()  # that wait for a row
        self.noise_keys = torch.tensor([noise_key(step) for step in range(steps)])
        self.adds_noise = bool(self.coefficients[:, 5].any())
        dtype = torch.promote_types(model.dtype, torch.float32)
        shape = self.size, *model.latent_shape
        self.x = torch.zeros(shape, dtype=dtype, device=model.device)
        self.x0 = torch.zeros_like(self.x)
        self.text = model.null_text.repeat(self.size, 1, 1)

    def fill(self, trees: Iterator[tuple[Trajectory, Trajectory]]) -> bool:
        """Give free rows to branches, then to new trees; False when all is done."""
        free = [i for i, trajectory in enumerate(self.rows) if trajectory is None]
        entering: dict[int, Trajectory] = {}
        while free and self.branches:
            entering[free.pop()] = self.branches.popleft()
        while len(free) >= 2 and (tree := next(trees, None)):
            for trajectory in tree:
                entering[free.pop()] = trajectory
        self._read_state(entering)
        return any(self.rows)

    def _read_state(self, entering: dict[int, Trajectory]) -> None:
        """Copy trajectories into their rows."""
        if not entering:
            return
        indices = to_device_async(list(entering), self.x.device)
        for name in ("x", "x0", "text"):
            states = torch.stack([getattr(one, name) for one in entering.values()])
            getattr(self, name)[indices] = states
        for i, trajectory in entering.items():
            self.rows[i] = trajectory

    def _write_state(self, leaving: dict[int, Trajectory]) -> None:
        """Copy the latents of some rows to trajectories."""
        if leaving:
            indices = to_device_async(list(leaving), self.x.device)
            states = zip(self.x[indices], self.x0[indices], strict=True)
            for trajectory, state in zip(leaving.values(), states, strict=True):
                trajectory.x, trajectory.x0 = state

    def branch(self) -> None:
        """Split off candidates that stop sharing; they wait for a row."""
        steps = len(self.coefficients)
        branches = {i: one.branch(steps) for i, one in enumerate(self.rows) if one}
        leaving = {i: one for i, one in branches.items() if one}
        self._write_state(leaving)
        self.branches.extend(leaving.values())

    @torch.no_grad()
    def step(self) -> None:
        """One step of every trajectory in the batch, in one call of the U-Net."""
        device, model = self.x.device, self.backbone
        steps = torch.tensor([one.step if one else 0 for one in self.rows])
        scale = [one.settings.cfg_scale if one else 1.0 for one in self.rows]
        scales = to_device_async(scale, device)
        denoise = caption_denoiser(model.unet, self.text, model.null_text, scales)
        coefficients = to_device_async(self.coefficients[steps], device)
        with share_self_attention(model.unet) as shared:
            shared.source = to_device_async(self._source_rows(), device)
            eps = denoise(self.x, coefficients[:, 0].to(self.x.dtype))
        noise = self._step_noise(steps)
        self.x, self.x0 = sampler_step(self.x, eps, self.x0, noise, coefficients)
        for trajectory in filter(None, self.rows):
            trajectory.step += 1

    def _source_rows(self) -> list[int]:
        """(2 * size,) the row whose q and k each row uses, in both guidance halves."""
        row_of = {trajectory: i for i, trajectory in enumerate(self.rows)}
        steps = len(self.coefficients)
        source = [
            row_of[one.source] if one and one.num_sharing(steps) else i
            for i, one in enumerate(self.rows)
        ]
        return [*source, *(self.size + row for row in source)]

    def _step_noise(self, steps: Tensor) -> Tensor | None:
        """The noise that ancestral steps add, from each row's seed and step."""
        if not self.adds_noise:
            return None
        seeds = [one.settings.seed if one else 0 for one in self.rows]
        keys, ids = (
            to_device_async(n, self.x.device) for n in (self.noise_keys[steps], seeds)
        )
        return rng.normal(keys, ids, tuple(self.x.shape[1:])).to(self.x)

    def pop_finished(self) -> list[Trajectory]:
        """Remove and return the trajectories that have done all steps."""
        steps = len(self.coefficients)
        finished = {i: t for i, t in enumerate(self.rows) if t and t.step == steps}
        self._write_state(finished)
        for i in finished:
            self.rows[i] = None
        return list(finished.values())
