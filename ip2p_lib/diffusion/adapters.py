"""Keeps what LoRA learnt, apart from the base and never on another one (3.1.1).

An adapter is a folder of two files, named and laid out as ``peft`` does: A and B, some
37 MB for a model of 3 GB, and a few settings. On other weights than those it was
trained on it would spoil every output without an error; so it says which they were, by
what they are and not by where they lay, and ``load_lora`` refuses any others.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ip2p_lib.config import Source
from ip2p_lib.diffusion.lora import Model, add_lora, lora_layers, lora_weights
from ip2p_lib.files import atomic_write

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."  # what peft's files put before the name of a layer


def identify(source: str | Path | Source) -> str:
    """What weights a source stands for, on whatever machine and in whatever folder.

    Returns:
        ``id@commit`` for a Hub model, ``sha256:...`` of the weight files in a folder.
    Raises:
        FileNotFoundError: a folder without safetensors files.
    """
    if isinstance(source, Source) and source.revision is not None:
        return f"{source.path_or_id}@{source.revision}"
    folder = Path(source.path_or_id if isinstance(source, Source) else source)
    digest, files = hashlib.sha256(), sorted(folder.glob("*.safetensors"))
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no safetensors files, so it is no base for an adapter. "
            "Give the folder of the network, or config.Source(id, revision)."
        )
    return f"sha256:{digest.hexdigest()}"


def save_lora(
    model: nn.Module,
    folder: str | Path,
    base: str | Path | Source,
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write A and B, not the base, as two files that ``peft`` opens as well.

    Args:
        model: with LoRA.
        folder: made if missing; an adapter there is replaced.
        base: what the model was loaded from; its ``identify`` goes into the files.
        dtype: of A and B in the file; half precision is enough to write with.
    Returns:
        ``folder``.
    Raises:
        ValueError: the model has no LoRA, or the folder holds a whole model.
    """
    folder = Path(folder)
    if not lora_layers(model):
        raise ValueError("The model has no LoRA to save; begin with add_lora.")
    if (folder / "config.json").exists():  # with an adapter beside it, none would load
        raise ValueError(f"{folder} holds a model. Save the adapter elsewhere.")
    identity = identify(base)
    settings = json.dumps(_settings(model, identity), indent=1)
    weights = {
        _PREFIX + name: weight.detach().to("cpu", dtype).contiguous()
        for name, weight in lora_weights(model).items()
    }
    facts = {"format": "pt", "base": identity, "settings": settings}
    for name, data in (WEIGHTS, save(weights, facts)), (SETTINGS, settings.encode()):
        with atomic_write(folder / name) as file:
            file.write(data)
    return folder


def _settings(model: Any, identity: str) -> dict[str, Any]:
    """``adapter_config.json``: of peft's settings those that are not its defaults."""
    config = model.peft_config["default"]
    name, _, revision = identity.partition("@")  # a folder has no revision
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": name if revision else None,
        "revision": revision or None,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(lora_layers(model)),
        "fan_in_fan_out": config.fan_in_fan_out,
    }


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
        ValueError: its files are damaged or not of one saving, it was trained on other
            weights, or its shapes are not the model's.
    """
    settings, weights = _read(Path(folder), base)
    return add_lora(
        model,
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        targets=settings["target_modules"],
        weights=weights,
    )


def _read(
    folder: Path, base: str | Path | Source
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of an adapter, if it belongs to the base."""
    if not ((folder / WEIGHTS).is_file() and (folder / SETTINGS).is_file()):
        raise FileNotFoundError(
            f"There is no adapter in {folder}: it lacks {WEIGHTS} or {SETTINGS}. Check "
            "the path, or train one and save_lora it."
        )
    text = (folder / SETTINGS).read_text("utf-8")
    try:
        weights = load_file(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, "pt") as file:
            facts = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}.") from error
    if facts.get("settings") != text:
        raise ValueError(
            f"The two files in {folder} are not of one saving, or not by save_lora."
        )
    if facts["base"] != identify(base):
        raise ValueError(
            f"The adapter in {folder} was trained on {facts['base']}, and this model "
            f"is {identify(base)}. Load that base, or train an adapter for this one."
        )
    return json.loads(text), {
        name.removeprefix(_PREFIX): weight for name, weight in weights.items()
    }
