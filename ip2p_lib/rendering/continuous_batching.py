"""Continuous batching: generate trees of candidates in a batch that stays full (3.1.2).

Each image is a ``Trajectory`` of ``trees``, in a row of the batch and at a step of its
own; a row that becomes free goes to the next one. The result equals that of
``render.generate_pairs`` up to rounding, in about half the work: no row depends on
another one but its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import torch

from ip2p_lib.diffusion.samplers import sampler_coefficients
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.rendering.candidates import Candidate
from ip2p_lib.rendering.render import GeneratedPair
from ip2p_lib.rendering.trajectories import Trajectory, TrajectoryBatch
from ip2p_lib.rendering.trees import build_trees


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
        backbone: its ``unet`` may be compiled: every call has 2 * batch_rows rows.
        candidates: those of one triplet, and in it those of one seed and guidance
            scale, together; read lazily.
        steps, sampler: as in ``render.generate_pairs``.
        batch_rows: images at once, two U-Net rows each; at least 2.
    Yields:
        Pairs in the order in which they finish, each candidate once.
    Raises:
        ValueError: fewer than 2 batch rows, a word edit, and as ``generate_pairs``.
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
