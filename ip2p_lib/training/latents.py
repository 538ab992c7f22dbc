"""Training pairs as stored latents, and the examples of each step (section 3.2).

VAE and text encoder are frozen, so ``store_latents`` runs them once over the training
set, on both flips of every image: flipping a latent only resembles flipping its image.
The latent of the edited image is stored as mean and log-variance of its Gaussian, so
that training still samples from it.

A *sample id* numbers one use of one example, ``epoch * N + example``. The sample ids of
a step, and every draw for a sample, are functions of (run seed, purpose, step, sample
id): so the step is all that a resumed run needs, and splitting a batch changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ip2p_lib.device import to_device_async
from ip2p_lib.rng import integers, key, uniform

if TYPE_CHECKING:
    from ip2p_lib.diffusion.stable_diffusion import StableDiffusion


LATENTS = ("target_mean", "target_logvar", "condition")  # fields, see ``Latents``
SIDES = re.compile(r"(?i)(?<![a-z])(left|right)|[左右]")  # swapped in mirrored images


@dataclass(frozen=True)
class Latents:
    """N training pairs as the U-Net meets them; F is 2 if flips are stored, else 1."""

    target_mean: Tensor  # (N, F, 4, h, w) of the edited image's latent, unscaled
    target_logvar: Tensor  # (N, F, 4, h, w)
    condition: Tensor  # (N, F, 4, h, w) mode of the input's latent, never scaled
    text_row: Tensor  # (N,) int64, each example's row of text
    text: Tensor  # distinct instructions: states (M, L, D), or token ids (M, L)
    null_text: Tensor  # (1, L, D) hidden states of the empty text
    scaling_factor: float  # of the VAE, for the target alone

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.condition)


@torch.no_grad()
def encode_pairs(
    backbone: StableDiffusion,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    flips: bool = True,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Tensor]:
    """Encode pairs of images (before, after), each (B, 3, H, W) in [-1, 1].

    Returns the fields ``LATENTS`` as ``Latents`` holds them.
    """
    parts: list[tuple[Tensor, ...]] = []
    for before, after in batches:
        pairs = [(before, after), (before.flip(-1), after.flip(-1))][: 1 + flips]
        encoded = [(*backbone.encode_moments(y), backbone.encode(x)) for x, y in pairs]
        stacked = (torch.stack(c, 1).to(dtype) for c in zip(*encoded, strict=True))
        parts.append(tuple(stacked))
    whole = (torch.cat(part) for part in zip(*parts, strict=True))
    return dict(zip(LATENTS, whole, strict=True))


@torch.no_grad()
def add_instructions(
    backbone: StableDiffusion,
    pairs: dict[str, Tensor],
    instructions: Sequence[str],
    *,
    as_tokens: bool = False,
) -> Latents:
    """Join the result of ``encode_pairs`` with one instruction for each pair.

    Pairs whose instruction names left or right, in English or Chinese, lose their
    mirrored variant: ``pairs`` then has the plain one in both places. ``as_tokens``
    stores token ids, of which ``train`` needs ``encode`` to make hidden states: those
    of many instructions are larger than the latents. Texts that are too long are cut.
    """
    condition = pairs["condition"]
    if len(condition) != len(instructions):
        raise ValueError(
            f"{len(condition)} pairs came with {len(instructions)} instructions; each "
            "pair needs one."
        )
    sides = [i for i, text in enumerate(instructions) if SIDES.search(text)]
    for latent in pairs.values():
        latent[sides, -1] = latent[sides, 0]
    row = {text: i for i, text in enumerate(dict.fromkeys(instructions))}
    distinct, null_text = list(row), backbone.null_text
    if as_tokens:
        text = backbone.tokenize(distinct, truncate=True)
    else:
        parts = [distinct[i : i + 256] for i in range(0, len(distinct), 256)]
        text = torch.cat([backbone.encode_text(p).to(condition.dtype) for p in parts])
        null_text = null_text.to(condition.dtype)
    device = condition.device
    return Latents(
        **pairs,
        text_row=torch.tensor([row[text] for text in instructions], device=device),
        text=text.to(device),
        null_text=null_text.to(device),
        scaling_factor=backbone.scaling_factor,
    )


def store_latents(
    backbone: StableDiffusion,
    batches: Iterable[tuple[Tensor, Tensor]],
    instructions: Sequence[str],
    **options: Any,
) -> Latents:
    """Encode a training set once: ``encode_pairs``, then ``add_instructions``.

    ``options`` are ``flips`` and ``dtype`` of ``encode_pairs``.
    """
    pairs = encode_pairs(backbone, batches, **options)
    return add_instructions(backbone, pairs, instructions)


@dataclass(frozen=True)
class Batch:
    """B examples of one step, in float32 on the U-Net's device."""

    target_mean: Tensor  # (B, 4, h, w)
    target_logvar: Tensor  # (B, 4, h, w)
    condition: Tensor  # (B, 4, h, w)
    text: Tensor  # (B, L, D)
    null_text: Tensor  # (1, L, D)
    scaling_factor: float
    sample_ids: Tensor  # (B,) int64


@lru_cache(maxsize=2)  # a step usually meets one epoch, at most two
def _epoch_order(run_seed: int, epoch: int, n: int, device: torch.device) -> Tensor:
    ids = torch.arange(n, device=device)
    return uniform(key(run_seed, "order", epoch), ids).argsort(stable=True)


def sample_ids_of_step(
    run_seed: int,
    step: int,
    batch_size: int,
    n: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample ids of a step, (batch_size,) int64, each ``epoch * n + example``.

    Each of the ``n`` examples is used once an epoch, each epoch in its own order.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(first // n, (last - 1) // n + 1):
        order = _epoch_order(run_seed, epoch, n, torch.device(device)) + epoch * n
        parts.append(order[max(first - epoch * n, 0) : last - epoch * n])
    return torch.cat(parts)


@torch.no_grad()
def gather_batch(
    latents: Latents,
    sample_ids: Tensor,
    *,
    run_seed: int,
    step: int,
    device: torch.device | str,
    encode: Callable[[Tensor], Tensor] | None = None,
) -> Batch:
    """Gather the examples of sample ids (B,) int64, each mirrored by its own draw.

    ``device`` is that of the batch. ``encode`` makes hidden states (B, L, D) of token
    ids, if ``latents`` holds ids.
    """
    rows = sample_ids % len(latents)
    flip = integers(key(run_seed, "flip", step), sample_ids, latents.condition.shape[1])
    moved = partial(to_device_async, device=device)
    text = moved(latents.text[latents.text_row[rows]])
    return Batch(
        **{name: moved(getattr(latents, name)[rows, flip]).float() for name in LATENTS},
        text=(encode(text) if encode else text).float(),
        null_text=moved(latents.null_text).float(),
        scaling_factor=latents.scaling_factor,
        sample_ids=moved(sample_ids),
    )
