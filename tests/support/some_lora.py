"""LoRA that has left where it began, what a model says with it, and peft's warning."""

from __future__ import annotations

import pytest
import torch

from ip2p_lib.diffusion.lora import lora_weights
from ip2p_lib.rng import key, uniform

# peft's own wrapper asks transformers for an attribute by its old name.
wraps = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def with_some_b(model):
    """Move B away from zero, as training does."""
    for name, weight in lora_weights(model).items():
        ids = torch.arange(len(weight))
        draw = uniform(key("test", name), ids, tuple(weight.shape[1:])) - 0.5
        weight.data += 0.2 * draw.to(weight) * (".lora_B." in name)
    return model


def outputs(model, rows) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=rows[0]).logits
