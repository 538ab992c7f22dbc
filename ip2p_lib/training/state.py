"""All that training changes, by name: what a checkpoint must hold (section 3.2).

Draws need no place here: they are functions of the step (see ``draws``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ip2p_lib.training.ema import EMA, named_weights
from ip2p_lib.training.loss_scale import LEAST, TRIES, LossScale
from ip2p_lib.training.optimizer import (
    adamw,
    kept_of,
    set_steps_taken,
    step_unless,
    steps_taken,
)
from ip2p_lib.training.options import Economy

if TYPE_CHECKING:
    from ip2p_lib.config import Training

CHECK_EVERY = 25  # steps between looks at a GPU's not-finite flag: each look waits

REFUSED = (
    "Step {} was refused: its loss or gradient is NaN or infinite. Likely the learning "
    "rate is too high, or the autocast is float16 and economy does not say so, whose "
    "gradients overflow unless they are scaled. Resume from the last checkpoint, which "
    "is finite, with a lower rate, or with bfloat16 or no autocast."
)
HOPELESS = (
    f"Step {{}} was skipped, as were the {TRIES - 1} before it: in float16 the loss or "
    f"a gradient is not finite, even at the least loss scale, {LEAST:g}. Resume from "
    "the last checkpoint, which is finite, with a lower rate, or with bfloat16 or no "
    "autocast."
)


@dataclass
class TrainState:
    """All that training changes; ``step`` counts the steps taken or skipped."""

    unet: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    failed: Tensor  # step at which the run ended, -1 so far; on the U-Net's device
    step: int = 0
    micro_batch: int | None = None  # halved when memory runs out; None is all at once
    economy: Economy = field(default_factory=Economy)
    loss_scale: LossScale | None = None  # float16 needs it

    @classmethod
    def of(cls, unet: Any, settings: Training, economy: Economy) -> TrainState:
        """Prepare all of it; as ``training.start``, which see."""
        weights = list(named_weights(unet).values())
        _require_float32(unet, economy)
        if economy.checkpointing:
            unet.enable_gradient_checkpointing(_twice)
        device = weights[0].device
        return cls(
            unet,
            adamw(weights, settings.weight_decay, eight_bit=economy.eight_bit),
            EMA(unet, settings.ema_decay, "cpu" if economy.ema_on_cpu else None),
            failed=torch.tensor(-1, device=device),
            economy=economy,
            loss_scale=LossScale(device) if economy.scaled else None,
        )

    @property
    def autocast(self) -> torch.dtype | None:
        """What products are computed in; None is float32."""
        return self.economy.autocast

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss whose gradients ``update`` expects: times the scale, if any."""
        return loss if self.loss_scale is None else loss * self.loss_scale.scale

    def update(self, loss: Tensor, lr: float, max_norm: float) -> Tensor:
        """Clip, step AdamW and the average; after a bad step, change nothing.

        Bad is what is not finite. Under a loss scale such a step is skipped, and only
        a run of them is the end; else the first is.

        Args:
            loss: of the whole batch, unscaled; its gradients are on the weights.
            lr: learning rate of this step.
            max_norm: longer gradients are shortened to this.
        Returns:
            The norm of the gradients before they were clipped, a scalar.
        Raises:
            FloatingPointError: the run is at its end; on a GPU said a little late.
        """
        weights = list(named_weights(self.unet).values())
        if self.loss_scale:
            self.loss_scale.unscale([w.grad for w in weights if w.grad is not None])
        norm = nn.utils.clip_grad_norm_(weights, max_norm)
        bad = end = ~(loss + norm).isfinite()
        if self.loss_scale:
            self.loss_scale.update(bad)
            end = self.loss_scale.hopeless
        self.failed = torch.where(end & (self.failed < 0), self.step, self.failed)
        if self.failed.device.type == "cpu" or self.step % CHECK_EVERY == 0:
            self.check()
        self.optimizer.param_groups[0]["lr"] = lr
        step_unless(bad | (self.failed >= 0), self.optimizer)
        self.optimizer.zero_grad()
        self.ema.update(self.unet)
        self.step += 1
        return norm

    @property
    def skipped(self) -> int:
        """Steps skipped so far because float16 overflowed; waits for the GPU."""
        return int(self.loss_scale.skipped) if self.loss_scale else 0

    def check(self) -> None:
        """Raise FloatingPointError if the run is at its end; waits for the GPU."""
        failed = int(self.failed)
        if failed >= 0:
            self.step = failed
            words = HOPELESS if self.loss_scale else REFUSED
            raise FloatingPointError(words.format(failed + 1))

    def tensors(self) -> dict[str, Tensor]:
        """Name every tensor a run depends on; these are the live ones, not copies."""
        tensors: dict[str, Tensor] = {}
        for name, weight in named_weights(self.unet).items():
            tensors |= {f"unet/{name}": weight, f"ema/{name}": self.ema.weights[name]}
            for kind, tensor in kept_of(self.optimizer, weight).items():
                tensors[f"{kind}/{name}"] = tensor
        scale = self.loss_scale.tensors() if self.loss_scale else {}
        return tensors | {f"loss_scale/{name}": t for name, t in scale.items()}

    def require_finite(self) -> None:
        """Raise FloatingPointError if anything to be saved is not finite.

        ``check`` sees losses and gradients; a huge rate makes infinite weights of
        finite gradients, and the loss shows that a step later.
        """
        self.check()
        tensors = {k: t for k, t in self.tensors().items() if t.is_floating_point()}
        norms = torch._foreach_norm(list(tensors.values()), float("inf"))
        where = self.failed.device
        if not torch.stack([norm.to(where) for norm in norms]).isfinite().all():
            pairs = zip(tensors, norms, strict=True)
            name = next(name for name, norm in pairs if not norm.isfinite())
            raise FloatingPointError(
                f"After step {self.step} {name} is NaN or infinite, so nothing was "
                "saved. Resume from the last checkpoint with a lower learning rate."
            )

    def facts(self) -> dict[str, Any]:
        """What is no tensor: the numbers that a checkpoint's manifest holds."""
        return {
            "step": self.step,
            "ema_updates": self.ema.updates,
            "micro_batch": self.micro_batch,
            "economy": self.economy.facts(),
            "optimizer_steps": steps_taken(self.optimizer),
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over what ``tensors`` and ``facts`` once gave.

        Raises:
            ValueError: they are of another U-Net, or of another way to train it.
        """
        own = self.tensors()
        shapes = [{k: v.shape for k, v in t.items()} for t in (own, tensors)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "The checkpoint is of a U-Net with other weights, or was made under "
                "another economy."
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.step, self.ema.updates = facts["step"], facts["ema_updates"]
        self.micro_batch = facts.get("micro_batch")
        if facts.get("optimizer_steps") is not None:
            set_steps_taken(self.optimizer, facts["optimizer_steps"])
        self.failed.fill_(-1)


def _twice(module: nn.Module, *inputs: Any) -> Any:
    """Keep no activations; diffusers' own asks for torch's version when compiled."""
    return checkpoint(module, *inputs, use_reentrant=False)


def _require_float32(unet: Any, economy: Economy) -> None:
    """Half precision cannot hold the small steps that training takes."""
    kinds = {weight.dtype for weight in named_weights(unet).values()}
    if kinds != {torch.float32} and kinds != {torch.float64}:
        raise ValueError(
            f"The weights to be trained must be float32 and are {kinds or 'none'}: "
            "call unet.float() first, and choose half precision by Economy(autocast)."
        )
    lora = any(".lora_A." in name for name in named_weights(unet))
    if lora != bool(economy.lora_rank):
        raise ValueError(
            f"The economy says {economy.words}, and the U-Net has "
            f"{'' if lora else 'no '}LoRA: see editor_lora.add_editor_lora."
        )
