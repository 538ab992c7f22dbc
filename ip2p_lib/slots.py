"""Candidates rendered with a full batch of one shape, none of it twice (section 3.1.2).

Each picture is a walk of ``trees``, each walk has a slot of the batch and is at a step
of its own; a slot that falls free is taken by the next walk. What comes out equals
``rendering.render`` up to rounding: no walk looks at a slot that is not its own or its
source's. Read ``render_in_slots``, then ``_Batch.step``.

A ``Preview`` may stop walks that will fail, which is not exact: read there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ip2p_lib import draws
from ip2p_lib.backbone import Backbone
from ip2p_lib.denoising import caption_denoiser
from ip2p_lib.diffusion import Denoiser
from ip2p_lib.prompt_to_prompt import sharing
from ip2p_lib.rendering import Candidate, RenderedPair, noise_key
from ip2p_lib.stepping import advance, step_table
from ip2p_lib.trees import Walk, plant

if TYPE_CHECKING:
    from ip2p_lib.config import Rendering

_Second = tuple[Walk, Walk]  # the walk of a second picture, and its source


@dataclass(frozen=True)
class Preview:
    """A look at pairs before they are finished: most of the work is still ahead.

    The network predicts the clean picture at every step. Early on it is blurred, but
    what CLIP will say of the pair can be guessed; how often rightly is for the caller
    to measure.

    Attributes:
        step: after how many steps to look.
        keep: tells of pairs as predicted, which to finish. Candidates that are still
            one walk are shown once, by the one with the largest p. A fork may wait for
            a slot; a first picture that is finished before it is shown finished.
    """

    step: int
    keep: Callable[[Sequence[RenderedPair]], Sequence[bool]]


def render_in_slots(
    backbone: Backbone,
    candidates: Iterable[Candidate],
    *,
    steps: int,
    slots: int,
    sampler: str = "euler_ancestral",
    preview: Preview | None = None,
) -> Iterator[list[RenderedPair]]:
    """Render candidates as trees, with a full batch.

    Args:
        backbone: its ``unet`` may be compiled: every call has 2 * slots rows.
        candidates: those of one triplet, and in it those of one seed and guidance
            scale, together; read as slots fall free.
        steps, sampler: as in ``rendering.render``.
        slots: pictures at once, two U-Net rows each; at least 2.
        preview: stops walks early; None finishes all.
    Yields:
        Pairs as they are finished, each candidate once, but for those stopped.
    Raises:
        ValueError: fewer than 2 slots, p outside [0, 1], and as ``render``.
    """
    if slots < 2:
        raise ValueError(f"A pair needs 2 slots, not {slots}.")
    batch = _Batch(backbone, step_table(backbone.schedule, steps, sampler), slots)
    trees, done = plant(backbone, candidates, batch.table, sampler), list[Walk]()
    while batch.fill(trees):
        batch.fork()
        batch.step()
        if preview:
            _stop_early(batch, preview)
        done += batch.take_finished()
        if len(done) >= slots:
            yield _finish(batch, done)
            done = []
    if done:
        yield _finish(batch, done)


def render_by(
    backbone: Backbone,
    candidates: Iterable[Candidate],
    settings: Rendering,
    preview: Preview | None = None,
) -> Iterator[list[RenderedPair]]:
    """``render_in_slots`` with a configuration's steps, sampler and batch size."""
    return render_in_slots(
        backbone,
        candidates,
        steps=settings.steps,
        slots=2 * settings.batch_size,
        sampler=settings.sampler,
        preview=preview,
    )


