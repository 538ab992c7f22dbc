"""The trade-off curve of figure 8 (section 4.1): measure an editor along a setting.

Each point averages many edits: image similarity against directional similarity; up and
to the right is better. The editor moves along s_I, SDEdit along its strength.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ip2p_lib.diffusion.clip import ClipScorer
from ip2p_lib.evaluation.metrics import Columns, Examples, measure, summarise
from ip2p_lib.results import Row


def sweep(
    edit: Callable[..., Tensor],
    settings: Sequence[Row],
    clip: ClipScorer,
    batches: Iterable[Examples],
    *,
    method: str,
    seed: int = 0,
) -> list[Row]:
    """Edit every example at every setting, and average what ``measure`` says.

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
