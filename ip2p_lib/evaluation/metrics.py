"""Measure edits: was the change made, and was the rest kept (section 4.1, figure 8)?

One number cannot answer both, since copying the input is perfectly consistent. So the
paper draws a curve: image similarity against directional similarity, one point for each
image scale s_I; up and to the right is better. ``sweep`` gives the editor's points,
``sweep_sdedit`` the baseline's, ``bounds`` those of the two trivial editors. Read
``measure`` first: its two similarities follow the released
``metrics/compute_metrics.py``, the distances are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ip2p_lib.dataset.dataset import Pair, stack
from ip2p_lib.editing.editor import Editor
from ip2p_lib.evaluation.sdedit import ignore_input_tensors, sdedit_tensors
from ip2p_lib.filtering.clip_filter import ClipScorer, score_pairs
from ip2p_lib.results import Row

if TYPE_CHECKING:
    from ip2p_lib.diffusion.stable_diffusion import Backbone

Columns = dict[str, Tensor]


@dataclass(frozen=True)
class Examples:
    """B edits to make: pictures (B, 3, H, W) in [-1, 1] and their texts."""

    before: Tensor
    instructions: Sequence[str]
    captions: Sequence[str]
    edited_captions: Sequence[str]
    truth: Tensor | None = None  # (B, 3, H, W): the exact answer, where there is one

    def __len__(self) -> int:
        """Count the edits."""
        return len(self.before)


def examples_of(pairs: Sequence[Pair], *, exact: bool = False) -> Examples:
    """Turn pairs of one size into examples; ``exact``: their ``after`` is the truth."""
    before, after = stack(pairs)
    instructions, captions = [p.instruction for p in pairs], [p.caption for p in pairs]
    edited, truth = [p.edited_caption for p in pairs], after if exact else None
    return Examples(before, instructions, captions, edited, truth)


def _l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of each picture, (B,), as a share of the range."""
    return (a.cpu().float() - b.cpu().float()).abs().mean((1, 2, 3)) / 2


@torch.no_grad()
def measure(clip: ClipScorer, examples: Examples, after: Tensor) -> Columns:
    """Measure B edits one by one.

    Args:
        clip: the scorer.
        examples: what was asked.
        after: (B, 3, H, W) in [-1, 1], the edits.

    Returns:
        (B,) float32 on the CPU under each name: ``image_similarity`` of edit and input;
        ``directional_similarity`` (``score_pairs``); ``target_similarity`` and
        ``source_similarity`` of the edit and either caption; ``nearer_target``, 1 where
        the former is larger; ``l1_source``, mean absolute difference to the input in
        [0, 1]; with a truth also ``l1_truth`` of the edit and ``l1_untouched`` of the
        input, which a good edit comes below.
    """
    texts = (list(examples.captions), list(examples.edited_captions))
    scores = score_pairs(clip, examples.before.to(after), after, *texts)
    edit, source = clip.embed_images(after), clip.embed_texts(texts[0])
    to_source = functional.cosine_similarity(edit, source)
    columns = {
        "image_similarity": scores.image,
        "directional_similarity": scores.direction,
        "target_similarity": scores.after,
        "source_similarity": to_source,
        "nearer_target": (scores.after > to_source).float(),
        "l1_source": _l1(after, examples.before),
    }
    if examples.truth is not None:
        columns["l1_truth"] = _l1(after, examples.truth)
        columns["l1_untouched"] = _l1(examples.before, examples.truth)
    return {name: column.cpu() for name, column in columns.items()}


def summarise(columns: Columns) -> Row:
    """Average the columns of ``measure`` into one row of a table."""
    means = {name: column.double().mean().item() for name, column in columns.items()}
    return {"samples": len(columns["image_similarity"]), **means}


def _tabulate(
    clip: ClipScorer,
    batches: Iterable[Examples],
    settings: Sequence[Row],
    edit: Callable[..., Tensor],
) -> list[Row]:
    """Edit every batch at every setting; one row a setting. Batches are met once."""
    parts: list[list[Columns]] = [[] for _ in settings]
    first = 0
    for examples in batches:
        seeds = range(first, first + len(examples))
        for setting, columns in zip(settings, parts, strict=True):
            columns.append(measure(clip, examples, edit(examples, seeds, **setting)))
        first += len(examples)
    joined = [{k: torch.cat([c[k] for c in cs]) for k in cs[0]} for cs in parts]
    return [s | summarise(columns) for s, columns in zip(settings, joined, strict=True)]


def sweep(
    editor: Editor,
    clip: ClipScorer,
    batches: Iterable[Examples],
    image_scales: Sequence[float],
    *,
    text_scale: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    method: str = "InstructPix2Pix",
) -> list[Row]:
    """Measure an editor along the image scale s_I: the curve of figure 8.

    Args:
        editor: the trained editor, whose defaults are meant by None.
        clip: the scorer.
        batches: the examples, in parts that fit into memory, such as ``[examples]``.
        image_scales: paper 1.0 to 2.2; one row of means each is returned.
        text_scale, steps: as ``Editor.edit``.
        seed: of the first example; each next example's is one higher.
        method: name of the curve.
    """

    def edit(
        examples: Examples, seeds: range, method: str, image_scale: float
    ) -> Tensor:
        """Ask the editor for one point of its curve."""
        return editor.edit_tensors(
            examples.before,
            examples.instructions,
            text_scale=text_scale,
            image_scale=image_scale,
            steps=steps,
            seed=[seed + i for i in seeds],
        )

    settings = [{"method": method, "image_scale": scale} for scale in image_scales]
    return _tabulate(clip, batches, settings, edit)


def sweep_sdedit(
    backbone: Backbone,
    clip: ClipScorer,
    batches: Iterable[Examples],
    strengths: Sequence[float],
    *,
    cfg_scale: float,
    steps: int,
    seed: int = 0,
) -> list[Row]:
    """Measure SDEdit along its strength: the baseline's curve of figure 8."""

    def edit(examples: Examples, seeds: range, method: str, strength: float) -> Tensor:
        """Noise the input by the strength and paint it anew."""
        return sdedit_tensors(
            backbone,
            examples.before,
            examples.edited_captions,
            strength=strength,
            cfg_scale=cfg_scale,
            steps=steps,
            seeds=[seed + i for i in seeds],
        )

    settings = [{"method": "SDEdit", "strength": strength} for strength in strengths]
    return _tabulate(clip, batches, settings, edit)


def bounds(
    backbone: Backbone,
    clip: ClipScorer,
    batches: Iterable[Examples],
    *,
    cfg_scale: float,
    steps: int,
    seed: int = 0,
) -> list[Row]:
    """Measure the trivial editors: a row for copying the input, one for ignoring it."""

    def edit(examples: Examples, seeds: range, method: str) -> Tensor:
        """Give the input back, or a picture of the edited caption alone."""
        if method == "copy the input":
            return examples.before
        before, captions = examples.before, examples.edited_captions
        ids = [seed + i for i in seeds]
        return ignore_input_tensors(
            backbone, before, captions, cfg_scale=cfg_scale, steps=steps, seeds=ids
        )

    names = ("copy the input", "ignore the input")
    return _tabulate(clip, batches, [{"method": name} for name in names], edit)