@dataclass
class _Batch:
    """A fixed number of slots, and the walks that wait for one."""

    backbone: Backbone
    table: Tensor  # of ``step_table``
    size: int

    def __post_init__(self) -> None:
        steps = len(self.table)
        self.slots: list[Walk | None] = [None] * self.size
        self.forks: deque[Walk] = deque()  # that wait for a slot
        self.tree: list[Walk] | None = None  # that waits for two
        self.keys = torch.tensor([noise_key(step) for step in range(steps)])
        self.noisy = bool(self.table[:, 5].any())

    def fill(self, trees: Iterator[list[Walk]]) -> bool:
        """Give free slots to forks, then to new trees; False when all is done."""
        free = [i for i, walk in enumerate(self.slots) if walk is None]
        while free:
            if self.forks:
                self.slots[free.pop()] = self.forks.popleft()
                continue
            self.tree = self.tree or next(trees, None)
            if self.tree is None or len(free) < len(self.tree):
                break
            for walk in self.tree:
                self.slots[free.pop()] = walk
            self.tree = None
        return any(self.slots)

    def fork(self) -> None:
        """Let candidates leave their trunk."""
        forks = [walk.fork(len(self.table)) for walk in self.slots if walk]
        self.forks.extend(filter(None, forks))

    @torch.no_grad()
    def step(self) -> None:
        """One step of every walk that has a slot, in one call of the U-Net."""
        spare = next(filter(None, self.slots))  # an empty slot repeats it, unused
        walks = [walk or spare for walk in self.slots]
        x, x0, text = (
            torch.stack([getattr(walk, name) for walk in walks])
            for name in ("x", "x0", "text")
        )
        done = torch.tensor([walk.step for walk in walks])
        numbers = self.table[done].to(x.device)
        with sharing(self.backbone.unet) as state:
            state.source = self._source_rows(walks).to(x.device)
            eps = self._denoiser(walks, text)(x, numbers[:, 0].to(x.dtype))
        x, x0 = advance(x, eps, x0, self._fresh_noise(walks, done, x), numbers)
        for i, walk in enumerate(self.slots):
            if walk:
                walk.x, walk.x0, walk.step = x[i], x0[i], walk.step + 1

    def _source_rows(self, walks: list[Walk]) -> Tensor:
        """(2 * slots,) whose attention each row uses, in both halves of the batch."""
        place, steps = {id(w): i for i, w in enumerate(self.slots)}, len(self.table)
        rows = [
            place[id(walk.source)] if walk.sharing(steps) else i
            for i, walk in enumerate(walks)
        ]
        return torch.tensor([*rows, *(len(rows) + row for row in rows)])

    def _denoiser(self, walks: list[Walk], text: Tensor) -> Denoiser:
        scale = torch.tensor([walk.candidates[0].cfg_scale for walk in walks])
        null_text, device = self.backbone.null_text, self.backbone.device
        return caption_denoiser(self.backbone.unet, text, null_text, scale.to(device))

    def _fresh_noise(self, walks: list[Walk], done: Tensor, x: Tensor) -> Tensor | None:
        """What ancestral steps add, of each walk's own seed and step."""
        if not self.noisy:
            return None
        seeds = torch.tensor([walk.candidates[0].seed for walk in walks])
        keys = self.keys[done].to(x.device)
        return draws.normal(keys, seeds.to(x.device), tuple(x.shape[1:])).to(x)

    def take_finished(self) -> list[Walk]:
        """Walks at their end; their slots are free."""
        finished = [w for w in self.slots if w and w.step == len(self.table)]
        self.remove(finished)
        return finished

    def remove(self, walks: Sequence[Walk]) -> None:
        """Free the slots of some walks."""
        gone = set(map(id, walks))
        self.slots = [None if id(walk) in gone else walk for walk in self.slots]


def _decode(batch: _Batch, walks: Sequence[Walk], latent: str) -> list[_Second]:
    """Decode the walks' pictures: those of second pictures, with their source."""
    latents = [getattr(walk, latent) for walk in walks]
    parts = torch.stack(latents).split(batch.size) if latents else ()
    pictures = chain.from_iterable(map(batch.backbone.decode, parts))
    for walk, picture in zip(walks, pictures, strict=True):
        walk.picture = picture
    # A first picture is decoded with its second ones, or was before.
    return [(walk, walk.source) for walk in walks if walk.source]


def _finish(batch: _Batch, walks: Sequence[Walk]) -> list[RenderedPair]:
    return [
        RenderedPair(candidate, source.picture, walk.picture)
        for walk, source in _decode(batch, walks, "x")
        for candidate in walk.candidates
    ]


def _stop_early(batch: _Batch, preview: Preview) -> None:
    """Show the walks that have come to the preview, and stop those not kept."""
    here = [walk for walk in batch.slots if walk and walk.step == preview.step]
    seconds = _decode(batch, here, "x0")
    pairs = [RenderedPair(w.candidates[0], s.picture, w.picture) for w, s in seconds]
    kept = preview.keep(pairs) if pairs else []
    for (walk, source), keep in zip(seconds, kept, strict=True):
        if not keep:
            stopped = {id(candidate) for candidate in walk.candidates}
            source.candidates = [c for c in source.candidates if id(c) not in stopped]
            batch.remove([walk] if source.candidates else [walk, source])
