"""Loads the causal language model that is to write triplets (section 3.1.1).

The authors' GPT-3 is gone. The miniature's model and an open one of the Hub are loaded
alike; what the second kind leaves open or brings along, of precision, padding, context
and sampling, is settled here, so that the code that trains and samples knows one kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ip2p_lib.config import Source
from ip2p_lib.device import BF16_CAPABILITY, pick_device
from ip2p_lib.diffusion.adapters import load_lora
from ip2p_lib.diffusion.loading import load_network

LARGE = 500_000_000  # from so many parameters on, a GPU holds them in half precision
LONGEST = 4096  # tokens a model is asked to read and write; some allow a million


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model and its tokenizer."""

    model: Any
    tokenizer: Any


def load_language_model(
    source: str | Path | Source,
    adapter: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
) -> LanguageModel:
    """Load a model, and what LoRA learnt on it, ready to write.

    Weights are in float32; those of a model from ``LARGE`` parameters on are in half
    precision where there is a GPU: bfloat16, or float16 on cards before Ampere.

    Args:
        source: a local folder; or a ``config.Source`` with a Hub id and a revision.
        adapter: a folder of ``save_lora``; ``merge_lora`` it to write faster.
        device: None picks the GPU where there is one.
    Raises:
        FileNotFoundError: the folder holds no model or no adapter, or the Hub is out of
            reach.
        ValueError: weights are missing, the adapter was trained on another model, or
            the device is none.
    """
    place, where = pick_device(device), _locate(source)
    try:
        model = load_network(AutoModelForCausalLM, {**where, "dtype": "auto"})
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except OSError as error:
        raise FileNotFoundError(
            f"The language model {where['pretrained_model_name_or_path']} could not be "
            "loaded. It is neither complete on this machine nor, without a network, to "
            "be had from the Hub: check the name, or connect once to download it."
        ) from error
    model = _settle(model, place)
    if adapter is not None:
        load_lora(model, adapter, source)
    return LanguageModel(model.eval(), _fill_in(tokenizer, model))


def _locate(source: str | Path | Source) -> dict[str, Any]:
    """Arguments of ``from_pretrained``, to which a wrong path is a network error."""
    name = source.path_or_id if isinstance(source, Source) else source
    if isinstance(source, Source) and source.revision is not None:
        return {"pretrained_model_name_or_path": name, "revision": source.revision}
    if not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(
            f"There is no language model in {name}. Check the path; or train one: "
            "python -m jobs.miniature.pretrain_language; or, for a model of the "
            "Hub, pass config.Source(id, revision) with a commit as revision."
        )
    return {"pretrained_model_name_or_path": str(name), "local_files_only": True}


def _settle(model: Any, device: torch.device) -> Any:
    """Give the weights their place and precision, and forget how others sample."""
    dtype = _precision(model.num_parameters(), device)
    for weight in model.parameters():  # not the buffers: rotary angles stay in float32
        weight.data = weight.data.to(device, dtype)
    # An instruct model brings penalties, which would bend what is sampled from.
    theirs = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=theirs.bos_token_id, eos_token_id=theirs.eos_token_id
    )
    return model.to(device)


def _precision(parameters: int, device: torch.device) -> torch.dtype:
    if device.type != "cuda" or parameters < LARGE:
        return torch.float32
    new = torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    return torch.bfloat16 if new else torch.float16


def _fill_in(tokenizer: Any, model: Any) -> Any:
    """Set what a tokenizer may leave open: what pads a batch, and how long a text is.

    Raises:
        ValueError: there is nothing to pad with.
    """
    tokenizer.model_max_length = min(tokenizer.model_max_length, context_length(model))
    tokenizer.pad_token = (
        tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
    )
    if tokenizer.pad_token is None:
        raise ValueError(
            "The tokenizer has no padding, end or unknown token, so that captions of "
            'several lengths cannot be read at once: set "pad_token" in its '
            "tokenizer_config.json."
        )
    return tokenizer


def context_length(model: Any) -> int:
    """Tokens that a model reads and writes together."""
    settings = model.config.get_text_config()
    return min(getattr(settings, "max_position_embeddings", LONGEST), LONGEST)
