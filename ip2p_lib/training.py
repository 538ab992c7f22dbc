"""Teach the widened U-Net to edit (sections 3.2 and 3.2.1).

Read ``edit_loss`` first: it is equation 1. ``train`` repeats it, a generator that takes
one optimiser step, yields it, and leaves plots, logs and saving to the caller. The VAE
never runs here: see ``latents``, which also tells why a resumed run is exact.
"""

from __future__ import annotations

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
from ip2p_lib.guidance import drop_conditioning
from ip2p_lib.latents import Batch, Latents, select, visits_of_step

if TYPE_CHECKING:
    from ip2p_lib.config import Training

CHECK_EVERY = 25  # steps between looks at a GPU's not-finite flag: each look waits


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
        run_seed: with ``step`` and the visits, determines every draw.
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


def _named_weights(unet: nn.Module) -> dict[str, Tensor]:
    """Name weights alike whether or not the U-Net is compiled or distributed."""
    return {
        name.removeprefix("_orig_mod.").removeprefix("module."): weight
        for name, weight in unet.named_parameters()
    }


class EMA:
    """Moving average of the weights, which is what edits (released ``ema.py``).

    The decay rises as (1 + n) / (10 + n) with the number n of updates. The released
    code updates once a micro-batch; here, as in the paper, once an optimiser step.
    """

    def __init__(self, unet: nn.Module, decay: float) -> None:
        """Start from a copy of the weights of ``unet``; ``decay`` lies in [0, 1)."""
        self.decay, self.updates = decay, 0
        self.weights = {k: w.detach().clone() for k, w in _named_weights(unet).items()}

    @torch.no_grad()
    def update(self, unet: nn.Module) -> None:
        """Move the average a little towards the weights of ``unet``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = list(_named_weights(unet).values())
        torch._foreach_lerp_(list(self.weights.values()), weights, 1 - decay)

    @torch.no_grad()
    def copy_to(self, unet: nn.Module) -> None:
        """Overwrite the weights of ``unet`` by the average."""
        for name, weight in _named_weights(unet).items():
            weight.copy_(self.weights[name])


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
                f"The loss or its gradient became NaN or infinite in step {failed}; "
                "the weights are those before it. Lower the learning rate, or train "
                "without autocast, and go on from the last checkpoint."
            )


def start(unet: nn.Module, settings: Training) -> TrainState:
    """Prepare AdamW and the moving average for a U-Net with float32 weights.

    Its device and memory format must not change afterwards.
    """
    optimizer = torch.optim.AdamW(
        unet.parameters(), weight_decay=settings.weight_decay, fused=True
    )
    device = next(unet.parameters()).device
    for weight in unet.parameters():  # as its first step would, so that resume can fill
        moments = {k: torch.zeros_like(weight) for k in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": torch.zeros((), device=device), **moments}
    failed = torch.tensor(-1, device=device)
    return TrainState(unet, optimizer, EMA(unet, settings.ema_decay), failed)


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

    Args:
        state: from ``start``, perhaps after ``resume``; changed in place.
        latents: the training set, on any device.
        schedule: the noise schedule.
        settings: steps, batch size, learning rate, warm-up, clipping, dropout.
        run_seed: one seed takes the same steps whether interrupted or not.
        autocast: ``torch.bfloat16`` on GPUs that have it; None computes in float32.
        encode: makes hidden states (B, L, D) of token ids, if ``latents`` holds ids.

    Raises:
        FloatingPointError: a loss is not finite (a GPU notices a few steps later).
        torch.OutOfMemoryError: even single examples do not fit.
    """
    device = state.failed.device
    schedule = schedule.to(device)
    amp = torch.autocast(device.type, autocast) if autocast else nullcontext()

    def backward(visits: Tensor) -> Tensor:
        draws: dict[str, int] = {"run_seed": run_seed, "step": state.step}
        batch = select(latents, visits, device=device, encode=encode, **draws)
        with amp:
            loss = edit_loss(state.unet, schedule, batch, drop=settings.drop, **draws)
        loss = loss * (len(visits) / settings.batch_size)
        loss.backward()
        return loss.detach()

    state.unet.train()
    place = (settings.batch_size, len(latents), latents.condition.device)
    while state.step < settings.steps:
        lr = settings.learning_rate * min(1, (state.step + 1) / max(settings.warmup, 1))
        loss = _gradients(state, visits_of_step(run_seed, state.step, *place), backward)
        grad_norm = _update(state, loss, lr, settings.max_grad_norm)
        yield TrainStep(state.step, loss, grad_norm, lr)
    state.check()


def _gradients(
    state: TrainState, visits: Tensor, backward: Callable[[Tensor], Tensor]
) -> Tensor:
    """Add up the gradients of micro-batches, in smaller ones if memory runs out."""
    while True:
        size = state.micro_batch or len(visits)
        try:
            return torch.stack([backward(part) for part in visits.split(size)]).sum()
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise torch.OutOfMemoryError(
                    "Not even one example fits into memory. Use a smaller resolution, "
                    "call unet.enable_gradient_checkpointing(), or free the memory "
                    "that other notebooks hold."
                ) from error
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
    for name, weight in _named_weights(state.unet).items():
        tensors |= {f"unet/{name}": weight, f"ema/{name}": state.ema.weights[name]}
        for kind, tensor in state.optimizer.state[weight].items():
            tensors[f"{kind}/{name}"] = tensor
    return tensors


def save(root: str | Path, state: TrainState, *, keep: int = 2) -> Path:
    """Write ``root/step-0000123``, then remove all but the ``keep`` newest.

    Raises:
        FloatingPointError: a step was not finite.
        OSError: the disk is full; what was saved before stays.
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
    found = checkpoint.latest(root)
    if found is None:
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
    return found
