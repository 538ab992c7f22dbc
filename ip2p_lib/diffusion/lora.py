"""Trains small matrices beside a frozen network: LoRA (arXiv 2106.09685).

The authors had GPT-3 fine-tuned for them (section 3.1.1); no single GPU holds what an
optimiser keeps of a large model's weights. LoRA leaves the weight W (out, in) of a
layer as it is, and learns A (r, in) and B (out, r) of W + (alpha / r) B A:

    add_lora(model)                      # in place: the same class, the same calls
    ...                                  # train what still asks for a gradient
    merge_lora(model)                    # or keep A and B apart: ``adapter_files``

``peft`` brings the layers, for language models and U-Nets alike. Added here is what
makes a run repeatable: A comes from ``draws``, not from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ip2p_lib.rng import key, uniform

Model = TypeVar("Model", bound=nn.Module)

_ADAPTER = "default"  # peft's name for the only adapter of a model


def add_lora(
    model: Model,
    *,
    rank: int = 8,
    alpha: float = 16,
    targets: str | Sequence[str] = "all-linear",
    run_seed: int = 0,
    weights: Mapping[str, Tensor] | None = None,
) -> Model:
    """Freeze a network and give its layers matrices to train, in float32.

    With B at zero it computes, until the first step, what it did before: bit for bit.

    Args:
        model: changed in place; its own weights may be in half precision.
        rank: r, the width of the bottleneck.
        alpha: the product B A counts alpha / r times.
        targets: ``"all-linear"`` is every linear layer but a language model's last; or
            the layers whose names end so, such as ``["to_q", "to_v"]``.
        run_seed: another seed draws another A.
        weights: A and B as ``lora_weights`` names them, to go on with; None begins.
    Returns:
        ``model``.
    Raises:
        ValueError: it has LoRA already, no layer is named so, the rank is below 1, or
            the weights are not of this model's layers.
    """
    _inject(model, rank, alpha, targets)
    shapes = {name: weight.shape for name, weight in lora_weights(model).items()}
    if weights is None:
        weights = {name: _first(name, shapes[name], run_seed) for name in shapes}
    try:
        _require(shapes, {name: weight.shape for name, weight in weights.items()})
    except ValueError:
        _unwrap(model)
        raise
    _fill(model, weights)
    return model


def _inject(
    model: nn.Module, rank: int, alpha: float, targets: str | Sequence[str]
) -> None:
    """Wrap the layers; A and B have shapes and no values yet."""
    from peft import LoraConfig, inject_adapter_in_model

    if lora_layers(model):
        raise ValueError("The model has LoRA already: merge_lora it, or load it anew.")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        # GPT-2's Conv1D, a linear layer by another name, holds W as (in, out).
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
    )
    # Without memory: what peft puts there is drawn from torch's global generator.
    inject_adapter_in_model(config, model, _ADAPTER, low_cpu_mem_usage=True)


def _first(name: str, shape: torch.Size, run_seed: int) -> Tensor:
    """B is zero, A uniform in +-1 / sqrt(in), as a linear layer of torch begins."""
    if ".lora_B." in name:
        return torch.zeros(shape)
    unit = uniform(key(run_seed, name), torch.arange(shape[0]), tuple(shape[1:]))
    return (2 * unit - 1) / math.sqrt(math.prod(shape[1:]))


def _require(expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> None:
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"The adapter does not fit the model: {name} is "
                f"{tuple(found.get(name, ()))} and should be "
                f"{tuple(expected.get(name, ()))}. Was it trained on another model?"
            )


def _fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give every A and B its values, where its layer is."""
    for name, matrix in _matrices(model).items():
        layer: Any = model.get_submodule(name.rsplit(".lora_", 1)[0])
        device = layer.get_base_layer().weight.device
        weight = weights[name].detach().to(device, torch.float32, copy=True)
        matrix.weight = nn.Parameter(weight)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with LoRA by name, as ``peft`` wraps them."""
    from peft.tuners.lora import LoraLayer

    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, LoraLayer)}


def _matrices(model: nn.Module) -> dict[str, Any]:
    """A and B of every layer with LoRA, each a layer of its own."""
    return {
        f"{name}.{side}.weight": getattr(layer, side)[_ADAPTER]
        for name, layer in lora_layers(model).items()
        for side in ("lora_A", "lora_B")
    }


def lora_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """A (r, in) and B (out, r) of every layer, by names as ``h.0.lora_A.weight``."""
    return {name: matrix.weight for name, matrix in _matrices(model).items()}


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many numbers of a network are trained, and how many there are."""
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained, sum(p.numel() for p in parameters)


def merge_lora(model: Model) -> Model:
    """Add (alpha / r) B A to the weights for good; LoRA costs nothing from then on.

    Args:
        model: changed in place, back to plain layers, all of which may be trained.
    Returns:
        ``model``.
    Raises:
        ValueError: it has no LoRA.
    """
    if not lora_layers(model):
        raise ValueError("The model has no LoRA to merge; begin with add_lora.")
    for layer in lora_layers(model).values():
        layer.merge()
    merged: Model = _unwrap(model)
    return merged


def _unwrap(model: Any) -> Any:
    """Take A and B away, and thaw what ``add_lora`` froze."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
    return model.requires_grad_(True)
