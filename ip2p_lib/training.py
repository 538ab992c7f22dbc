"""Teach the widened U-Net to edit (sections 3.2 and 3.2.1).

Read ``edit_loss`` first: it is equation 1. ``train`` repeats it, a generator that takes
one optimiser step, yields it, and leaves plots, logs and saving to the caller. The VAE
never runs here: see ``latents``, which also tells why a resumed run is exact.
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
from ip2p_lib.ema import EMA, named_weights
from ip2p_lib.guidance import drop_conditioning
from ip2p_lib.latents import Batch, Latents, select, visits_of_step
from ip2p_lib.parallel import add_up, share

if TYPE_CHECKING:
    from ip2p_lib.config import Training

CHECK_EVERY = 25  # steps between looks at a GPU's not-finite flag: each look waits
NO_ROOM = (
    "Not even one example fits into memory. Use a smaller resolution, call "
    "unet.enable_gradient_checkpointing(), or free what other notebooks hold."
)


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


@dataclass
class TrainState:
    """All that training changes; ``step`` counts the optimiser steps taken."""

    unet: nn.Module
    optimizer: torch.optim.AdamW
    ema: EMA
    failed: Tensor  # first step that was not finite, -1 so far; on the U-Net's device
    step: int = 0
    micro_batch: int | None = None  # halved when memory runs out; None is all at once

    def check(self) -> None:
        """Raise FloatingPointError if a step was not finite; waits for the GPU."""
        failed = int(self.failed)
        if failed >= 0:
            self.step = failed
            raise FloatingPointError(
                f"The loss or its gradient became NaN or infinite in step {failed}, "
                "which was not taken. Resume from the last checkpoint with a lower "
                "learning rate, or without autocast."
            )


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

    A loss that is not finite raises FloatingPointError, on a GPU some steps later.

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
        loss = _gradients(state, visits, backward)
        norm = _update(state, loss, lr, settings.max_grad_norm)
        yield TrainStep(state.step, loss, norm, lr)
    state.check()


def _gradients(
    state: TrainState, visits: Tensor, backward: Callable[[Tensor], Tensor]
) -> Tensor:
    """Add up gradients of micro-batches (halved if memory runs out) and processes."""
    while True:
        size = state.micro_batch or len(visits)
        try:
            loss = torch.stack([backward(part) for part in visits.split(size)]).sum()
            add_up([loss, *(weight.grad for weight in state.unet.parameters())])
            return loss
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise torch.OutOfMemoryError(NO_ROOM) from error
            state.micro_batch = (size + 1) // 2
            state.optimizer.zero_grad()


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


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """Name every tensor a run depends on; these are the live ones, not copies."""
    tensors: dict[str, Tensor] = {}
    for name, weight in named_weights(state.unet).items():
        tensors |= {f"unet/{name}": weight, f"ema/{name}": state.ema.weights[name]}
        for kind, tensor in state.optimizer.state[weight].items():
            tensors[f"{kind}/{name}"] = tensor
    return tensors


def save(root: str | Path, state: TrainState, *, keep: int = 2) -> Path:
    """Write ``root/step-0000123``, then remove all but the ``keep`` newest.

    Errors as ``TrainState.check`` and ``checkpoint.save``; older ones then stay.
    """
    state.check()
    facts = {"step": state.step, "ema_updates": state.ema.updates}
    folder = Path(root) / f"step-{state.step:07d}"
    checkpoint.save(folder, _tensors(state), facts)
    checkpoint.prune(root, keep)
    return folder


@torch.no_grad()
def resume(root: str | Path, state: TrainState) -> checkpoint.Checkpoint | None:
    """Go on from the newest complete checkpoint under ``root``; None if there is none.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
        ValueError: the checkpoint is of another U-Net.
    """
    if (found := checkpoint.latest(root)) is None:
        return None
    tensors = _tensors(state)
    shapes = [{k: v.shape for k, v in t.items()} for t in (tensors, found.tensors)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The checkpoint {found.folder} is of a U-Net with other weights. Resume "
            "with the U-Net that was trained, or choose another folder."
        )
    for name, tensor in tensors.items():
        tensor.copy_(found.tensors[name])
    state.step, state.ema.updates = found.state["step"], found.state["ema_updates"]
    state.failed.fill_(-1)
    return found
