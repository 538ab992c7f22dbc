"""Train the widened U-Net to edit (sections 3.2 and 3.2.1).

Read ``example_losses`` first: it is equation 1, with conditioning dropout. Then
``train``, a generator that yields after every optimiser step, and leaves plots, logs
and saving to the caller (see ``resume``). The VAE does not run here: see ``latents``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ip2p_lib.diffusion.schedule import Schedule, add_noise
from ip2p_lib.distributed import all_reduce_sum, local_shard
from ip2p_lib.rng import integers, key, normal, uniform
from ip2p_lib.training.latents import Batch, Latents, gather_batch, sample_ids_of_step
from ip2p_lib.training.state import TrainState

if TYPE_CHECKING:
    from ip2p_lib.config import Training

NUM_BINS = 4  # of timesteps, of equal width, from least to most noise
OUT_OF_MEMORY = (
    "Not even one example fits into memory. Use gradient_checkpointing, ema_on_cpu, or "
    "add_editor_lora with lora_rank (TrainingOptions), or a smaller resolution."
)
HALVED = (
    "Memory ran out in step {} with {} examples at once. From here on {} at a time: "
    "the same batches and draws, their gradients added up, only slower."
)


def drop_conditioning(
    text: Tensor, image: Tensor, null_text: Tensor, u: Tensor, rate: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Conditioning dropout: null values in place of some conditionings (3.2.1).

    One uniform number decides for an example, as in the released ``ddpm_edit.py``:
    below r the text is dropped, below 2r both, below 3r the image. Each of the three
    cases so has probability r, 5 % in the paper.

    Args:
        text, null_text: (B, L, D) embeddings, and (1, L, D) that of the empty text.
        image: (B, C, H, W) condition latents; the null image is the zero latent.
        u, rate: (B,) numbers in [0, 1); r, a ValueError outside [0, 1/3].
    Returns:
        ``text`` and ``image`` with the chosen rows replaced.
    """
    if not 0 <= rate <= 1 / 3:
        raise ValueError(f"The dropout rate must be in [0, 1/3], not {rate}.")
    drop_text = (u < 2 * rate)[:, None, None]
    drop_image = ((u >= rate) & (u < 3 * rate))[:, None, None, None]
    return torch.where(drop_text, null_text, text), image.masked_fill(drop_image, 0)


