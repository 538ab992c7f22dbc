"""LoRA: train small matrices beside a frozen network (Hu et al., arXiv 2106.09685).

LoRA freezes the weight W (out, in) of a layer and learns A (r, in) and B (out, r) of
W + (alpha / r) B A. The triplets' language model (3.1.1) and the editor (3.2) use it.

    add_lora(model)                  # in place: the same class, the same calls
    ...                              # train what still requires a gradient
    merge_lora(model)                # or save_lora(model, folder, base)

``peft`` brings the layers and the files. Added here: A comes from ``rng``, not from
torch's global generator, and an adapter is loaded only onto the base that it was
trained on; on any other it would spoil every output without an error.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
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
) -> Model:
    """Freeze a network and give its layers LoRA matrices to train, in float32.

    Args:
        model: changed in place and returned; its weights may be in half precision.
        rank, alpha: r, the width of the bottleneck; B A is scaled by alpha / r.
        targets: ends of layers' names, such as ``["to_q", "to_v"]``; or
            ``"all-linear"``, every linear layer but a language model's last.
        modules_to_save: names of layers that are trained as a whole, in float32.
        run_seed: determines A. B is zero: at first the outputs do not change by a bit.
    Raises:
        ValueError: it has LoRA already, no layer has such a name, or rank < 1.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=list(modules_to_save) or None,
        init_lora_weights=False,
        # GPT-2's Conv1D, a linear layer by another name, holds W as (in, out).
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
    )
    _inject(model, config)
    shapes = lora_weights(model).items()
    _assign(model, {name: _initial(name, weight, run_seed) for name, weight in shapes})
    return model


def _inject(model: nn.Module, config: Any) -> None:
    """Wrap the layers; A and B have shapes and no values yet."""
    from peft import inject_adapter_in_model

    if getattr(model, "peft_config", None):
        raise ValueError("The model has LoRA already: merge_lora it, or load it anew.")
    # On the meta device, so that peft draws nothing from torch's global generator.
    inject_adapter_in_model(config, model, _ADAPTER, low_cpu_mem_usage=True)


def _assign(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the trained weights, named as by ``lora_weights``."""
    device = next(model.parameters()).device
    full_names = {_plain_name(name): name for name, _ in model.named_parameters()}
    values = {
        full_names[name]: weight.to(device, torch.float32, copy=True)
        for name, weight in weights.items()
    }
    model.load_state_dict(values, strict=False, assign=True)


def _initial(name: str, weight: Tensor, run_seed: int) -> Tensor:
    """B is zero, A uniform in +-1 / sqrt(in), as a linear layer of torch starts."""
    if ".lora_B." in name:
        return torch.zeros(weight.shape)
    if ".lora_A." not in name:
        return weight.detach()  # of a layer that is trained as a whole
    shape = tuple(weight.shape[1:])
    unit = uniform(key(run_seed, name), torch.arange(len(weight)), shape)
    return (2 * unit - 1) / math.sqrt(math.prod(shape))


def lora_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained weights: A (r, in) and B (out, r), named as ``h.0.lora_A.weight``.

    Layers of ``modules_to_save`` are named as in the plain network.
    """
    trained = (".lora_A.", ".lora_B.", ".modules_to_save.")
    return {
        _plain_name(name): weight
        for name, weight in model.named_parameters()
        if any(part in name for part in trained)
    }


def _plain_name(name: str) -> str:
    """The name of a trained weight without the names of peft's wrappers."""
    return name.replace(".modules_to_save.", ".").replace(f".{_ADAPTER}.", ".")


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of trained parameters of a network, and of all."""
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained, sum(p.numel() for p in parameters)


def merge_lora(model: Any) -> Any:
    """Add (alpha / r) B A to the weights for good: a plain network again.

    Changes and returns ``model``, all of which may be trained again.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[_ADAPTER])
    del model.peft_config
    return model.requires_grad_(True)


def identify_base(source: str | Path | Source) -> tuple[str | None, str]:
    """Name and revision of a base model: ``(None, "sha256:...")`` for a folder."""
    if isinstance(source, Source) and source.revision is not None:
        return source.path_or_id, source.revision
    folder = Path(source.path_or_id if isinstance(source, Source) else source)
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise FileNotFoundError(f"{folder} has no safetensors files to be a base.")
    return None, f"sha256:{sha256_of(*files)}"


def save_lora(
    model: Any,
    folder: str | Path,
    base: str | Path | Source,
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the trained weights, not the base, as two files that ``peft`` also opens.

    An adapter in ``folder`` is replaced, anything else a FileExistsError. ``base`` is
    what the model was loaded from; its revision goes into the files.
    """
    config = copy.copy(model.peft_config[_ADAPTER])
    config.base_model_name_or_path, config.revision = identify_base(base)
    config.target_modules = sorted(config.target_modules)
    weights = {
        _PREFIX + name: weight.detach().to("cpu", dtype).contiguous()
        for name, weight in lora_weights(model).items()
    }
    folder, own = Path(folder), r"adapter_(model\.safetensors|config\.json)"
    with atomic_directory(folder, replaces=own) as partial:
        save_file(weights, partial / WEIGHTS, {"format": "pt"})
        config.save_pretrained(partial)
    return folder


def load_lora(model: Model, folder: str | Path, base: str | Path | Source) -> Model:
    """Put an adapter onto the base that it was trained on; it may be trained further.

    ``model`` is the base, in any precision, as loaded from ``base``; it is changed in
    place and returned.

    Raises:
        FileNotFoundError: ``save_lora`` has written no adapter into ``folder``.
        ValueError: it was trained on another base.
        SafetensorError: the file is damaged.
    """
    from peft import LoraConfig

    folder = Path(folder)
    if not ((folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()):
        raise FileNotFoundError(f"No adapter in {folder}: no {WEIGHTS} or no {CONFIG}.")
    config = LoraConfig.from_pretrained(folder)
    trained_on = config.base_model_name_or_path, config.revision
    if trained_on != (given := identify_base(base)):
        raise ValueError(
            f"The adapter in {folder} was trained on {trained_on}, and this model is "
            f"{given}. Load that base, or train an adapter for this one."
        )
    weights = load_file(folder / WEIGHTS)
    _inject(model, config)
    _assign(model, {name.removeprefix(_PREFIX): w for name, w in weights.items()})
    return model
