"""LoRA: train small matrices beside a frozen network (Hu et al., arXiv 2106.09685).

LoRA freezes the weight W (out, in) of a layer and learns A (r, in) and B (out, r) of
W + (alpha / r) B A. The triplets' language model (3.1.1) and the editor (3.2) use it.

    add_lora(model)                  # in place: the same class, the same calls
    ...                              # train what still requires a gradient
    merge_lora(model)                # or save_lora(model, folder, base)

``peft`` brings the layers and the file layout. Added here are what makes a run
repeatable (A comes from ``rng``, not from torch's global generator) and a check that an
adapter meets the base it was trained on: on any other it would spoil every output
without an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ip2p_lib.config import Source
from ip2p_lib.files import atomic_directory, sha256_of
from ip2p_lib.rng import key, uniform

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_ADAPTER = "default"  # peft's name for the only adapter of a model
_PREFIX = "base_model.model."  # of every name in peft's files


def add_lora(
    model: Model,
    *,
    rank: int = 8,
    alpha: float = 16,
    targets: str | Sequence[str] = "all-linear",
    modules_to_save: Sequence[str] = (),
    run_seed: int = 0,
    weights: Mapping[str, Tensor] | None = None,
) -> Model:
    """Freeze a network and give its layers LoRA matrices to train, in float32.

    With B at zero it computes what it did before, bit for bit.

    Args:
        model: changed in place; its own weights may be in half precision.
        rank: r, the width of the bottleneck.
        alpha: the product B A is scaled by alpha / r.
        targets: ``"all-linear"`` is every linear layer but a language model's last; or
            the ends of layers' names, such as ``["to_q", "to_v"]``.
        modules_to_save: names of layers that are trained as a whole, in float32.
        run_seed: determines A.
        weights: to continue with, named as by ``lora_weights``; None starts anew.
    Returns:
        ``model``.
    Raises:
        ValueError: it has LoRA already, no layer has such a name, the rank is below 1,
            or the weights are not of this model's layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if lora_layers(model):
        raise ValueError("The model has LoRA already: merge_lora it, or load it anew.")
    device = next(model.parameters()).device
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=list(modules_to_save) or None,
        init_lora_weights=False,
        # GPT-2's Conv1D, a linear layer by another name, holds W as (in, out).
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
    )
    # On the meta device, so that peft draws nothing from torch's global generator.
    inject_adapter_in_model(config, model, _ADAPTER, low_cpu_mem_usage=True)
    empty: dict[str, Tensor] = dict(lora_weights(model))
    first = {name: _initial(name, weight, run_seed) for name, weight in empty.items()}
    weights = first if weights is None else weights
    for name in {**empty, **weights}:
        shapes = [tuple(w[name].shape) if name in w else () for w in (weights, empty)]
        if shapes[0] != shapes[1]:
            _unwrap(model)
            raise ValueError(
                f"The adapter does not fit the model: {name} is {shapes[0]} and should "
                f"be {shapes[1]}. Was it trained on another model?"
            )
    own = {
        name: weights[_plain_name(name)].detach().to(device, torch.float32, copy=True)
        for name, _ in model.named_parameters()
        if _is_trained(name)
    }
    model.load_state_dict(own, strict=False, assign=True)
    return model


def _initial(name: str, weight: Tensor, run_seed: int) -> Tensor:
    """B is zero, A uniform in +-1 / sqrt(in), as a linear layer of torch starts."""
    if ".lora_B." in name:
        return torch.zeros(weight.shape)
    if ".lora_A." not in name:
        return weight  # of a layer that is trained as a whole
    shape = tuple(weight.shape[1:])
    unit = uniform(key(run_seed, name), torch.arange(len(weight)), shape)
    return (2 * unit - 1) / math.sqrt(math.prod(shape))


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with LoRA by name, as ``peft`` wraps them."""
    from peft.tuners.lora import LoraLayer

    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, LoraLayer)}


def lora_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained weights: A (r, in) and B (out, r), named as ``h.0.lora_A.weight``.

    Layers of ``modules_to_save`` are named as in the plain network.
    """
    return {
        _plain_name(name): weight
        for name, weight in model.named_parameters()
        if _is_trained(name)
    }


