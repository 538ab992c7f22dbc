"""What a training step takes of memory, counted without taking any (3.2; ours).

A U-Net on torch's ``meta`` device has shapes and no numbers. One forward and backward
pass of it makes every tensor that a real pass makes, and drops it when a real pass
does; ``trace`` notes after each operation how many bytes are alive. Nothing in a step
depends on the number of examples but sizes, all of them linear in it: two traces, of
two examples and of three, tell the memory of any number at every operation.

    timeline = trace(unet, latent=(8, 32, 32), text=(77, 768), autocast=torch.float16)
    timeline.peak(examples=16)

Two things of a GPU have to be imitated. ``_Autocast`` casts as torch does there: torch
has no autocast for ``meta``. And attention is counted as the fused kernel runs it,
which saves the softmax's sums for the backward pass and not its N x N results.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

HALF = (F.conv2d, torch.conv2d, F.linear)  # what autocast runs in half precision
FULL = (F.group_norm, F.layer_norm)  # and what in float32
_CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)
_ATTEND = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTEND_BACK = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Timeline:
    """Bytes at every operation of a step, each as (fixed, for every example).

    Weights and what the optimiser keeps are not among them.
    """

    alive: Tensor  # (operations, 2) int64: all that the step has made and not dropped
    gradients: Tensor  # (operations,) int64: of these, the finished gradients
    saved: tuple[int, int]  # what waits for the backward pass when the forward ends
    flops: int  # of an example, forward and backward; a product with a sum is two

    def peak(self, examples: int, *, accumulating: bool = False) -> int:
        """Most bytes alive at once.

        Args:
            examples: of the micro-batch.
            accumulating: the gradients of earlier micro-batches lie there all along.
        """
        alive = self.alive[:, 0] + examples * self.alive[:, 1]
        if accumulating:
            alive = alive + self.gradients[-1] - self.gradients
        return int(alive.max())


def trace(
    unet: Any,
    *,
    latent: tuple[int, int, int],
    text: tuple[int, int],
    autocast: torch.dtype | None = None,
    checkpointing: bool = False,
) -> Timeline:
    """Count a micro-batch's forward and backward pass.

    Args:
        unet: on the ``meta`` device; what asks for a gradient gets one.
        latent: (C, h, w) of a noisy latent with its condition below it.
        text: (L, D) of an instruction's hidden states.
        autocast: half precision to compute in; None is float32.
        checkpointing: compute the blocks anew in the backward pass.
    """
    if checkpointing:
        unet.enable_gradient_checkpointing(_checkpoint_with(autocast))
    # Not one: a lone example's tensors are laid out by other rules.
    two, three = (_pass(unet, n, latent, text, autocast) for n in (2, 3))
    alive, saved = three.alive - two.alive, three.saved - two.saved
    return Timeline(
        torch.stack([two.alive - 2 * alive, alive], dim=1),
        two.finished,
        (two.saved - 2 * saved, saved),
        three.flops - two.flops,
    )


@dataclass(frozen=True)
class _Counts:
    alive: Tensor
    finished: Tensor
    saved: int
    flops: int


def _pass(
    unet: Any,
    n: int,
    latent: tuple[int, int, int],
    text: tuple[int, int],
    autocast: torch.dtype | None,
) -> _Counts:
    """One forward and backward pass of n examples."""
    ledger = _Ledger([*unet.parameters(), *unet.buffers()])
    hooks = [
        weight.register_post_accumulate_grad_hook(ledger.finish)
        for weight in unet.parameters()
        if weight.requires_grad
    ]
    with torch.device("meta"), ledger, _Autocast(autocast) as cast:
        sample, noise = torch.empty(n, *latent), torch.empty(n, 4, *latent[1:])
        t, states = torch.zeros(n, dtype=torch.int64), torch.empty(n, *text)
        eps = unet.train()(sample, t, states, return_dict=False)[0]
        loss = (eps.float() - noise).square().mean()
        cast.kept.clear()
        del eps
        saved = ledger.alive
        torch.autograd.backward(loss)
        ledger.note()
    unet.zero_grad()
    for hook in hooks:
        hook.remove()
    alive, finished = torch.tensor(ledger.lines, dtype=torch.int64).unbind(dim=1)
    return _Counts(alive, finished, saved, ledger.flops)


class _Ledger(TorchDispatchMode):
    """Counts what is alive, in bytes, after every operation, and the operations."""

    def __init__(self, known: list[Tensor]) -> None:
        """Begin with nothing; the tensors that are known already do not count."""
        super().__init__()
        self.alive, self.finished, self.flops = 0, 0, 0
        self.lines: list[tuple[int, int]] = []
        self._storages = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            self._meet(tensor.untyped_storage())
        kind = operation.overloadpacket
        self.note(_workspace(args, made) if kind in _CONVOLUTIONS else 0)
        self.flops += _flops(kind, args, made)
        return made

    def note(self, room: int = 0) -> None:
        """Write down what is alive now, with so many bytes more for a moment."""
        self.lines.append((self.alive + room, self.finished))

    def _meet(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._storages:
            self._storages.add(storage._cdata)
            self.alive += storage.nbytes()
            weakref.finalize(storage, self._part, storage._cdata, storage.nbytes())

    def _part(self, identity: int, size: int) -> None:
        self._storages.remove(identity)
        self.alive -= size

    def finish(self, weight: Tensor) -> None:
        """Hear that a weight's gradient is complete."""
        self.finished += weight.numel() * weight.element_size()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _workspace(given: Any, made: Any) -> int:
    """What cuDNN may ask for: all that it reads and writes, laid out as it likes."""
    tensors = _tensors((given, made))
    return sum(t.numel() * t.element_size() for t in tensors if t.element_size() < 4)


