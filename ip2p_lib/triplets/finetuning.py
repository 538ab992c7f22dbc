"""Fine-tunes a causal language model on triplets (section 3.1.1).

The authors trained GPT-3 for one epoch on their 700 triplets through OpenAI's service.
The same act on a model of one's own is short enough to read: ``encode`` lays out the
rows, ``completion_loss`` is the loss of the completions only, ``fine_tune`` the loop.
A model of ``AutoModelForCausalLM`` will do if its logits are what its output layer
gives (GPT-2, Llama, Qwen; Gemma 2 bends them). Where ``add_lora`` was called, or parts
are frozen otherwise, the rest is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ip2p_lib.rng import key, uniform
from ip2p_lib.triplets.record import Triplet, to_completion, to_prompt

_IGNORED = -100  # cross entropy's mark for a token without a loss


def encode(tokenizer: Any, triplets: Sequence[Triplet]) -> tuple[Tensor, Tensor]:
    """Rows of text as the model reads them, and the part it is to learn.

    Args:
        tokenizer: its ``eos_token``, if it has one, ends each row.
        triplets: N of them.
    Returns:
        tokens, labels (N, L) int64: prompt, completion and stop token; labels hold the
        completion only.
    Raises:
        ValueError: a row is longer than ``tokenizer.model_max_length``.
    """
    prompts = tokenizer([to_prompt(t.caption) for t in triplets])["input_ids"]
    completions = [to_completion(t) + (tokenizer.eos_token or "") for t in triplets]
    replies = tokenizer(completions, add_special_tokens=False)["input_ids"]
    rows = list(zip(prompts, replies, strict=True))
    longest = max(len(prompt + reply) for prompt, reply in rows)
    if longest > tokenizer.model_max_length:
        raise ValueError(
            f"A triplet takes {longest} tokens, and the model reads at most "
            f"{tokenizer.model_max_length}. Leave out the longest captions."
        )
    # What fills a row up comes after its last token: no model looks there.
    tokens = torch.full((len(rows), longest), tokenizer.pad_token_id or 0)
    labels = torch.full((len(rows), longest), _IGNORED)
    for row, (prompt, reply) in enumerate(rows):
        tokens[row, : len(prompt + reply)] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : len(prompt + reply)] = torch.tensor(reply)
    return tokens, labels


def completion_loss(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the next token, over the completions of a batch (B, L)."""
    learnt = _learnt(labels)
    used = int(learnt.any(dim=0).nonzero().max()) + 1
    read = model.base_model(input_ids=tokens[:, :used], use_cache=False)
    # Only where there is a loss: half of the tokens are prompt or padding.
    logits = model.get_output_embeddings()(read.last_hidden_state[learnt[:, :used]])
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), labels[:, 1:][learnt])


def _learnt(labels: Tensor) -> Tensor:
    """(B, L - 1) bool: from which tokens the next one is to be learnt."""
    return labels[:, 1:] != _IGNORED


def fine_tune(
    model: Any,
    tokens: Tensor,
    labels: Tensor,
    *,
    epochs: int = 1,
    learning_rate: float = 3e-4,
    batch_size: int = 8,
    micro_batch_size: int | None = None,
    checkpointing: bool = False,
) -> Iterator[float]:
    """Train on encoded triplets, by default the paper's single epoch.

    Args:
        model: changed in place; leave it in training mode for dropout.
        tokens, labels: from ``encode``, on the model's device.
        epochs, learning_rate, batch_size: of AdamW, its other settings at torch's.
        micro_batch_size: rows at once; fewer take less memory and change nothing else.
        checkpointing: keep few activations and compute the others twice, for memory.
    Yields:
        The loss of each step, taken before the step.
    Raises:
        FloatingPointError: the loss is NaN or infinite; that step is not taken.
    """
    learner = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learner, lr=learning_rate)
    # Gradients that pass through float16 would vanish if they were not scaled up.
    half = model.dtype is torch.float16
    scaler = torch.amp.GradScaler(tokens.device.type, enabled=half)
    if checkpointing:
        _checkpoint(model)
    for rows in _batches(len(tokens), epochs, batch_size, tokens.device):
        parts = rows.split(micro_batch_size or batch_size)
        optimizer.zero_grad()
        loss = _add_gradients(model, [(tokens[p], labels[p]) for p in parts], scaler)
        scaler.step(optimizer)
        scaler.update()
        yield loss


def _checkpoint(model: Any) -> None:
    """Let every block keep its input only; transformers 5.2x renames the switch."""
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    switch = getattr(model, new if hasattr(model, new) else old)
    # Reentrant, the default of old, gives no gradients behind frozen embeddings.
    switch({"use_reentrant": False})


def _batches(
    n: int, epochs: int, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """Every row once an epoch, in an order of the epoch's own."""
    ids = torch.arange(n, device=device)
    for epoch in range(epochs):
        order = uniform(key("fine-tune", epoch), ids).argsort()
        yield from order.split(batch_size)


def _add_gradients(
    model: Any, batches: list[tuple[Tensor, Tensor]], scaler: torch.amp.GradScaler
) -> float:
    """Gradients and value of the mean loss over all tokens of several batches."""
    counts = [int(_learnt(labels).sum()) for _, labels in batches]
    total = 0.0
    for batch, count in zip(batches, counts, strict=True):
        loss = completion_loss(model, *batch) * (count / sum(counts))
        scaler.scale(loss).backward()
        total += loss.item()
    if not math.isfinite(total):
        raise FloatingPointError(
            f"The loss is {total}, and the step was not taken. Load the model again "
            "and choose a lower learning rate."
        )
    return total
