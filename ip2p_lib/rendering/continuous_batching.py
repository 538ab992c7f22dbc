"""Continuous batching: generate trees of candidates in a batch that stays full (3.1.2).

Each image is a ``Trajectory`` of ``trees``, in a row of the batch and at a step of its
own; a row that becomes free goes to the next one. The result equals that of
``render.generate_pairs`` up to rounding, in about half the work: no row depends on
another one but its source. A step is one call of the U-Net, wherever its rows are.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from ip2p_lib import rng
from ip2p_lib.device import to_device_async
from ip2p_lib.diffusion.guidance import caption_denoiser
from ip2p_lib.diffusion.samplers import TIMESTEP, U, sampler_coefficients, sampler_step
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.rendering.candidates import Candidate
from ip2p_lib.rendering.render import GeneratedPair, noise_key
from ip2p_lib.rendering.shared_attention import share_self_attention
from ip2p_lib.rendering.trees import Trajectory, build_trees


def generate_batched(
    backbone: StableDiffusion,
    candidates: Iterable[Candidate],
    *,
    steps: int,
    batch_rows: int,
    sampler: str = "euler_ancestral",
) -> Iterator[list[GeneratedPair]]:
    """Generate candidates by shared-prefix sampling and continuous batching.

    Args:
        backbone, steps, sampler: as in ``render.generate_pairs``.
        candidates: those of one triplet, and in it those of one seed and guidance
            scale, together; read lazily. One with a word edit is a ValueError.
        batch_rows: images at once, two U-Net rows each in every call; at least 2.
    Yields:
        Pairs in the order in which they finish, each candidate once.
    """
    if batch_rows < 2:
        raise ValueError(f"A pair needs 2 batch rows, not {batch_rows}.")
    coefficients = sampler_coefficients(backbone.schedule, steps, sampler)
    batch = TrajectoryBatch(backbone, coefficients, batch_rows)
    trees = build_trees(backbone, candidates, coefficients, sampler, batch_rows)
    finished = list[Trajectory]()
    while batch.fill(trees):
        batch.branch()
        batch.step()
        finished += batch.pop_finished()
        if len(finished) >= batch_rows:
            yield _decode_pairs(backbone, finished, batch_rows)
            finished = []
    if finished:
        yield _decode_pairs(backbone, finished, batch_rows)


def _decode_pairs(
    backbone: StableDiffusion, finished: Sequence[Trajectory], batch_size: int
) -> list[GeneratedPair]:
    """Decode some images, and return the pairs whose second image is among them."""
    latents = torch.stack([trajectory.x for trajectory in finished])
    images = chain.from_iterable(map(backbone.decode, latents.split(batch_size)))
    for trajectory, image in zip(finished, images, strict=True):
        trajectory.image = image
    # A source ends no later than its second images, so it is decoded by now.
    return [
        GeneratedPair(candidate, trajectory.source.image, trajectory.image)
        for trajectory in finished
        if trajectory.source
        for candidate in trajectory.candidates
    ]


@dataclass
class TrajectoryBatch:
    """A batch with a fixed number of rows, and the branches that wait for one.

    The state of a trajectory in row i is row i of ``x``, ``x0`` and ``text``.
    """

    backbone: StableDiffusion
    coefficients: Tensor  # of ``samplers.sampler_coefficients``
    size: int

    def __post_init__(self) -> None:
        model, self.num_steps = self.backbone, len(self.coefficients)
        self.rows: list[Trajectory | None] = [None] * self.size
        self.branches: deque[Trajectory] = deque()  # that wait for a row
        self.noise_keys = torch.tensor([*map(noise_key, range(self.num_steps))])
        self.adds_noise = bool(self.coefficients[:, U].any())
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
        for i, trajectory in entering.items():
            self.rows[i] = trajectory
        if entering:
            indices = to_device_async(list(entering), self.x.device)
            for name in ("x", "x0", "text"):
                states = torch.stack([getattr(one, name) for one in entering.values()])
                getattr(self, name)[indices] = states
        return any(self.rows)

    def _write_state(self, leaving: dict[int, Trajectory]) -> None:
        """Copy the latents of some rows to trajectories."""
        if leaving:
            indices = to_device_async(list(leaving), self.x.device)
            states = zip(self.x[indices], self.x0[indices], strict=True)
            for trajectory, state in zip(leaving.values(), states, strict=True):
                trajectory.x, trajectory.x0 = state

    def branch(self) -> None:
        """Split off candidates that stop sharing; they wait for a row."""
        rows = enumerate(self.rows)
        branches = {i: one.branch(self.num_steps) for i, one in rows if one}
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
            eps = denoise(self.x, coefficients[:, TIMESTEP].to(self.x.dtype))
        noise = None
        if self.adds_noise:
            seeds = [one.settings.seed if one else 0 for one in self.rows]
            keys = to_device_async(self.noise_keys[steps], device)
            ids = to_device_async(seeds, device)
            noise = rng.normal(keys, ids, tuple(self.x.shape[1:])).to(self.x)
        self.x, self.x0 = sampler_step(self.x, eps, self.x0, noise, coefficients)
        for trajectory in filter(None, self.rows):
            trajectory.step += 1

    def _source_rows(self) -> list[int]:
        """(2 * size,) the row whose q and k each row uses, in both guidance halves."""
        row_of = {trajectory: i for i, trajectory in enumerate(self.rows)}
        source = [
            row_of[one.source] if one and one.num_sharing(self.num_steps) else i
            for i, one in enumerate(self.rows)
        ]
        return [*source, *(self.size + row for row in source)]

    def pop_finished(self) -> list[Trajectory]:
        """Remove and return the trajectories that have done all steps."""
        rows, steps = enumerate(self.rows), self.num_steps
        finished = {i: t for i, t in rows if t and t.step == steps}
        self._write_state(finished)
        for i in finished:
            self.rows[i] = None
        return list(finished.values())
