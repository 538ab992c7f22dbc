"""Teach the widened U-Net to edit (sections 3.2 and 3.2.1).

Read ``example_losses`` first: it is equation 1. ``train`` repeats it, a generator that
takes one optimiser step, yields it, and leaves plots, logs and saving to the caller,
whom ``recovery`` helps. The VAE never runs here: see ``latents``, which also tells why
a resumed run is exact.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ip2p_lib import checkpoint
from ip2p_lib.diffusion.guidance import drop_conditioning
from ip2p_lib.diffusion.samplers import Schedule, add_noise
from ip2p_lib.distributed import add_up, share
from ip2p_lib.rng import integers, key, normal, uniform
from ip2p_lib.training.accumulation import gradients
from ip2p_lib.training.latents import Batch, Latents, select, visits_of_step
from ip2p_lib.training.loss_weighting import by_band
from ip2p_lib.training.options import Economy
from ip2p_lib.training.state import TrainState

if TYPE_CHECKING:
    from ip2p_lib.config import Training

LOG = "log"  # name of the tensor in a checkpoint that is no part of a TrainState


def example_losses(
    unet: Callable[..., Any],
    schedule: Schedule,
    batch: Batch,
    drop: float,
    *,
    run_seed: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Equation 1 for each example: losses (B,) float32, and their timesteps (B,).

    The target latent is drawn from the VAE's Gaussian and scaled. The condition latent
    is its mode and not scaled: an accident of the released code that every model
    trained by it depends on.

    Args:
        unet: called as (8-channel sample, t, encoder_hidden_states=text).
        schedule: on the batch's device.
        batch: B examples.
        drop: share of examples that lose the text, both, the image (5 % each, 3.2.1).
        run_seed: with ``step`` and the batch's visits, determines every draw.
        step: number of the optimiser step.
    """
    ids, shape = batch.visits, tuple(batch.condition.shape[1:])
    noise = normal(key(run_seed, "noise", step), ids, shape)
    spread = normal(key(run_seed, "target", step), ids, shape)
    t = integers(key(run_seed, "timestep", step), ids, len(schedule.alphas_cumprod))
    u = uniform(key(run_seed, "drop", step), ids)
    target = batch.target_mean + torch.exp(batch.target_logvar / 2) * spread
    noisy = add_noise(schedule, batch.scaling * target, noise, t)
    text, image = drop_conditioning(
        batch.text, batch.condition, batch.null_text, u, drop
    )
    sample = torch.cat([noisy, image], dim=1)
    eps = unet(sample, t, encoder_hidden_states=text, return_dict=False)[0]
    return (eps.float() - noise).square().mean((1, 2, 3)), t


def edit_loss(
    unet: Callable[..., Any], schedule: Schedule, batch: Batch, **draws: Any
) -> Tensor:
    """Equation 1: the mean of ``example_losses``, whose arguments it takes."""
    return example_losses(unet, schedule, batch, **draws)[0].mean()


def start(
    unet: nn.Module, settings: Training, economy: Economy | None = None
) -> TrainState:
    """Prepare AdamW and the average for the weights of ``unet`` that are trained.

    Args:
        unet: they are float32, and where they will stay; with LoRA if ``economy`` says.
        economy: what to give up for memory; None is nothing, in float32.

    Raises:
        ImportError: the 8-bit AdamW is not installed.
        ValueError: the weights are not as ``economy`` says.
    """
    return TrainState.of(unet, settings, economy or Economy())


def learning_rate(settings: Training, step: int) -> float:
    """Rise over ``warmup`` steps, then stay; with ``decay``, fall by half a cosine."""
    rise = min(1, (step + 1) / max(settings.warmup, 1))
    fall = (1 + math.cos(math.pi * step / settings.steps)) / 2 if settings.decay else 1
    return settings.learning_rate * rise * fall


