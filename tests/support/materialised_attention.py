"""Both ways of sharing attention with every map written out, for comparisons.

They share nothing with the library but the U-Net: no fused attention, words paired by
hand, and loops over rows and heads. Rows are [u0 | u1 | c0 | c1].
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view


def install(processor, unet, layers):
    """Set the processor of the layers that are named attn1 or attn2."""
    old = unet.attn_processors
    unet.set_attn_processor(
        {name: processor if layers in name else old[name] for name in old}
    )


def project(attn, x, text):
    """q, k and v of a layer: each (rows, heads, tokens, d)."""
    inputs = (attn.to_q, x), (attn.to_k, text), (attn.to_v, text)
    return (to(y).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for to, y in inputs)


class MaterialisedSelfAttention:
    """Self-attention as the released code shares it: score maps copied, then softmax.

    Where ``active``, image 1 gets image 0's scores, in either half of the batch.
    """

    def __init__(self, unet):
        self.active: list[bool] = []
        install(self, unet, "attn1")

    def __call__(self, attn, x, encoder_hidden_states=None, *args, **kwargs):
        q, k, v = project(attn, x, x)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        n = len(self.active)
        for i in range(n):
            if self.active[i]:
                scores[n + i] = scores[i]
                scores[3 * n + i] = scores[2 * n + i]
        out = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


@dataclass
class Pair:
    """Two captions as (word, its successor) pairs, None for added and dropped words."""

    words: list[tuple[str | None, str | None]]
    mode: str = "refine"  # or "replace"
    weights: dict[str, float] = field(default_factory=dict)
    blend_words: tuple[set[str], set[str]] = (set(), set())
    threshold: float | None = None  # of the blend, if any

    @property
    def captions(self) -> tuple[str, str]:
        before, after = ([w for w in side if w] for side in zip(*self.words))  # noqa: B905
        return " ".join(before), " ".join(after)


def same(*words):
    return [(word, word) for word in words]


def edit_matrices(tokenizer, pair: Pair, length: int):
    """R (length, length) and b (length,) of Hertz et al., and tokens to blend by."""
    R = torch.zeros(length, length, dtype=torch.float64)
    b = torch.zeros(length, dtype=torch.float64)
    blend: tuple[list[int], list[int]] = [], []
    R[0, 0] = 1  # the start marker
    i = j = 1
    for old, new in pair.words:
        n, m = (len(tokenizer(w).input_ids) - 2 if w else 0 for w in (old, new))
        swapped = old and new and pair.mode == "replace"
        if old == new or (swapped and n == m):
            R[i : i + n, j : j + m] = torch.eye(n)
        elif swapped:
            R[i : i + n, j : j + m] = 1 / m
        else:
            b[j : j + m] = 1
        R[:, j : j + m] *= pair.weights.get(new, 1.0)
        b[j : j + m] *= pair.weights.get(new, 1.0)
        blend[0].extend(range(i, i + n) if old in pair.blend_words[0] else [])
        blend[1].extend(range(j, j + m) if new in pair.blend_words[1] else [])
        i, j = i + n, j + m
    for n in range(length - i):  # the end and the padding
        R[i + n, min(j + n, length - 1)] = 1
    return R, b, blend


class MaterialisedCrossAttention:
    """The original Prompt-to-Prompt, map by map."""

    def __init__(self, tokenizer, pairs: list[Pair | None], unet, positions=0):
        self.active = [False] * len(pairs)
        nothing = Pair([])  # where a pair is None
        self.edits = [edit_matrices(tokenizer, p or nothing, 77) for p in pairs]
        self.positions = positions  # of the maps that are summed
        self.total = torch.zeros(2, len(pairs), positions, dtype=torch.float64)
        install(self, unet, "attn2")

    def __call__(self, attn, x, encoder_hidden_states=None, *args, **kwargs):
        q, k, v = project(attn, x, encoder_hidden_states)
        n, out = len(self.edits), torch.empty_like(q)
        for row in range(4 * n):
            block, i = divmod(row, n)
            mapper, own, tokens = self.edits[i]
            for head in range(attn.heads):
                m = self._map(q, k, row, head)
                if block >= 2 and len(m) == self.positions:
                    of_tokens = m[:, tokens[block - 2]].sum(dim=1)
                    self.total[block - 2, i] += of_tokens / attn.heads
                if block == 3 and self.active[i]:
                    m = self._map(q, k, row - n, head) @ mapper + m * own
                out[row, head] = m @ v[row, head]
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def _map(self, q, k, row, head):
        scores = q[row, head] @ k[row, head].T / q.shape[-1] ** 0.5
        return scores.exp() / scores.exp().sum(-1, keepdim=True)


def mask(attention, grid, size, threshold):
    """(H, W) bool: dilated, enlarged and normalised, by numpy alone."""
    padded = np.pad(attention.reshape(grid).numpy(), 1)
    large = sliding_window_view(padded, (3, 3)).max(axis=(2, 3))
    for axis, new in enumerate(size):
        old = large.shape[axis]
        at = (np.arange(new) + 0.5) * old / new - 0.5  # pixel centres
        resize = partial(np.interp, at, np.arange(old))
        large = np.apply_along_axis(resize, axis, large)
    return torch.from_numpy(large > threshold * large.max())
