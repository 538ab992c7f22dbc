"""Training pairs as stored latents, and the examples of each step (section 3.2).

VAE and text encoder are frozen, so ``store_latents`` runs them once over the training
set, on both flips of every image: flipping a latent only resembles flipping its image.
The VAE's answer for the edited image is a Gaussian, stored as mean and log-variance so
that training still samples from it.

A *sample id* numbers one use of one example, ``epoch * N + example``. The sample ids of
a step, and every draw for a sample, are functions of (run seed, purpose, step, sample
id): so the step is all that a resumed run needs, and splitting a batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from ip2p_lib.device import to_device_async
from ip2p_lib.rng import integers, key, uniform


class Encoders(Protocol):
    """The frozen parts of a ``StableDiffusion``."""

    @property
    def scaling_factor(self) -> float: ...
    @property
    def null_text(self) -> Tensor: ...
    def encode_text(self, texts: Sequence[str]) -> Tensor: ...
    def encode(self, images: Tensor) -> Tensor: ...
    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Latents:
    """N training pairs as the U-Net meets them; F is 2 if flips are stored, else 1."""

    target_mean: Tensor  # (N, F, 4, h, w) of the edited image's latent, unscaled
    target_logvar: Tensor  # (N, F, 4, h, w)
    condition: Tensor  # (N, F, 4, h, w) mode of the input's latent, never scaled
    instruction: Tensor  # (N,) int64, each example's row of text
    text: Tensor  # distinct instructions: states (M, L, D), or token ids (M, L)
    null_text: Tensor  # (1, L, D) hidden states of the empty text
    scaling_factor: float  # of the VAE, for the target alone

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.condition)

    def to(self, device: torch.device | str) -> Latents:
        """Copy every tensor to ``device``."""
        moved: dict[str, Any] = {
            k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)


def index_distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct texts, and for each text (N,) its row among them."""
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(row), torch.tensor([row[text] for text in texts])


@torch.no_grad()
def encode_pairs(
    encoders: Encoders,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    flips: bool = True,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Tensor]:
    """Encode N pairs of images with the frozen VAE.

    Args:
        encoders: a text-to-image model; the latents stay on its device.
        batches: (before, after), each (B, 3, H, W) in [-1, 1].
        flips: also encode every pair mirrored.
        dtype: of the stored numbers.
    Returns:
        ``target_mean``, ``target_logvar`` and ``condition`` as ``Latents`` holds them.
    """
    parts: list[tuple[Tensor, ...]] = []
    for before, after in batches:
        pairs = [(before, after), (before.flip(-1), after.flip(-1))][: 1 + flips]
        encoded = [(*encoders.encode_moments(y), encoders.encode(x)) for x, y in pairs]
        stacked = (torch.stack(c, 1).to(dtype) for c in zip(*encoded, strict=True))
        parts.append(tuple(stacked))
    names = ("target_mean", "target_logvar", "condition")
    whole = (torch.cat(part) for part in zip(*parts, strict=True))
    return dict(zip(names, whole, strict=True))


@torch.no_grad()
def add_instructions(
    encoders: Encoders, pairs: dict[str, Tensor], instructions: Sequence[str]
) -> Latents:
    """Join encoded pairs with their instructions, each distinct one encoded once.

    Args:
        encoders: a text-to-image model; its text encoder runs.
        pairs: from ``encode_pairs``.
        instructions: one for each pair, in the same order.

    Raises:
        ValueError: there are not as many instructions as pairs.
    """
    condition = pairs["condition"]
    if len(condition) != len(instructions):
        raise ValueError(
            f"{len(condition)} pairs came with {len(instructions)} instructions; each "
            "pair needs one."
        )
    distinct, index = index_distinct(instructions)
    parts = [distinct[i : i + 256] for i in range(0, len(distinct), 256)]
    text = [encoders.encode_text(part).to(condition.dtype) for part in parts]
    return Latents(
        **pairs,
        instruction=index.to(condition.device),
        text=torch.cat(text),
        null_text=encoders.null_text.to(condition.dtype),
        scaling_factor=encoders.scaling_factor,
    )


def store_latents(
    encoders: Encoders,
    batches: Iterable[tuple[Tensor, Tensor]],
    instructions: Sequence[str],
    *,
    flips: bool = True,
    dtype: torch.dtype = torch.float16,
) -> Latents:
    """Encode a training set once: ``encode_pairs``, then ``add_instructions``."""
    pairs = encode_pairs(encoders, batches, flips=flips, dtype=dtype)
    return add_instructions(encoders, pairs, instructions)


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
    """Gather the examples of some sample ids, each mirrored or not by its own draw.

    Args:
        latents: the training set.
        sample_ids: (B,) int64, on the device of ``latents``.
        run_seed: with ``step`` and the ids, determines the flips.
        step: number of the optimiser step.
        device: of the batch.
        encode: makes hidden states (B, L, D) of token ids, if ``latents`` holds ids.
    """
    rows = sample_ids % len(latents)
    flip = integers(key(run_seed, "flip", step), sample_ids, latents.condition.shape[1])
    text = to_device_async(latents.text[latents.instruction[rows]], device)
    return Batch(
        to_device_async(latents.target_mean[rows, flip], device).float(),
        to_device_async(latents.target_logvar[rows, flip], device).float(),
        to_device_async(latents.condition[rows, flip], device).float(),
        (encode(text) if encode else text).float(),
        to_device_async(latents.null_text, device).float(),
        latents.scaling_factor,
        to_device_async(sample_ids, device),
    )
