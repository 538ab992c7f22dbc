"""Both ways of sharing attention with every map written out, for comparisons.

They share nothing with the library but the U-Net: no fused attention, words paired by
hand, and loops over rows, heads and tokens. Rows are [u0 | u1 | c0 | c1].
"""

from dataclasses import dataclass, field

import torch

START = 1  # tokens before the first word


def install(processor, unet, layers) -> None:
    """Set the processor of the layers that are named attn1 or attn2."""
    old = unet.attn_processors
    unet.set_attn_processor(
        {name: processor if layers in name else old[name] for name in old}
    )


class MaterialisedSelfAttention:
    """Self-attention as the released code shares it: score maps copied, then softmax.

    Where ``active``, image 1 gets image 0's scores, in either half of the batch.
    """

    def __init__(self, unet=None) -> None:
        self.active: list[bool] = []
        if unet is not None:
            install(self, unet, "attn1")

    def __call__(self, attn, x, encoder_hidden_states=None, *args, **kwargs):
        q, k, v = (
            to(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for to in (attn.to_q, attn.to_k, attn.to_v)
        )
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


@dataclass
class Column:
    """What one token's map is: parts of the first image's columns, or its own."""

    parts: list[tuple[int, float]]
    own: bool = False
    weight: float = 1.0


def columns(tokenizer, pair: Pair, length: int) -> list[Column]:
    """One for each of the edited caption's tokens."""

    def size(word):
        return len(tokenizer(word).input_ids) - 2 if word else 0

    i, result = START, [Column([(0, 1.0)])]
    for old, new in pair.words:
        a, b = size(old), size(new)
        for j in range(b):
            if old == new or (old and pair.mode == "replace" and a == b):
                column = Column([(i + j, 1.0)])
            elif old and pair.mode == "replace":
                column = Column([(i + m, 1 / b) for m in range(a)])
            else:
                column = Column([], own=True)
            column.weight = pair.weights.get(new, 1.0)
            result.append(column)
        i += a
    rest = list(range(i, length))  # the end and the padding
    while len(result) < length:
        last = len(result) == length - 1
        taken, rest = (rest, []) if last else (rest[:1], rest[1:])
        result.append(Column([(n, 1.0) for n in taken]))
    return result


class MaterialisedCrossAttention:
    """The original Prompt-to-Prompt, column by column."""

    def __init__(self, tokenizer, pairs: list[Pair | None], unet, positions=0) -> None:
        self.active = [False] * len(pairs)
        self.columns = [p and columns(tokenizer, p, 77) for p in pairs]
        self.tokens = [
            [self._blend_tokens(tokenizer, pair, side) for side in (0, 1)]
            for pair in pairs
        ]
        self.positions = positions  # of the maps that are summed
        self.total = torch.zeros(2, len(pairs), positions, dtype=torch.float64)
        install(self, unet, "attn2")

    @staticmethod
    def _blend_tokens(tokenizer, pair, side):
        """Indices of the tokens that select the region to change."""
        at, selected = START, []
        for word in [w[side] for w in pair.words if w[side]] if pair else []:
            tokens = range(at, at + len(tokenizer(word).input_ids) - 2)
            selected += tokens if word in pair.blend_words[side] else []
            at = tokens.stop
        return selected

    def __call__(self, attn, x, encoder_hidden_states=None, *args, **kwargs):
        q, k, v = (
            to(y).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for to, y in (
                (attn.to_q, x),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        n, out = len(self.columns), torch.empty_like(q)
        for row in range(4 * n):
            for head in range(attn.heads):
                m = self._map(q, k, row, head)
                block, i = divmod(row, n)
                if block >= 2 and len(m) == self.positions:
                    for token in self.tokens[i][block - 2]:
                        self.total[block - 2, i] += m[:, token] / attn.heads
                if block == 3 and self.active[i]:
                    m = self._edited(self._map(q, k, row - n, head), m, i)
                out[row, head] = m @ v[row, head]
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def _map(self, q, k, row, head):
        scores = q[row, head] @ k[row, head].T / q.shape[-1] ** 0.5
        return scores.exp() / scores.exp().sum(-1, keepdim=True)

    def _edited(self, m0, m1, pair):
        edited = torch.zeros_like(m1)
        for j, column in enumerate(self.columns[pair]):
            for i, part in column.parts:
                edited[:, j] += part * m0[:, i]
            if column.own:
                edited[:, j] += m1[:, j]
            edited[:, j] *= column.weight
        return edited


def mask(attention, grid, size, threshold):
    """(H, W) bool: dilated, enlarged and normalised position by position."""
    (h, w), (height, width) = grid, size
    near = torch.zeros(h, w, dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            rows = slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2)
            near[y, x] = attention.reshape(h, w)[rows].max()
    large = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            a = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
            b = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
            for r in (int(a), min(int(a) + 1, h - 1)):
                for c in (int(b), min(int(b) + 1, w - 1)):
                    part = max(0, 1 - abs(a - r)) * max(0, 1 - abs(b - c))
                    twice = (2 if r == int(a) == h - 1 else 1) * (
                        2 if c == int(b) == w - 1 else 1
                    )
                    large[y, x] += part * near[r, c] / twice
    return large > threshold * large.max() if large.max() > 0 else large > 1
