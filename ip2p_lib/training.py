"""Teach the widened U-Net to edit (sections 3.2 and 3.2.1).

Read ``edit_loss`` first: it is equation 1. ``train`` repeats it, a generator that takes
one optimiser step, yields it, and leaves plots, logs and saving to the caller, whom
``recovery`` helps. The VAE never runs here: see ``latents``, which also tells why a
resumed run is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ip2p_lib import checkpoint
from ip2p_lib.diffusion import Schedule, add_noise
from ip2p_lib.draws import integers, key, normal, uniform
from ip2p_lib.ema import EMA
from ip2p_lib.guidance import drop_conditioning
from ip2p_lib.latents import Batch, Latents, select, visits_of_step
from ip2p_lib.micro_batches import gradients
from ip2p_lib.parallel import share
from ip2p_lib.train_state import TrainState

if TYPE_CHECKING:
    from ip2p_lib.config import Training

CHECK_EVERY = 25  # steps between looks at a GPU's not-finite flag: each look waits
LOG = "log"  # name of the tensor in a checkpoint that is no part of a TrainState


def edit_loss(
    unet: Callable[..., Any],
    schedule: Schedule,
    batch: Batch,
    *,
    run_seed: int,
    step: int,
    drop: float,
) -> Tensor:
    """Mean squared error of the predicted noise (section 3.2, equation 1).

    The target latent is drawn from the VAE's Gaussian and scaled. The condition latent
    is its mode and not scaled: an accident of the released code that every model
    trained by it depends on. Returns a scalar.

    Args:
        unet: called as (8-channel sample, t, encoder_hidden_states=text).
        schedule: on the batch's device.
        batch: B examples.
        run_seed: with ``step`` and the batch's visits, determines every draw.
        step: number of the optimiser step.
        drop: share of examples that lose the text, both, the image (5 % each, 3.2.1).
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
    return nn.functional.mse_loss(eps.float(), noise)


def start(unet: nn.Module, settings: Training) -> TrainState:
    """Prepare AdamW and the average for float32 weights that stay on their device."""
    weights, decay = list(unet.parameters()), settings.weight_decay
    optimizer = torch.optim.AdamW(weights, weight_decay=decay, fused=True)
    for weight in weights:  # as the first step would, so that resume has what to fill
        moments = {k: torch.zeros_like(weight) for k in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": weight.new_zeros(()).detach(), **moments}
    failed = torch.tensor(-1, device=weights[0].device)
    return TrainState(unet, optimizer, EMA(unet, settings.ema_decay), failed)


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


def train(
    state: TrainState,
    latents: Latents,
    schedule: Schedule,
    settings: Training,
    *,
    run_seed: int,
    autocast: torch.dtype | None = None,
    encode: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[TrainStep]:
    """Train from ``state.step`` up to ``settings.steps``, yielding every step.

    A step that is not finite is refused by FloatingPointError, on a GPU a little late.

    Args:
        state: from ``start``, perhaps after ``resume``; changed in place.
        run_seed: one seed takes the same steps, interrupted or on several processes.
        autocast: ``torch.bfloat16`` on GPUs that have it; None computes in float32.
        encode: makes hidden states (B, L, D) of token ids, if ``latents`` holds ids.
    """
    device, size, n = state.failed.device, settings.batch_size, len(latents)
    amp = torch.autocast(device.type, autocast) if autocast else nullcontext()
    schedule = schedule.to(device)

    def backward(visits: Tensor) -> Tensor:
        draws: dict[str, int] = {"run_seed": run_seed, "step": state.step}
        batch = select(latents, visits, device=device, encode=encode, **draws)
        with amp:
            loss = edit_loss(state.unet, schedule, batch, drop=settings.drop, **draws)
        (part := loss * (len(visits) / size)).backward()
        return part.detach()

    state.unet.train()
    while state.step < settings.steps:
        lr, where = learning_rate(settings, state.step), latents.condition.device
        visits = share(visits_of_step(run_seed, state.step, size, n, where))
        loss = gradients(state, visits, backward)
        norm = _update(state, loss, lr, settings.max_grad_norm)
        yield TrainStep(state.step, loss, norm, lr)
    state.check()


def _update(state: TrainState, loss: Tensor, lr: float, max_norm: float) -> Tensor:
    """Clip, step AdamW and the average; after a non-finite loss, change nothing."""
    grad_norm = nn.utils.clip_grad_norm_(state.unet.parameters(), max_norm)
    bad = ~(loss + grad_norm).isfinite() & (state.failed < 0)
    state.failed = torch.where(bad, state.step, state.failed)
    if state.failed.device.type == "cpu" or state.step % CHECK_EVERY == 0:
        state.check()
    # The flag GradScaler uses: a fused AdamW that finds it set changes nothing, so a
    # GPU need not be waited for between the loss and the update.
    state.optimizer.found_inf = (state.failed >= 0).float()  # type: ignore[attr-defined]
    state.optimizer.param_groups[0]["lr"] = lr
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update(state.unet)
    state.step += 1
    return grad_norm


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
    return found
