"""Fine-tune a causal language model on triplets (section 3.1.1).

The authors fine-tuned GPT-3 for one epoch on their 700 triplets through OpenAI's API,
to which ``write_finetuning_file`` writes the file. Here ``tokenize_triplets`` makes the
rows, ``completion_loss`` is the loss, and ``fine_tune`` is the loop. It trains all
parameters that require gradients: after ``add_lora`` those of LoRA.

Any ``AutoModelForCausalLM`` will do whose logits are the output of its last linear
layer (GPT-2, Llama, Qwen; not Gemma 2, which caps them).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ip2p_lib.checks import check_whole
from ip2p_lib.rng import key, uniform
from ip2p_lib.triplets.record import Triplet, to_completion, to_prompt, write_lines

IGNORE_INDEX = -100  # label of a token without a loss


def write_finetuning_file(path: str | Path, triplets: Iterable[Triplet]) -> Path:
    """Write one JSON object a line with the keys ``prompt`` and ``completion``.

    As the released ``prepare_for_gpt.py``, for GPT-3; TRL's ``SFTTrainer`` reads the
    same rows. The file is written completely or not at all.
    """
    rows = (
        {"prompt": to_prompt(t.caption), "completion": to_completion(t)}
        for t in triplets
    )
    return write_lines(path, rows)


def tokenize_triplets(
    tokenizer: Any, triplets: Sequence[Triplet]
) -> tuple[Tensor, Tensor]:
    """Tokenize N prompts and completions into rows and labels for training.

    Returns:
        tokens, labels (N, L) int64: prompt, completion and, if the tokenizer has one,
        end token; labels are ``IGNORE_INDEX`` except on the completion. ValueError if a
        row is longer than ``tokenizer.model_max_length``.
    """
    prompts = tokenizer([to_prompt(t.caption) for t in triplets])["input_ids"]
    completions = [to_completion(t) + (tokenizer.eos_token or "") for t in triplets]
    replies = tokenizer(completions, add_special_tokens=False)["input_ids"]
    rows = list(zip(prompts, replies, strict=True))
    length = max(len(prompt + reply) for prompt, reply in rows)
    if length > tokenizer.model_max_length:
        raise ValueError(
            f"A triplet takes {length} tokens, and the model reads at most "
            f"{tokenizer.model_max_length}. Leave out the longest captions."
        )
    # Padding comes last, where a causal model's loss does not depend on it.
    tokens = torch.full((len(rows), length), tokenizer.pad_token_id or 0)
    labels = torch.full((len(rows), length), IGNORE_INDEX)
    for row, (prompt, reply) in enumerate(rows):
        tokens[row, : len(prompt + reply)] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : len(prompt + reply)] = torch.tensor(reply)
    return tokens, labels


def completion_loss(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the next token, averaged over the completions of (B, L) rows."""
    mask = _loss_mask(labels)
    length = int(mask.any(dim=0).nonzero().max()) + 1
    output = model.base_model(input_ids=tokens[:, :length], use_cache=False)
    # Logits only where there is a loss: half of the tokens are prompt or padding.
    logits = model.get_output_embeddings()(output.last_hidden_state[mask[:, :length]])
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(dtype), labels[:, 1:][mask])


def _loss_mask(labels: Tensor) -> Tensor:
    """(B, L - 1) bool: positions whose next token counts in the loss."""
    return labels[:, 1:] != IGNORE_INDEX


def fine_tune(
    model: Any,
    tokens: Tensor,
    labels: Tensor,
    *,
    epochs: int = 1,
    learning_rate: float = 3e-4,
    batch_size: int = 8,
    micro_batch_size: int | None = None,
    gradient_checkpointing: bool = False,
) -> Iterator[float]:
    """Train on tokenized triplets, by default for the paper's single epoch.

    Args:
        model: changed in place; leave it in training mode for dropout.
        tokens, labels: from ``tokenize_triplets``, on the model's device.
        epochs, learning_rate, batch_size: of AdamW with torch's other defaults.
        micro_batch_size: rows at once; gradients are accumulated over a batch.
        gradient_checkpointing: recompute activations in the backward pass, for memory.
    Yields:
        The loss of each step, taken before the step.
    Raises:
        FloatingPointError: the loss is NaN or infinite; that step is not taken.
        ValueError: epochs or a batch size is below 1.
    """
    micro = batch_size if micro_batch_size is None else micro_batch_size
    for size in (epochs, batch_size, micro):
        check_whole("epochs and each batch size", size)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    half = model.dtype is torch.float16
    scaler = torch.amp.GradScaler(tokens.device.type, enabled=half)
    if gradient_checkpointing:
        _enable_gradient_checkpointing(model)
    ids = torch.arange(len(tokens), device=tokens.device)
    for epoch in range(epochs):
        order = uniform(key("fine-tune", epoch), ids).argsort()
        for rows in order.split(batch_size):
            batches = [(tokens[part], labels[part]) for part in rows.split(micro)]
            yield _step(model, batches, optimizer, scaler)


def _enable_gradient_checkpointing(model: Any) -> None:
    """Each block keeps its input only; some releases of transformers 5 rename this."""
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    enable = getattr(model, new if hasattr(model, new) else old)
    # The reentrant kind, an old default, has no gradients behind frozen embeddings.
    enable({"use_reentrant": False})


def _step(
    model: Any,
    batches: list[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> float:
    """One step on the mean loss over all tokens of several micro-batches."""
    counts = [int(_loss_mask(labels).sum()) for _, labels in batches]
    optimizer.zero_grad()
    total = 0.0
    for batch, count in zip(batches, counts, strict=True):
        loss = completion_loss(model, *batch) * (count / sum(counts))
        scaler.scale(loss).backward()  # in float16, small gradients would underflow
        total += loss.item()
    if not math.isfinite(total):
        raise FloatingPointError(
            f"The loss is {total}, and the step was not taken. Load the model again "
            "and choose a lower learning rate."
        )
    scaler.step(optimizer)
    scaler.update()
    return total
