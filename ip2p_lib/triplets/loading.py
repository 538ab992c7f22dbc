"""Load the causal language model that generates triplets (section 3.1.1).

What open models leave open or bring along (precision, padding, context length, sampling
settings) is settled here, so that the code that trains and samples need not know.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ip2p_lib.config import Source
from ip2p_lib.device import half_precision, pick_device
from ip2p_lib.diffusion.loading import explain_missing, load_network, locate
from ip2p_lib.diffusion.lora import load_lora

LARGE = 500_000_000  # parameters from which on a GPU holds them in half precision
MAX_CONTEXT = 4096  # tokens; some models allow a million


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
    """Load a model and its LoRA adapter, ready to generate.

    Weights are in float32; those of a model from ``LARGE`` parameters on are in half
    precision where there is a GPU: bfloat16, or float16 on cards before Ampere.

    ``source`` and ``device`` are as in ``load_stable_diffusion``; ``adapter`` is a
    folder of ``save_lora``, which ``merge_lora`` makes faster.

    Raises:
        FileNotFoundError: there is no model or no adapter, or the Hub is out of reach.
        ValueError: weights are missing, the adapter was trained on another model, or
            the device does not exist.
    """
    problem = "There is no language model in {folder}."
    target, where = pick_device(device), locate(source, "config.json", problem)
    with explain_missing(where):
        model = load_network(AutoModelForCausalLM, {**where, "dtype": "auto"})
        tokenizer = AutoTokenizer.from_pretrained(**where)
    model = _prepare_model(model, target)
    if adapter is not None:
        load_lora(model, adapter, source)
    return LanguageModel(model.eval(), _prepare_tokenizer(tokenizer, model))


def _prepare_model(model: Any, device: torch.device) -> Any:
    """Set device and precision, and remove the model's own sampling settings."""
    dtype = _precision(model.num_parameters(), device)
    for weight in model.parameters():  # not the buffers: rotary angles stay in float32
        weight.data = weight.data.to(device, dtype)
    # Instruct models bring penalties, which would change the distribution.
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id
    )
    return model.to(device)


def _precision(parameters: int, device: torch.device) -> torch.dtype:
    if device.type != "cuda" or parameters < LARGE:
        return torch.float32
    return half_precision(device)


def _prepare_tokenizer(tokenizer: Any, model: Any) -> Any:
    """Set the padding token and the longest text, which a tokenizer may leave open."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, context_length(model))
    own = tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token
    if not any(own):
        raise ValueError(
            "The tokenizer has no padding, end or unknown token, to read captions of "
            'several lengths at once: set "pad_token" in its tokenizer_config.json.'
        )
    tokenizer.pad_token = next(filter(None, own))
    return tokenizer


def context_length(model: Any) -> int:
    """Tokens that a model can read and generate together."""
    config = model.config.get_text_config()
    return min(getattr(config, "max_position_embeddings", MAX_CONTEXT), MAX_CONTEXT)
