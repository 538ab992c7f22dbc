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
from ip2p_lib.draws import key, uniform
from ip2p_lib.language_loading import (
    LanguageModel,
    context_length,
    load_language_model,
)
from ip2p_lib.language_service import ask_service, connect
from ip2p_lib.triplets import (
    END,
    Reply,
    Triplet,
    TripletError,
    parse_completion,
    to_prompt,
)

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["LanguageModel", "load_language_model", "load_writer", "write_triplets"]

# Sampling of the released ``generate_txt_dataset.py``; its top_p of 1 cuts nothing.
TEMPERATURE = 0.7
FREQUENCY_PENALTY = 0.1
MAX_TOKENS = 256


def write_triplets(
    writer: LanguageModel,
    captions: Iterable[str],
    *,
    run_seed: int = 0,
    temperature: float = TEMPERATURE,
    frequency_penalty: float = FREQUENCY_PENALTY,
    max_tokens: int = MAX_TOKENS,
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
        batch_size: captions at once.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"The temperature must be above 0, not {temperature}.")
    choose = partial(
        _choose, run_seed=run_seed, temperature=temperature, penalty=frequency_penalty
    )
    rest, done = iter(captions), 0
    while batch := list(islice(rest, batch_size)):
        ids = torch.arange(done, done + len(batch))
        texts = _continue(writer, batch, partial(choose, ids=ids), max_tokens)
        for caption, text in zip(batch, texts, strict=True):
            yield _read_completion(caption, text)
        done += len(batch)


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
    # Scaled by the last entry: a sum of rounded shares is not exactly 1.
    return torch.searchsorted(reached, u[:, None] * reached[:, -1:], right=True)[:, 0]


def _continue(
    writer: LanguageModel,
    captions: Sequence[str],
    choose: Callable[[Tensor, Tensor], Tensor],
    max_tokens: int,
) -> list[str]:
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
    start = read["input_ids"].shape[1]

    def keep_one(tokens: Tensor, logits: Tensor) -> Tensor:
        """Leave the token chosen as the only possible one."""
        chosen = choose(logits, tokens[:, start:])[:, None]
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
    return tokenizer.batch_decode(
        tokens[:, start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def _read_completion(caption: str, text: str) -> Reply:
    if END not in text:
        return Reply(caption, text, reason="unfinished")
    try:
        return Reply(caption, text, parse_completion(caption, text))
    except TripletError as error:
        return Reply(caption, text, reason=error.reason)


def load_writer(
    source: str | Path | Source,
    adapter: str | Path | None = None,
    *,
    run_seed: int = 0,
    client: OpenAI | None = None,
    examples: Sequence[Triplet] = (),
    device: str | torch.device | None = None,
) -> Callable[[Iterable[str]], Iterator[Reply]]:
    """Whoever writes the triplets at one scale: captions in, replies out.

    Args:
        source: a folder, or a Hub id with a revision, is a local model; any other name
            is a service's.
        adapter, run_seed, device: for a local model.
        client, examples: for a service, see ``ask_service``.

    Raises:
        FileNotFoundError, ServiceError: the model is not there.
        ValueError: the adapter is another model's, or meant for a service.
    """
    name = source.path_or_id if isinstance(source, Source) else str(source)
    pinned = isinstance(source, Source) and source.revision is not None
    if pinned or Path(name).is_absolute() or Path(name).is_dir():
        model = load_language_model(source, adapter, device=device)
        return partial(write_triplets, model, run_seed=run_seed)
    if adapter is not None:
        raise ValueError(f"{name} is a service's model, which takes no adapter.")
    client = client or connect()
    return partial(ask_service, model=name, client=client, examples=examples)