def _is_trained(name: str) -> bool:
    return any(part in name for part in (".lora_A.", ".lora_B.", ".modules_to_save."))


def _plain_name(name: str) -> str:
    """The name of a trained weight without the names of peft's wrappers."""
    return name.replace(".modules_to_save.", ".").replace(f".{_ADAPTER}.", ".")


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of trained parameters of a network, and of all."""
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained, sum(p.numel() for p in parameters)


def merge_lora(model: Model) -> Model:
    """Add (alpha / r) B A to the weights for good: a plain network again.

    Args:
        model: with LoRA; changed in place, and everything in it may be trained.
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
    """Replace peft's layers by the plain ones, and unfreeze the network."""
    from peft.utils import ModulesToSaveWrapper

    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.get_base_layer())
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[_ADAPTER])
    del model.peft_config
    return model.requires_grad_(True)


def identify_base(source: str | Path | Source) -> tuple[str | None, str]:
    """Name and revision of a base model; a folder has no name and is known by a hash.

    Returns:
        ``(id, commit)`` of a Hub model; ``(None, "sha256:...")`` of a folder's weights.
    Raises:
        FileNotFoundError: a folder without safetensors files.
    """
    if isinstance(source, Source) and source.revision is not None:
        return source.path_or_id, source.revision
    folder = Path(source.path_or_id if isinstance(source, Source) else source)
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise FileNotFoundError(
            f"{folder} holds no safetensors files, so it is no base for an adapter. "
            "Give the folder of the network, or config.Source(id, revision)."
        )
    return None, f"sha256:{sha256_of(*files)}"


def save_lora(
    model: Any,
    folder: str | Path,
    base: str | Path | Source,
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the trained weights, not the base, as two files that ``peft`` also opens.

    Args:
        model: with LoRA.
        folder: created if missing; an adapter there is replaced, both files or none.
        base: what the model was loaded from; its revision goes into the files.
        dtype: of the weights in the file.
    Returns:
        ``folder``.
    Raises:
        FileExistsError: ``folder`` holds something else.
        ValueError: the model has no LoRA.
    """
    if not lora_layers(model):
        raise ValueError("The model has no LoRA to save; begin with add_lora.")
    name, revision = identify_base(base)
    config = model.peft_config[_ADAPTER]
    written = {  # what differs from peft's defaults
        "peft_type": "LORA",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(lora_layers(model)),
        "modules_to_save": config.modules_to_save,
        "fan_in_fan_out": config.fan_in_fan_out,
    }
    weights = {
        _PREFIX + name: weight.detach().to("cpu", dtype).contiguous()
        for name, weight in lora_weights(model).items()
    }
    folder, own = Path(folder), "|".join((WEIGHTS, CONFIG)).replace(".", r"\.")
    with atomic_directory(folder, replaces=own) as partial:
        save_file(weights, partial / WEIGHTS, {"format": "pt"})
        (partial / CONFIG).write_text(json.dumps(written, indent=1), "utf-8")
    return folder


def load_lora(model: Model, folder: str | Path, base: str | Path | Source) -> Model:
    """Put an adapter onto the base that it was trained on; it may be trained further.

    Args:
        model: the base, in any precision; changed in place.
        folder: written by ``save_lora``.
        base: what the model was loaded from.
    Returns:
        ``model``.
    Raises:
        FileNotFoundError: there is no adapter in the folder.
        ValueError: its weights are damaged, it was trained on another base, or its
            shapes are not the model's.
    """
    folder = Path(folder)
    if not ((folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()):
        raise FileNotFoundError(
            f"There is no adapter in {folder}: it lacks {WEIGHTS} or {CONFIG}. Check "
            "the path, or train one and save_lora it."
        )
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    trained_on = config["base_model_name_or_path"], config["revision"]
    if trained_on != (given := identify_base(base)):
        raise ValueError(
            f"The adapter in {folder} was trained on {trained_on}, and this model is "
            f"{given}. Load that base, or train an adapter for this one."
        )
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}.") from error
    return add_lora(
        model,
        rank=config["r"],
        alpha=config["lora_alpha"],
        targets=config["target_modules"],
        modules_to_save=config.get("modules_to_save") or (),
        weights={name.removeprefix(_PREFIX): w for name, w in weights.items()},
    )
