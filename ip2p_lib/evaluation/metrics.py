"""Measure edits: was the change made, and was the rest preserved (section 4.1)?

One number cannot answer both, since copying the input is perfectly consistent. The two
similarities of ``measure`` follow the released ``metrics/compute_metrics.py``, the
pixel distances are ours. ``sweep`` measures an editor along a setting, for figure 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ip2p_lib.checks import is_visible
from ip2p_lib.diffusion.clip import ClipScorer
from ip2p_lib.images import ImageError
from ip2p_lib.results import Row

Columns = dict[str, Tensor]


@dataclass(frozen=True)
class Examples:
    """B edits to make: images (B, 3, H, W) in [-1, 1] and their texts."""

    before: Tensor
    instructions: Sequence[str]
    captions: Sequence[str]
    edited_captions: Sequence[str]
    truth: Tensor | None = None  # (B, 3, H, W), where there is a ground truth

    def __len__(self) -> int:
        """Count the edits."""
        return len(self.before)


@torch.no_grad()
def measure(clip: ClipScorer, examples: Examples, after: Tensor) -> Columns:
    """Measure B edits one by one.

    Args:
        clip, examples: embeds images and captions; the edits that were to be made.
        after: (B, 3, H, W) in [-1, 1], the edits.
    Returns:
        (B,) float32 on the CPU under each name: ``image_similarity`` of edit and input;
        ``directional_similarity`` of the changes of image and caption;
        ``target_similarity`` and ``source_similarity`` of the edit and either caption;
        ``nearer_target``, 1 where the former is larger (these four: NaN without
        captions); ``l1_source``, mean absolute difference to the input in [0, 1]; with
        a ground truth also its distance to the edit, ``l1_truth``, and to the input,
        ``l1_untouched``, which is the larger one if the edit is good.
    Raises:
        ImageError: edits, inputs and ground truth differ in shape.
    """
    for name in ("before", "truth"):
        other = getattr(examples, name)
        if other is not None and other.shape != after.shape:
            shapes = f"{tuple(after.shape)}, those of {name} {tuple(other.shape)}"
            raise ImageError(f"The edits have the shape {shapes}; bring them to one.")
    columns = _similarities(clip, examples, after)
    columns["l1_source"] = _l1(after, examples.before)
    if examples.truth is not None:
        columns["l1_truth"] = _l1(after, examples.truth)
        columns["l1_untouched"] = _l1(examples.before, examples.truth)
    return {name: column.cpu() for name, column in columns.items()}


def _similarities(clip: ClipScorer, examples: Examples, after: Tensor) -> Columns:
    """The columns of ``measure`` by CLIP."""
    images = clip.embed_images(torch.cat([examples.before.to(after), after]))
    texts = clip.embed_texts([*examples.captions, *examples.edited_captions])
    (input_, edit), (source, target) = images.chunk(2), texts.chunk(2)
    to_target, to_source = (cosine_similarity(edit, text) for text in (target, source))
    by_text = {
        "directional_similarity": cosine_similarity(edit - input_, target - source),
        "target_similarity": to_target,
        "source_similarity": to_source,
        "nearer_target": (to_target > to_source).float(),
    }
    captions = zip(examples.captions, examples.edited_captions, strict=True)
    blank = torch.tensor([not all(map(is_visible, pair)) for pair in captions])
    return {
        "image_similarity": cosine_similarity(input_, edit),
        **{n: x.masked_fill(blank.to(x.device), torch.nan) for n, x in by_text.items()},
    }


def _l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of each image, (B,), as a fraction of the range."""
    return (a.cpu().float() - b.cpu().float()).abs().mean((1, 2, 3)) / 2


def summarise(columns: Columns) -> Row:
    """Means of the columns of ``measure`` without NaN; a mean of none is left out."""
    means = {
        name: column.double().nanmean().item()
        for name, column in columns.items()
        if not column.isnan().all()
    }
    return {"samples": len(columns["image_similarity"]), **means}


def sweep(
    edit: Callable[..., Tensor],
    settings: Sequence[Row],
    clip: ClipScorer,
    batches: Iterable[Examples],
    *,
    method: str,
    seed: int = 0,
) -> list[Row]:
    """Edit every example at every setting, and average what ``measure`` says (4.1).

    The trade-off curve of figure 8: image similarity against directional similarity, up
    and to the right is better. The editor moves along s_I, SDEdit along its strength.

    Args:
        edit: called as ``edit(examples, seeds, **setting)``, gives (B, 3, H, W).
        settings: keyword arguments of ``edit``, such as ``{"image_scale": 1.5}``.
        clip, batches: the examples, in parts that fit into memory; read once.
        method: name of the curve.
        seed: of the first example; each next example's is one higher.
    Returns:
        One row a setting: method, setting, and the means.
    """
    parts: list[list[Columns]] = [[] for _ in settings]
    for examples in batches:
        seeds = list(range(seed, seed + len(examples)))
        for setting, columns in zip(settings, parts, strict=True):
            after = edit(examples, seeds, **setting)
            columns.append(measure(clip, examples, after))
        seed += len(examples)
    joined = [{k: torch.cat([c[k] for c in cs]) for k in cs[0]} for cs in parts]
    return [
        {"method": method, **setting, **summarise(columns)}
        for setting, columns in zip(settings, joined, strict=True)
    ]