def example_losses(
    unet: Callable[..., Any],
    schedule: Schedule,
    batch: Batch,
    drop: float,
    *,
    run_seed: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Equation 1 for each example, || eps - eps_theta(z_t, t, E(c_I), c_T) ||^2.

    The target latent is drawn from the VAE's Gaussian and scaled. The condition latent
    is its mode and not scaled: an accident of the released code that every model
    trained by it depends on.

    Args:
        unet: called as (8-channel sample, t, encoder_hidden_states=text).
        schedule, batch: on one device; B examples.
        drop: probability of losing the text, both, the image (5 % each, 3.2.1).
        run_seed, step: with the batch's sample ids, determine every draw.
    Returns:
        Losses (B,) float32, means over a latent's elements, and their timesteps (B,).
    """
    ids, shape = batch.sample_ids, tuple(batch.condition.shape[1:])
    noise = normal(key(run_seed, "noise", step), ids, shape)
    vae_noise = normal(key(run_seed, "target", step), ids, shape)
    t = integers(key(run_seed, "timestep", step), ids, len(schedule.alphas_cumprod))
    u = uniform(key(run_seed, "drop", step), ids)
    target = batch.target_mean + torch.exp(batch.target_logvar / 2) * vae_noise
    noisy = add_noise(schedule, batch.scaling_factor * target, noise, t)
    text, image = drop_conditioning(
        batch.text, batch.condition, batch.null_text, u, drop
    )
    sample = torch.cat([noisy, image], dim=1)
    eps = unet(sample, t, encoder_hidden_states=text, return_dict=False)[0]
    return (eps.float() - noise).square().mean((1, 2, 3)), t


def learning_rate(settings: Training, step: int) -> float:
    """Linear warm-up, then constant, or half a cosine down to 0 with ``decay``."""
    rise = min(1, (step + 1) / max(settings.warmup, 1))
    fall = (1 + math.cos(math.pi * step / settings.steps)) / 2 if settings.decay else 1
    return settings.learning_rate * rise * fall


@dataclass(frozen=True)
class TrainStep:
    """One finished step, counted from 1. Reading a tensor waits for the GPU."""

    step: int
    loss: Tensor  # of the whole batch, on all processes
    grad_norm: Tensor  # before clipping
    lr: float
    bins: Tensor  # (2, K) sums of losses and numbers of examples, see ``bin_losses``


def bin_losses(t: Tensor, losses: Tensor, T: int = 1000) -> Tensor:
    """Sum the losses (B,) of examples within each bin of their timesteps t (B,).

    A batch's mean loss depends mostly on which timesteps were drawn: noise is hard to
    predict at small t and easy at large t. The mean within a bin shows learning.
    Returns (2, NUM_BINS) float32 where ``losses`` are: sums, numbers of examples.
    """
    number = torch.arange(NUM_BINS, device=t.device)[:, None]
    inside = ((t * NUM_BINS).long() // T == number).float()
    return torch.stack([inside @ losses.float(), inside.sum(1)])


def train(
    state: TrainState,
    latents: Latents,
    schedule: Schedule,
    settings: Training,
    *,
    run_seed: int,
    encode: Callable[[Tensor], Tensor] | None = None,
    weights: Tensor | None = None,
) -> Iterator[TrainStep]:
    """Train from ``state.step`` to ``settings.steps``, yielding after every step.

    Args:
        state: perhaps after ``resume``; changed in place.
        run_seed: the same seed takes the same steps, on any number of processes.
        encode: makes hidden states (B, L, D) of token ids, if ``latents`` holds ids.
        weights: (T,) of each timestep's loss, see ``LOSS_WEIGHTINGS``; None is 1.

    Raises:
        FloatingPointError: a loss is not finite, see ``TrainState.update``.
        torch.OutOfMemoryError: not even one example fits.
    """
    size, T = settings.batch_size, len(schedule.alphas_cumprod)
    weights = torch.ones(T) if weights is None else weights
    per_example_weight = weights.to(state.device, torch.float32) / size
    schedule, where = schedule.to(state.device), latents.condition.device
    same: dict[str, Any] = {"latents": latents, "schedule": schedule, "encode": encode}
    same |= {"per_example_weight": per_example_weight, "drop": settings.drop}
    backward = partial(_backward, state, **same, run_seed=run_seed)
    state.unet.train()
    while state.step < settings.steps:
        ids = sample_ids_of_step(run_seed, state.step, size, len(latents), where)
        # Forward and backward pass of equation 1, with conditioning dropout.
        losses, t = accumulate_gradients(state, backward, local_shard(ids))
        loss, bins = (per_example_weight[t] * losses).sum(), bin_losses(t, losses, T)
        all_reduce_sum([loss, bins, *(w.grad for w in state.unet.parameters())])
        lr = learning_rate(settings, state.step)
        norm = state.update(lr, settings.max_grad_norm)  # clip, AdamW, EMA
        yield TrainStep(state.step, loss, norm, lr, bins)
    state.check()


def accumulate_gradients(
    state: TrainState, backward: Callable[[Tensor], tuple[Tensor, Tensor]], ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Forward and backward pass, in micro-batches whose gradients add up.

    Every draw depends on the sample id, so a batch in parts is the same step up to
    rounding. If memory runs out, ``state.micro_batch`` is halved and the step is begun
    again; a warning says so, once.

    ``backward`` adds the gradients of some of this process's sample ids (B,). Returns
    losses (B,), not weighted, and timesteps (B,). Raises torch.OutOfMemoryError, which
    says what to do, if not even one example fits.
    """
    first = size = state.micro_batch or len(ids)
    while True:
        state.optimizer.zero_grad()  # of a caller, or of parts before memory ran out
        try:
            parts = [backward(part) for part in ids.split(size)]
            break
        except torch.OutOfMemoryError:
            if size == 1:
                raise torch.OutOfMemoryError(OUT_OF_MEMORY) from None
        state.micro_batch = size = (size + 1) // 2
    if size < first:
        warnings.warn(HALVED.format(state.step + 1, first, size), stacklevel=2)
    losses, t = (torch.cat(column) for column in zip(*parts, strict=True))
    return losses, t


def _backward(
    state: TrainState,
    ids: Tensor,
    *,
    latents: Latents,
    schedule: Schedule,
    per_example_weight: Tensor,
    encode: Callable[[Tensor], Tensor] | None,
    drop: float,
    run_seed: int,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of some examples; returns their losses and timesteps."""
    draws = {"run_seed": run_seed, "step": state.step}
    batch = gather_batch(latents, ids, device=state.device, encode=encode, **draws)
    half = state.options.autocast
    with torch.autocast(state.device.type, half, enabled=half is not None):
        losses, t = example_losses(state.unet, schedule, batch, drop, **draws)
    state.scaler.scale((per_example_weight[t] * losses).sum()).backward()
    return losses.detach(), t