@dataclass(frozen=True)
class TrainStep:
    """A step taken, numbered from 1. ``float(loss)`` waits for a GPU: do it rarely."""

    step: int
    loss: Tensor
    grad_norm: Tensor
    lr: float
    bands: Tensor  # (2, K) sums of losses and numbers of examples, see ``loss_bands``


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
    """Train from ``state.step`` up to ``settings.steps``, yielding every step.

    A step that is not finite is refused by FloatingPointError, on a GPU a little late;
    in float16 it is skipped and counted (``state.skipped``), and three end the run.

    Args:
        state: from ``start``, perhaps after ``resume``; changed in place.
        run_seed: one seed takes the same steps, interrupted or on several processes.
        encode: makes hidden states (B, L, D) of token ids, if ``latents`` holds ids.
        weights: (T,) what a timestep's loss counts, as ``min_snr``; None is 1 (paper).
    """
    device, size, n = state.failed.device, settings.batch_size, len(latents)
    schedule = schedule.to(device)
    counts = torch.ones(len(schedule.alphas_cumprod)) if weights is None else weights
    counts, where = counts.to(device, torch.float32) / size, latents.condition.device

    def losses_of(visits: Tensor) -> tuple[Tensor, Tensor]:
        draws: dict[str, int] = {"run_seed": run_seed, "step": state.step}
        batch = select(latents, visits, device=device, encode=encode, **draws)
        with torch.autocast(device.type, state.autocast, enabled=bool(state.autocast)):
            return example_losses(state.unet, schedule, batch, settings.drop, **draws)

    state.unet.train()
    while state.step < settings.steps:
        visits = share(visits_of_step(run_seed, state.step, size, n, where))
        loss, bands = _gradients(state, visits, losses_of, counts)
        lr = learning_rate(settings, state.step)
        norm = state.update(loss, lr, settings.max_grad_norm)
        yield TrainStep(state.step, loss, norm, lr, bands)
    state.check()


def _gradients(
    state: TrainState,
    visits: Tensor,
    losses_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Leave a batch's gradients on the weights; return its loss, and that by band."""
    heard: list[Tensor] = []

    def backward(part: Tensor) -> Tensor:
        losses, t = losses_of(part)
        heard.append(torch.stack([t.float(), losses.detach()]))
        state.scaled(loss := (losses * counts[t]).sum()).backward()
        return loss.detach()

    loss = gradients(state, visits, backward)
    # Memory may have run out: then a first attempt stands before the parts that count.
    t, losses = torch.cat(heard, dim=1)[:, -len(visits) :]
    add_up([bands := by_band(t, losses, len(counts))])
    return loss, bands


def save(
    root: str | Path,
    state: TrainState,
    *,
    keep: int = 2,
    log: Tensor | None = None,
) -> Path:
    """Write ``root/step-0000123``, then remove all but the ``keep`` newest.

    Nothing that is not finite is ever written. Errors as ``TrainState.require_finite``
    and ``checkpoint.save``; older checkpoints then stay.

    Args:
        root: holds the run's checkpoints.
        state: at the end of a step, as ``train`` yields it.
        keep: at least 1.
        log: what else the run remembers of its steps, of any shape.
    """
    state.require_finite()
    tensors = state.tensors() | ({} if log is None else {LOG: log})
    folder = Path(root) / f"step-{state.step:07d}"
    checkpoint.save(folder, tensors, state.facts())
    checkpoint.prune(root, keep, intact=folder)
    return folder


def resume(
    root: str | Path, state: TrainState, *, mirror: str | Path | None = None
) -> checkpoint.Checkpoint | None:
    """Go on from the newest intact checkpoint; None if there is none.

    A warning says if it was saved under another economy, as far as one can go on so.

    Args:
        root: holds the run's checkpoints.
        state: of the same U-Net, from ``start``; changed in place.
        mirror: a second folder of checkpoints, used if it holds a newer one.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
        ValueError: the checkpoint is of another U-Net.
    """
    found = checkpoint.latest(*(folder for folder in (root, mirror) if folder))
    if found is None:
        return None
    tensors = {name: t for name, t in found.tensors.items() if name != LOG}
    try:
        state.restore(tensors, found.state)
    except ValueError as error:
        raise ValueError(
            f"{found.folder} cannot be resumed: {error} Resume with the U-Net that was "
            "trained, or choose another folder."
        ) from error
    before = Economy.of(found.state.get("economy", state.economy.facts()))
    if before != state.economy:
        warnings.warn(
            f"{found.folder} was saved under another economy ({before.words}); from "
            f"here on {state.economy.words}, which rounds otherwise.",
            stacklevel=2,
        )
    return found
