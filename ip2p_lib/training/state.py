"""What a training run changes, and thus what a checkpoint holds (section 3.2).

Random draws need no state: they are functions of the step (see ``rng``).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ip2p_lib.training.ema import EMA, named_weights

if TYPE_CHECKING:
    from ip2p_lib.config import Training

CHECK_EVERY = 25  # steps between two reads of a value on a GPU: each read waits for it


@dataclass(frozen=True)
class TrainingOptions:
    """Options that save GPU memory. The default uses none: full training in float32.

    Trained weights, gradients and AdamW's state are float32 in any case. Only
    ``lora_rank`` changes a step by more than rounding.
    """

    lora_rank: int | None = None  # train LoRA of this rank and conv_in, freeze the rest
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    ema_on_cpu: bool = False  # keep the moving average on the CPU
    autocast: torch.dtype | None = None  # from device.pick_autocast; None is float32

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values, for a checkpoint's manifest."""
        dtype = str(self.autocast).removeprefix("torch.") if self.autocast else None
        return asdict(self) | {"autocast": dtype}


@dataclass
class TrainState:
    """U-Net, AdamW, EMA and loss scale; ``step`` counts steps taken or skipped."""

    unet: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    scaler: torch.amp.GradScaler
    options: TrainingOptions
    step: int = 0
    micro_batch: int | None = None  # examples at once; halved when memory runs out

    @classmethod
    def create(
        cls, unet: Any, settings: Training, options: TrainingOptions | None = None
    ) -> TrainState:
        """Prepare AdamW, EMA and loss scale for the trained weights of ``unet``.

        They must be float32 and where they will stay, with LoRA if ``options`` says so.
        """
        options = options or TrainingOptions()
        _check_weights(unet, options)
        if options.gradient_checkpointing:
            unet.enable_gradient_checkpointing(_checkpointed)
        weights = list(named_weights(unet).values())
        optimizer = torch.optim.AdamW(
            weights, weight_decay=settings.weight_decay, fused=True
        )
        for w in weights:  # as the first step does: a checkpoint is restored into these
            moments = {k: torch.zeros_like(w) for k in ("exp_avg", "exp_avg_sq")}
            optimizer.state[w] = {"step": w.new_zeros(()).detach(), **moments}
        # float16 underflows unless the loss is scaled. Elsewhere the scale stays 1, and
        # GradScaler only skips steps whose gradients are not finite.
        scaled = options.autocast is torch.float16
        scaler = torch.amp.GradScaler(
            weights[0].device.type,
            init_scale=2.0**16 if scaled else 1.0,
            growth_interval=2000 if scaled else 2**31 - 1,
        )
        ema = EMA(unet, settings.ema_decay, "cpu" if options.ema_on_cpu else None)
        return cls(unet, optimizer, ema, scaler, options)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._steps_taken.device

    @property
    def _steps_taken(self) -> Tensor:
        """AdamW's own count, a scalar on the device; it leaves out skipped steps."""
        count: Tensor = next(iter(self.optimizer.state.values()))["step"]
        return count

    def update(self, lr: float, max_norm: float) -> Tensor:
        """Clip the gradients, step AdamW and the EMA; a non-finite gradient skips both.

        A skipped step halves the loss scale. Once it is below 1 (in full precision
        after one skipped step) the run is over: the scale becomes NaN, so that no later
        step is taken, and ``check`` raises, on a GPU up to ``CHECK_EVERY`` steps late.

        Gradients with a norm above ``max_norm`` are scaled down to it. Returns the norm
        before that, a scalar.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(named_weights(self.unet).values(), max_norm)
        self.optimizer.param_groups[0]["lr"] = lr
        before = self._steps_taken.clone()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.ema.update(self.unet, taken=self._steps_taken - before)
        scale = self.scaler.scale(torch.ones_like(before))
        # A scale of NaN makes all later gradients NaN, so GradScaler skips their steps:
        # the run is over, although nobody has waited for the GPU to say so.
        self.scaler.update(scale.where(scale >= 1, torch.nan))
        if self.device.type == "cpu" or self.step % CHECK_EVERY == 0:
            self.check()
        self.step += 1
        return norm

    def check(self) -> None:
        """Raise FloatingPointError if training cannot go on; waits for the GPU.

        Then ``step`` is set back to the last one taken; float16 counts skipped ones.
        """
        if not math.isnan(self.scaler.get_scale()):
            return
        if self.options.autocast is not torch.float16:
            self.step = int(self._steps_taken)
        raise FloatingPointError(
            f"Step {self.step + 1} was refused: a loss or gradient is not finite "
            "(in float16, even at scale 1). Likely the learning rate is too high. "
            "Resume from the last checkpoint with a lower rate, or with bfloat16."
        )

    def tensors(self) -> dict[str, Tensor]:
        """Name every tensor that a run depends on: the live ones, not copies."""
        tensors: dict[str, Tensor] = {}
        for name, weight in named_weights(self.unet).items():
            tensors |= {f"unet/{name}": weight, f"ema/{name}": self.ema.weights[name]}
            for kind, tensor in self.optimizer.state[weight].items():
                tensors[f"{kind}/{name}"] = tensor
        return tensors

    def metadata(self) -> dict[str, Any]:
        """Everything else that a run depends on, as JSON values."""
        return {
            "step": self.step,
            "ema_updates": int(self.ema.updates),
            "micro_batch": self.micro_batch,
            "loss_scale": self.scaler.state_dict(),
            "options": self.options.to_dict(),
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Continue from what ``tensors`` and ``metadata`` returned when it was saved.

        Raises ValueError if they are of another U-Net, or need another loss scaling.
        """
        own, options = self.tensors(), (self.options.to_dict(), metadata["options"])
        shapes = [{k: v.shape for k, v in t.items()} for t in (own, tensors)]
        scaled = [saved["autocast"] == "float16" for saved in options]
        if shapes[0] != shapes[1] or scaled[0] != scaled[1]:
            raise ValueError("It is of another U-Net, or was saved under other options")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.scaler.load_state_dict(metadata["loss_scale"])
        self.ema.updates.fill_(metadata["ema_updates"])
        self.step, self.micro_batch = metadata["step"], metadata["micro_batch"]

    def require_finite(self) -> None:
        """Raise FloatingPointError if any tensor to be saved is NaN or infinite.

        A huge learning rate makes infinite weights of finite gradients, which the loss
        shows only a step later.
        """
        self.check()
        tensors = list(self.tensors().values())
        norms = torch._foreach_norm(tensors, float("inf"))
        if not torch.stack([norm.to(self.device) for norm in norms]).isfinite().all():
            raise FloatingPointError(
                f"After step {self.step} a weight is NaN or infinite, so nothing was "
                "saved. Resume from the last checkpoint with a lower learning rate."
            )


def _checkpointed(module: nn.Module, *inputs: Any) -> Any:
    """Gradient checkpointing without diffusers' version check: it breaks compiling."""
    return checkpoint(module, *inputs, use_reentrant=False)


def _check_weights(unet: nn.Module, options: TrainingOptions) -> None:
    """Refuse half precision, which cannot hold small steps, and LoRA without LoRA."""
    weights = named_weights(unet)
    if {w.dtype for w in weights.values()} not in ({torch.float32}, {torch.float64}):
        raise ValueError(
            "Trained weights must be float32: call unet.float() first; "
            "TrainingOptions(autocast) is for half precision."
        )
    if any(".lora_A." in name for name in weights) != bool(options.lora_rank):
        raise ValueError("lora_rank and add_editor_lora go together: one is missing.")