def _flops(kind: Any, args: Any, made: Any) -> int:
    """Floating-point operations of products; torch leaves this attention out."""
    if kind is _ATTEND:
        return sdpa_flop_count(*(each.shape for each in args[:3]))
    if kind is _ATTEND_BACK:
        return sdpa_backward_flop_count(*(each.shape for each in args[:4]))
    count = flop_registry.get(kind)
    return int(count(*args, out_val=made)) if count else 0


class _Autocast(TorchFunctionMode):
    """Casts as ``torch.autocast("cuda")`` does, and fuses attention as a GPU does."""

    def __init__(self, dtype: torch.dtype | None, *, keep: bool = True) -> None:
        """Cast to ``dtype``; with None, nothing.

        Args:
            keep: hold copies of trained weights until ``kept`` is cleared, as autocast
                does until it is left.
        """
        super().__init__()
        self.dtype, self.keep = dtype, keep
        self.kept: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            q, k, v = (self._cast(each, self.dtype) for each in args[:3])
            return _ATTEND(q, k, v)[0]
        half = self.dtype if function in HALF else None
        dtype = torch.float32 if self.dtype and function in FULL else half
        args = [self._cast(each, dtype) for each in args]
        return function(
            *args, **{name: self._cast(each, dtype) for name, each in kwargs.items()}
        )

    def _cast(self, value: Any, dtype: torch.dtype | None) -> Any:
        if dtype is None or not isinstance(value, Tensor) or value.dtype is dtype:
            return value
        copy = value.to(dtype)
        if self.keep and value.is_leaf and value.requires_grad:
            self.kept.append(copy)
        return copy


def _checkpoint_with(autocast: torch.dtype | None) -> Callable[..., Any]:
    """Checkpointing as diffusers does it, with the imitations in both passes."""

    def again() -> tuple[Any, Any]:
        return nullcontext(), _Autocast(autocast, keep=False)

    def run(block: nn.Module, *args: Any) -> Any:
        return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=again)

    return run
