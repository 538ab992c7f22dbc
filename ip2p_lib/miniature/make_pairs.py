"""The miniature's own pairs: its LM writes, its U-Net renders, its CLIP filters.

This is section 3.1 end to end on one GPU, with pictures kept in memory between the
steps. ``make_editor`` trains on what comes out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ip2p_lib.backbone import Backbone
from ip2p_lib.config import Scale
from ip2p_lib.filtering import ClipScorer, Scores, keep_best, score_pairs
from ip2p_lib.images import to_pil
from ip2p_lib.language_model import LanguageModel, write_triplets
from ip2p_lib.miniature.stages import to_bytes, to_unit
from ip2p_lib.miniature.world import caption, sample_scene
from ip2p_lib.rendering import Candidate, draw_candidates, render
from ip2p_lib.shards import Pair
from ip2p_lib.triplets import Triplet, tally


@dataclass
class KeptPairs:
    """Pairs that passed the filter, in memory, and the count of those that did not."""

    candidates: list[Candidate] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)  # (n, 3, H, W) uint8 parts
    after: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)  # (n, 4) image, 0, 1, direction
    rendered: int = 0

    def __len__(self) -> int:
        """Count the pairs kept."""
        return len(self.candidates)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(before, after) in [-1, 1], as ``latents.store_latents`` reads them."""
        for before, after in zip(self.before, self.after, strict=True):
            yield to_unit(before), to_unit(after)

    def pairs(self, rows: Sequence[int], steps: int) -> Iterator[Pair]:
        """Some of the pairs as records for a data set."""
        before, after = torch.cat(self.before), torch.cat(self.after)
        scores = torch.cat(self.scores).cpu()
        for row in rows:
            made, triplet = self.candidates[row], self.candidates[row].triplet
            pictures = to_pil(to_unit(torch.stack([before[row], after[row]])))
            names = ("image", "before", "after", "direction")
            values = [round(float(score), 5) for score in scores[row]]
            yield Pair(
                key=f"{row:07d}",
                before=pictures[0],
                after=pictures[1],
                caption=triplet.caption,
                instruction=triplet.instruction,
                edited_caption=triplet.edited_caption,
                seed=made.seed,
                p=made.p,
                cfg_scale=made.cfg_scale,
                steps=steps,
                scores=dict(zip(names, values, strict=True)),
                language=triplet.language,
            )


def world_captions(first_seed: int, n: int) -> list[str]:
    """Captions of ``n`` scenes, a fifth of them in Chinese."""
    languages = [random.Random(f"caption {i}").random() for i in range(n)]
    return [
        caption(sample_scene(seed), seed, "zh" if u < 0.2 else "en")
        for seed, u in zip(range(first_seed, first_seed + n), languages, strict=True)
    ]


def write(
    writer: LanguageModel, captions: Sequence[str], *, batch_size: int, seconds: float
) -> tuple[list[Triplet], dict[str, int]]:
    """Triplets for captions, until the time is up, and the count of every outcome."""
    start, replies = time.monotonic(), []
    for reply in write_triplets(writer, captions, batch_size=batch_size, max_tokens=96):
        replies.append(reply)
        if time.monotonic() - start > seconds and len(replies) % batch_size == 0:
            break
    triplets = dict.fromkeys(reply.triplet for reply in replies if reply.triplet)
    return list(triplets), tally(replies)


def readable(backbone: Backbone, triplets: Sequence[Triplet]) -> list[Triplet]:
    """The triplets whose three texts the text encoder reads whole."""
    limit = backbone.text_encoder.config.max_position_embeddings

    def lengths(texts: list[str]) -> list[int]:
        return [len(ids) for ids in backbone.tokenizer(texts).input_ids]

    rows = zip(
        triplets,
        lengths([t.caption for t in triplets]),
        lengths([t.instruction for t in triplets]),
        lengths([t.edited_caption for t in triplets]),
        strict=True,
    )
    return [triplet for triplet, *counts in rows if max(counts) <= limit]


def render_kept(
    backbone: Backbone,
    clip: ClipScorer,
    triplets: Sequence[Triplet],
    scale: Scale,
    *,
    batch_size: int,
    seconds: float,
    run_seed: int = 0,
) -> KeptPairs:
    """Render candidates of every triplet and keep the best, until the time is up.

    Args:
        backbone: the text-to-image model.
        clip: the filter's scorer.
        triplets: written by the language model.
        scale: its rendering and filtering settings are used.
        batch_size: candidates at once, a multiple of the candidates of one triplet.
        seconds: stop after this long.
        run_seed: names the draws of seeds, p and guidance.
    """
    start, kept, settings = time.monotonic(), KeptPairs(), scale.rendering
    candidates = draw_candidates(triplets, settings.candidates, run_seed, settings)
    sampler, steps = settings.sampler, settings.steps
    batches = render(
        backbone, candidates, steps=steps, batch_size=batch_size, sampler=sampler
    )
    for batch in batches:
        _filter(kept, clip, [pair.candidate for pair in batch], batch, scale)
        if time.monotonic() - start > seconds:
            break
    return kept


def _filter(
    kept: KeptPairs, clip: ClipScorer, made: list[Candidate], batch: list, scale: Scale
) -> None:
    before = torch.stack([pair.before for pair in batch])
    after = torch.stack([pair.after for pair in batch])
    captions = [candidate.triplet.caption for candidate in made]
    edited = [candidate.triplet.edited_caption for candidate in made]
    scores: Scores = score_pairs(clip, before, after, captions, edited)
    groups = [candidate.triplet for candidate in made]
    rows = keep_best(scores, groups, scale.filtering)
    kept.rendered += len(made)
    if not rows:
        return
    index = torch.tensor(rows, device=before.device)
    columns = [scores.image, scores.before, scores.after, scores.direction]
    kept.candidates += [made[row] for row in rows]
    kept.before.append(to_bytes(before[index]))
    kept.after.append(to_bytes(after[index]))
    kept.scores.append(torch.stack(columns, 1)[index])
