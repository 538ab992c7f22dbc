"""Fine-tunes a causal language model on triplets (section 3.1.1).

The authors trained GPT-3 for one epoch on their 700 triplets through OpenAI's service.
The same act on a model of one's own is short enough to read: ``encode`` lays out the
rows, ``completion_loss`` is the loss of the completions only, ``fine_tune`` the loop.
Any model that transformers loads with ``AutoModelForCausalLM`` will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ip2p_lib.draws import key, uniform
from ip2p_lib.triplets import Triplet, to_completion, to_prompt

_IGNORED = -100  # cross entropy's mark for a token without a loss


def encode(tokenizer: Any, triplets: Sequence[Triplet]) -> tuple[Tensor, Tensor]:
    """Rows of text as the model reads them, and the part it is to learn.

    Args:
        tokenizer: its ``eos_token`` ends each row, its ``pad_token`` fills it up.
        triplets: N of them.
    Returns:
        tokens, labels (N, L) int64: prompt, completion and stop token; labels hold the
        completion only.
    Raises:
        ValueError: a row is longer than ``tokenizer.model_max_length``.
    """
    prompts = tokenizer([to_prompt(t.caption) for t in triplets])["input_ids"]
    completions = [to_completion(t) + tokenizer.eos_token for t in triplets]
    replies = tokenizer(completions, add_special_tokens=False)["input_ids"]
    rows = list(zip(prompts, replies, strict=True))
    longest = max(len(prompt + reply) for prompt, reply in rows)
    if longest > tokenizer.model_max_length:
        raise ValueError(
            f"A triplet takes {longest} tokens, and the model reads at most "
            f"{tokenizer.model_max_length}. Leave out the longest captions."
        )
    tokens = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), _IGNORED)
    for row, (prompt, reply) in enumerate(rows):
        tokens[row, : len(prompt + reply)] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : len(prompt + reply)] = torch.tensor(reply)
    return tokens, labels


def completion_loss(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the next token, over the completions of a batch (B, L)."""
    learnt = labels[:, 1:] != _IGNORED
    used = int(learnt.any(dim=0).nonzero().max()) + 1
    states = model.base_model(input_ids=tokens[:, :used]).last_hidden_state
    # Only where there is a loss: half of the tokens are prompt or padding.
    logits = model.get_output_embeddings()(states[learnt[:, :used]])
    return F.cross_entropy(logits, labels[:, 1:][learnt])


def fine_tune(
    model: Any,
    tokens: Tensor,
    labels: Tensor,
    *,
    epochs: int = 1,
    learning_rate: float = 3e-4,
    batch_size: int = 8,
) -> Iterator[float]:
    """Train on encoded triplets, by default the paper's single epoch.

    Args:
        model: changed in place; leave it in training mode for dropout.
        tokens, labels: from ``encode``, on the model's device.
        epochs, learning_rate, batch_size: of AdamW, its other settings at torch's.
    Yields:
        The loss of each step, taken before the step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    ids = torch.arange(len(tokens), device=tokens.device)
    for epoch in range(epochs):
        order = uniform(key("fine-tune", epoch), ids).argsort()
        for chosen in order.split(batch_size):
            loss = completion_loss(model, tokens[chosen], labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()
