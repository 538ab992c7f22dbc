"""Who writes the triplets: a small model of our own, or a service (section 3.1.1).

The authors fine-tuned GPT-3 on 700 hand-written triplets and sampled an instruction and
an edited caption for each of 454,445 captions. GPT-3 is gone; here the same job is done
by a causal language model, which continues ``to_prompt(caption)``, or by any service
that speaks the OpenAI protocol and is shown a few examples. The model is a small one in
a local folder, or an open one from the Hub with an adapter trained on triplets.

Here the local model writes: read ``write_triplets`` and ``_choose``. It is loaded in
``language_loading``, the service is in ``language_service``, and ``load_writer`` is
either. All take captions and yield one ``Reply`` each, in order, holding no more than a
batch; a reply that is no triplet is not an error but counted under its reason
(``triplets.tally``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from ip2p_lib.config import Source
from ip2p_lib.rng import key, uniform
from ip2p_lib.triplets.best_of_n import Written, surest, written
from ip2p_lib.triplets.loading import (
    LanguageModel,
    context_length,
    load_language_model,
)
from ip2p_lib.triplets.record import END, Reply, Triplet, to_prompt
from ip2p_lib.triplets.service import ask_service, connect

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["LanguageModel", "load_language_model", "load_writer", "write_triplets"]

# Sampling of the released ``generate_txt_dataset.py``; its top_p of 1 cuts nothing.
TEMPERATURE = 0.7
FREQUENCY_PENALTY = 0.1
MAX_TOKENS = 256
_APART = 2**40  # between the draws of one attempt and of the next


def write_triplets(
    writer: LanguageModel,
    captions: Iterable[str],
    *,
    run_seed: int = 0,
    temperature: float = TEMPERATURE,
    frequency_penalty: float = FREQUENCY_PENALTY,
    max_tokens: int = MAX_TOKENS,
    attempts: int = 1,
    batch_size: int = 64,
) -> Iterator[Reply]:
    """Let a local model write one triplet for each caption.

    A reply depends on its caption, its place in the sequence and the seed, not on the
    batch. Half of the model's context is for the caption and half for the reply.

    Args:
        writer: from ``load_language_model``.
        captions: any number, each one line.
        run_seed: another seed writes other triplets.
        temperature: above 0; smaller is more predictable.
        frequency_penalty: taken off a token's logit for each time it was written.
        max_tokens: longest reply.
        attempts: of which ``attempts.surest`` chooses; the paper makes one.
        batch_size: replies written at once.

    Raises:
        ValueError: a temperature of 0 or less, or less than one attempt.
    """
    _refuse(temperature, attempts)
    choose = partial(
        _choose, run_seed=run_seed, temperature=temperature, penalty=frequency_penalty
    )
    rest, done = iter(captions), 0
    while batch := list(islice(rest, max(1, batch_size // attempts))):
        one = partial(choose, ids=_names(done, len(batch), attempts))
        found = _continue(writer, batch * attempts, one, max_tokens)
        for i, caption in enumerate(batch):
            yield surest(caption, found[i :: len(batch)])
        done += len(batch)


def _names(done: int, n: int, attempts: int) -> Tensor:
    """(attempts * n,) what draws hang on: the first attempts of n captions, and so on.

    ``done`` captions were answered before.
    """
    return (torch.arange(attempts)[:, None] * _APART + torch.arange(n) + done).flatten()


def _refuse(temperature: float, attempts: int) -> None:
    if not temperature > 0:
        raise ValueError(f"The temperature must be above 0, not {temperature}.")
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}.")


def _choose(
    logits: Tensor,
    written: Tensor,
    *,
    ids: Tensor,
    run_seed: int,
    temperature: float,
    penalty: float,
) -> Tensor:
    """Sample the next tokens by inverting their distribution function.

    Args:
        logits: (B, V).
        written: (B, n) tokens of the replies so far.
        ids: (B,) what the random numbers depend on, beside the seed and n.
    Returns:
        (B,) int64.
    """
    ones = torch.ones_like(written, dtype=logits.dtype)
    counts = torch.zeros_like(logits).scatter_add_(1, written, ones)
    scores = (logits - penalty * counts) / temperature
    reached = scores.double().softmax(dim=-1).cumsum(dim=-1)
    u = uniform(key(run_seed, "reply", written.shape[1]), ids).to(reached)
    # Scaled by the last entry: rounded shares do not sum to exactly 1.
    return torch.searchsorted(reached, u[:, None] * reached[:, -1:], right=True)[:, 0]


def _continue(
    writer: LanguageModel,
    captions: Sequence[str],
    choose: Callable[[Tensor, Tensor], Tensor],
    max_tokens: int,
) -> list[Written]:
    """Continue the prompts of B captions, each up to its end marker."""
    model, tokenizer = writer.model, writer.tokenizer
    half = context_length(model) // 2
    prompts = [to_prompt(caption) for caption in captions]
    read = tokenizer(
        prompts,
        return_tensors="pt",
        padding=True,
        padding_side="left",
        truncation=True,
        max_length=half,
    ).to(model.device)
    start, said = read["input_ids"].shape[1], list[Tensor]()

    def keep_one(tokens: Tensor, logits: Tensor) -> Tensor:
        """Leave the token chosen as the only possible one; note how likely it was."""
        chosen = choose(logits, tokens[:, start:])[:, None]
        said.append(logits.float().log_softmax(-1).gather(1, chosen))
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen, 0.0)

    tokens = model.generate(
        **read,
        do_sample=False,  # the library's sampling draws from torch's global generator
        logits_processor=LogitsProcessorList([keep_one]),
        max_new_tokens=min(max_tokens, half),
        stop_strings=END,
        tokenizer=tokenizer,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [
        written(tokenizer, *row)
        for row in zip(tokens[:, start:], torch.cat(said, 1).cpu(), strict=True)
    ]


def load_writer(
    source: str | Path | Source,
    adapter: str | Path | None = None,
    *,
    run_seed: int = 0,
    attempts: int = 1,
    client: OpenAI | None = None,
    examples: Sequence[Triplet] = (),
    device: str | torch.device | None = None,
) -> Callable[[Iterable[str]], Iterator[Reply]]:
    """Whoever writes the triplets at one scale: captions in, replies out.

    Args:
        source: a folder, or a Hub id with a revision, is a local model; any other name
            is a service's.
        adapter, run_seed, attempts, device: for a local model.
        client, examples: for a service, see ``ask_service``.

    Raises:
        FileNotFoundError, ServiceError: the model is not there.
        ValueError: the adapter is another model's, or meant for a service.
    """
    name = source.path_or_id if isinstance(source, Source) else str(source)
    pinned = isinstance(source, Source) and source.revision is not None
    if pinned or Path(name).is_absolute() or Path(name).is_dir():
        model = load_language_model(source, adapter, device=device)
        return partial(write_triplets, model, run_seed=run_seed, attempts=attempts)
    if adapter is not None:
        raise ValueError(f"{name} is a service's model, which takes no adapter.")
    client = client or connect()
    return partial(ask_service, model=name, client=client, examples=examples)
