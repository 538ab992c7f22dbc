"""Keep the generated pairs that show the edit (section 3.1.2 and appendix A.2).

Most candidates of a triplet are poor: too similar, too different, or changed in some
unwanted way. CLIP gives each candidate four scores, as in the released
``metrics/clip_similarity.py``. The paper keeps those that reach every threshold, at
most four per triplet. Read ``score_pairs``, then ``passes`` and ``keep_best``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ip2p_lib.checks import check_number, check_whole, each_text
from ip2p_lib.config import Filtering
from ip2p_lib.diffusion.clip import ClipScorer
from ip2p_lib.rendering.render import GeneratedPair


@dataclass(frozen=True)
class Scores:
    """The four cosines of B pairs, each (B,) in [-1, 1], with their released names."""

    image: Tensor  # clip_sim_image: image before and image after
    before: Tensor  # clip_sim_0: image before and its caption
    after: Tensor  # clip_sim_1: image after and the edited caption
    direction: Tensor  # clip_sim_dir: change of images and change of captions


def score_pairs(
    clip: ClipScorer,
    before: Tensor,
    after: Tensor,
    captions: Sequence[str],
    edited_captions: Sequence[str],
) -> Scores:
    """CLIP scores of B pairs, in one pass of each tower.

    The direction is cos(E(after) - E(before), T(edited) - T(caption)) with unit
    embeddings E of images and T of texts (Gal et al., StyleGAN-NADA).

    From (B, 3, H, W) in [-1, 1] and B texts each; ValueError for other numbers or one
    lone text. The scores stay on the device of ``clip``.
    """
    captions = list(each_text("captions", captions))
    edited_captions = list(each_text("edited_captions", edited_captions))
    sides = (before, after, captions, edited_captions)
    if len(set(lengths := [len(side) for side in sides])) != 1:
        raise ValueError(f"Images and captions of pairs differ in number: {lengths}.")
    image_0, image_1 = clip.embed_images(torch.cat([before, after])).chunk(2)
    return score_embeddings(clip, image_0, image_1, captions + edited_captions)


def score_embeddings(
    clip: ClipScorer, image_0: Tensor, image_1: Tensor, texts: Sequence[str]
) -> Scores:
    """The same from image embeddings (B, D) each, and captions before edited ones."""
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # each text once
    text_0, text_1 = clip.embed_texts(list(row))[[row[t] for t in texts]].chunk(2)
    return Scores(
        image=cosine_similarity(image_0, image_1),
        before=cosine_similarity(image_0, text_0),
        after=cosine_similarity(image_1, text_1),
        direction=cosine_similarity(image_1 - image_0, text_1 - text_0),
    )


def score_generated(clip: ClipScorer, pairs: Sequence[GeneratedPair]) -> Scores:
    """CLIP scores of generated pairs, at least one, on the scorer's device.

    Candidates of one tree share their image before, which is embedded once.
    """
    first = {id(pair.before): pair.before for pair in pairs}
    row = {key: i for i, key in enumerate(first)}
    images = torch.stack([*first.values(), *(pair.after for pair in pairs)])
    before, after = clip.embed_images(images).tensor_split([len(first)])
    rows = torch.tensor([row[id(pair.before)] for pair in pairs], device=clip.device)
    captions = [pair.candidate.triplet.caption for pair in pairs]
    edited = [pair.candidate.triplet.edited_caption for pair in pairs]
    return score_embeddings(clip, before[rows], after, captions + edited)


def thresholds_by_score(thresholds: Filtering) -> dict[str, float]:
    """The threshold of each score, in the order in which they are applied.

    Raises ValueError for a threshold that is no number, or if fewer than one is kept.
    """
    image, text, direction = thresholds.image, thresholds.text, thresholds.direction
    limits = {"image": image, "before": text, "after": text, "direction": direction}
    for name, limit in limits.items():
        check_number(name, limit, -math.inf, math.inf)
    check_whole("keep", thresholds.keep)
    return limits


def passes(scores: Scores, thresholds: Filtering) -> Tensor:
    """(B,) bool, which pairs reach every threshold; a NaN never does."""
    limits = thresholds_by_score(thresholds)
    reached = [getattr(scores, name) >= limit for name, limit in limits.items()]
    return torch.stack(reached).all(0)


def drop_reasons(scores: Scores, thresholds: Filtering) -> list[str | None]:
    """The first threshold each pair misses (``"image 0.610 < 0.750"``) or None."""
    reasons: list[str | None] = [None] * len(scores.image)
    for name, limit in thresholds_by_score(thresholds).items():
        for row, value in enumerate(getattr(scores, name).tolist()):
            missed = not value >= limit  # in this form NaN is a miss
            if missed and reasons[row] is None:
                reasons[row] = f"{name} {value:.3f} < {limit:.3f}"
    return reasons


def keep_best(
    scores: Scores, groups: Sequence[Hashable], thresholds: Filtering
) -> list[int]:
    """Row indices of the best ``thresholds.keep`` passing pairs of every triplet.

    ``groups`` has each pair's triplet. Triplets come in the order in which they appear,
    within one the highest directional similarity first.
    """
    if len(groups) != (n := len(scores.image)):
        raise ValueError(f"There are {n} pairs, and triplets of {len(groups)} of them.")
    members: dict[Hashable, list[int]] = {}
    for row in passes(scores, thresholds).nonzero().flatten().tolist():
        members.setdefault(groups[row], []).append(row)
    direction = scores.direction.tolist()
    for rows in members.values():
        rows.sort(key=lambda row: -direction[row])
    return [row for rows in members.values() for row in rows[: thresholds.keep]]
