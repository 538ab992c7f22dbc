"""Pictures on their way from noise, many at once and each at a step of its own (3.1.2).

``trees`` plants walks and ``slots`` renders them. Read ``WalkBatch.step``: whatever the
walks do, each step is one call of the U-Net and a dozen operations on whole tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ip2p_lib import rng
from ip2p_lib.device import to_device_async
from ip2p_lib.diffusion.denoising import caption_denoiser
from ip2p_lib.diffusion.sampler_steps import advance
from ip2p_lib.diffusion.samplers import Denoiser
from ip2p_lib.diffusion.stable_diffusion import Backbone
from ip2p_lib.rendering.candidates import Candidate
from ip2p_lib.rendering.render import noise_key
from ip2p_lib.rendering.shared_attention import sharing


@dataclass(eq=False)
class Walk:
    """One picture on its way from noise, for one or several candidates.

    Its latents are those at which it begins, and those that its batch tells it later.
    """

    candidates: list[Candidate]  # largest p first
    text: Tensor  # (L, D)
    x: Tensor  # (C, h, w) latent
    x0: Tensor  # (C, h, w) clean latent, as last predicted
    source: Walk | None = None  # of a second picture: the walk of the first
    step: int = 0  # steps done
    picture: Tensor = field(default_factory=lambda: torch.empty(0))  # once decoded

    def fork(self, steps: int) -> Walk | None:
        """Part from a trunk the candidates whose p is over, if any but not all are."""
        stay = self.sharing(steps)
        if not 0 < stay < len(self.candidates):
            return None
        leave, self.candidates = self.candidates[stay:], self.candidates[:stay]
        return replace(self, candidates=leave)

    def sharing(self, steps: int) -> int:
        """How many of its candidates share attention in its next step."""
        limit = self.step / max(steps - 1, 1)  # as in ``prompt_to_prompt.is_active``
        return sum(c.p > limit for c in self.candidates) if self.source else 0


@dataclass
class WalkBatch:
    """A fixed number of slots, and the walks that wait for one.

    A walk in a slot has its state in a row of these tensors, so that a step moves all
    at once; it carries its own while it waits and when it has left.
    """

    backbone: Backbone
    table: Tensor  # of ``step_table``
    size: int

    def __post_init__(self) -> None:
        steps, net = len(self.table), self.backbone
        self.slots: list[Walk | None] = [None] * self.size
        self.forks: deque[Walk] = deque()  # that wait for a slot
        self.tree: list[Walk] | None = None  # that waits for two
        self.keys = torch.tensor([noise_key(step) for step in range(steps)])
        self.noisy = bool(self.table[:, 5].any())
        shape, dtype = net.latent_shape, torch.promote_types(net.dtype, torch.float32)
        self.x = torch.zeros(self.size, *shape, dtype=dtype, device=net.device)
        self.x0 = torch.zeros_like(self.x)
        self.text = net.null_text.repeat(self.size, 1, 1)

    def fill(self, trees: Iterator[list[Walk]]) -> bool:
        """Give free slots to forks, then to new trees; False when all is done."""
        free = [i for i, walk in enumerate(self.slots) if walk is None]
        new: dict[int, Walk] = {}
        while free:
            if self.forks:
                new[free.pop()] = self.forks.popleft()
                continue
            self.tree = self.tree or next(trees, None)
            if self.tree is None or len(free) < len(self.tree):
                break
            for walk in self.tree:
                new[free.pop()] = walk
            self.tree = None
        self._enter(new)
        return any(self.slots)

    def _enter(self, new: dict[int, Walk]) -> None:
        """Put walks into their slots."""
        if not new:
            return
        rows = to_device_async(list(new), self.x.device)
        for name in ("x", "x0", "text"):
            states = torch.stack([getattr(walk, name) for walk in new.values()])
            getattr(self, name)[rows] = states
        for i, walk in new.items():
            self.slots[i] = walk

    def _tell(self, walks: dict[int, Walk]) -> None:
        """Give walks the state of these slots, theirs for good."""
        if walks:
            rows = to_device_async(list(walks), self.x.device)
            for walk, x, x0 in zip(
                walks.values(), self.x[rows], self.x0[rows], strict=True
            ):
                walk.x, walk.x0 = x, x0

    def at(self, step: int) -> list[Walk]:
        """The walks that have come to a step, and have been told their state."""
        here = {i: w for i, w in enumerate(self.slots) if w and w.step == step}
        self._tell(here)
        return list(here.values())

    def fork(self) -> None:
        """Let candidates leave their trunk."""
        steps = len(self.table)
        forks = {i: walk.fork(steps) for i, walk in enumerate(self.slots) if walk}
        leaving = {i: walk for i, walk in forks.items() if walk}
        self._tell(leaving)
        self.forks.extend(leaving.values())

    @torch.no_grad()
    def step(self) -> None:
        """One step of every walk that has a slot, in one call of the U-Net."""
        done = torch.tensor([walk.step if walk else 0 for walk in self.slots])
        numbers = to_device_async(self.table[done], self.x.device)
        with sharing(self.backbone.unet) as state:
            state.source = to_device_async(self._source_rows(), self.x.device)
            eps = self._denoiser()(self.x, numbers[:, 0].to(self.x.dtype))
        noise = self._fresh_noise(done)
        self.x, self.x0 = advance(self.x, eps, self.x0, noise, numbers)
        for walk in filter(None, self.slots):
            walk.step += 1

    def _source_rows(self) -> list[int]:
        """(2 * slots,) whose attention each row uses, in both halves of the batch."""
        place, steps = {id(w): i for i, w in enumerate(self.slots)}, len(self.table)
        rows = [
            place[id(walk.source)] if walk and walk.sharing(steps) else i
            for i, walk in enumerate(self.slots)
        ]
        return [*rows, *(len(rows) + row for row in rows)]

    def _denoiser(self) -> Denoiser:
        scale = [w.candidates[0].cfg_scale if w else 1.0 for w in self.slots]
        unet, null_text = self.backbone.unet, self.backbone.null_text
        scales = to_device_async(scale, self.x.device)
        return caption_denoiser(unet, self.text, null_text, scales)

    def _fresh_noise(self, done: Tensor) -> Tensor | None:
        """What ancestral steps add, of each walk's own seed and step."""
        if not self.noisy:
            return None
        ids = [w.candidates[0].seed if w else 0 for w in self.slots]
        keys, seeds = (
            to_device_async(n, self.x.device) for n in (self.keys[done], ids)
        )
        return rng.normal(keys, seeds, tuple(self.x.shape[1:])).to(self.x)

    def take_finished(self) -> list[Walk]:
        """Walks at their end; their slots are free."""
        finished = self.at(len(self.table))
        self.remove(finished)
        return finished

    def remove(self, walks: Sequence[Walk]) -> None:
        """Free the slots of some walks."""
        gone = set(map(id, walks))
        self.slots = [None if id(walk) in gone else walk for walk in self.slots]
