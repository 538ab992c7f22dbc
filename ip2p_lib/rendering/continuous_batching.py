"""Candidates rendered with a full batch of one shape, none of it twice (section 3.1.2).

Each picture is a walk of ``trees``, each walk has a slot of the batch and is at a step
of its own; a slot that falls free is taken by the next walk. What comes out equals
``rendering.render`` up to rounding: no walk looks at a slot that is not its own or its
source's. Read ``render_in_slots``, then ``walks.WalkBatch``.

A ``Preview`` may stop walks that will fail, which is not exact: read there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch

from ip2p_lib.diffusion.sampler_steps import step_table
from ip2p_lib.diffusion.stable_diffusion import Backbone
from ip2p_lib.rendering.render import Candidate, RenderedPair
from ip2p_lib.rendering.trajectories import Walk, WalkBatch
from ip2p_lib.rendering.trees import plant

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
    batch = WalkBatch(backbone, step_table(backbone.schedule, steps, sampler), slots)
    trees = plant(backbone, candidates, batch.table, sampler, ahead=slots)
    done = list[Walk]()
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


def _decode(batch: WalkBatch, walks: Sequence[Walk], latent: str) -> list[_Second]:
    """Decode the walks' pictures: those of second pictures, with their source."""
    latents = [getattr(walk, latent) for walk in walks]
    parts = torch.stack(latents).split(batch.size) if latents else ()
    pictures = chain.from_iterable(map(batch.backbone.decode, parts))
    for walk, picture in zip(walks, pictures, strict=True):
        walk.picture = picture
    # A first picture is decoded with its second ones, or was before.
    return [(walk, walk.source) for walk in walks if walk.source]


def _finish(batch: WalkBatch, walks: Sequence[Walk]) -> list[RenderedPair]:
    return [
        RenderedPair(candidate, source.picture, walk.picture)
        for walk, source in _decode(batch, walks, "x")
        for candidate in walk.candidates
    ]


def _stop_early(batch: WalkBatch, preview: Preview) -> None:
    """Show the walks that have come to the preview, and stop those not kept."""
    seconds = _decode(batch, batch.at(preview.step), "x0")
    pairs = [RenderedPair(w.candidates[0], s.picture, w.picture) for w, s in seconds]
    kept = preview.keep(pairs) if pairs else []
    for (walk, source), keep in zip(seconds, kept, strict=True):
        if not keep:
            stopped = {id(candidate) for candidate in walk.candidates}
            source.candidates = [c for c in source.candidates if id(c) not in stopped]
            batch.remove([walk] if source.candidates else [walk, source])
