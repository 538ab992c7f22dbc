"""Generate triplets with a local language model (section 3.1.1).

A causal language model continues ``to_prompt(caption)``, in place of the authors'
fine-tuned GPT-3. Read ``generate_triplets``, then ``_sample_tokens`` (temperature and
frequency penalty) and ``best_of_n`` (the best of several replies by log-likelihood).
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from ip2p_lib.checks import check_number, check_whole, each_text
from ip2p_lib.rng import key, uniform
from ip2p_lib.triplets.loading import LanguageModel, context_length
from ip2p_lib.triplets.record import (
    SEPARATOR,
    STOP,
    Reply,
    TripletError,
    parse_completion,
    to_prompt,
)

# Sampling of the released ``generate_txt_dataset.py``; its top_p of 1 cuts nothing.
TEMPERATURE = 0.7
FREQUENCY_PENALTY = 0.1
MAX_TOKENS = 256
_SAMPLE_STRIDE = 2**40  # between the random numbers of one sample and of the next


@dataclass(frozen=True)
class ScoredReply:
    """One sampled reply and its score, equation 3 of notebook 01."""

    text: str
    log_likelihood: float  # mean over the edited caption's tokens; -inf without one


def generate_triplets(
    language_model: LanguageModel,
    captions: Iterable[str],
    *,
    run_seed: int = 0,
    temperature: float = TEMPERATURE,
    frequency_penalty: float = FREQUENCY_PENALTY,
    max_tokens: int = MAX_TOKENS,
    num_samples: int = 1,
    batch_size: int = 64,
) -> Iterator[Reply]:
    """Sample one triplet for each caption from a local language model, in order.

    A reply depends on its caption, its position and the seed, not on the batch. The
    caption may take half of the model's context.

    Args:
        captions: any number, read one batch at a time.
        run_seed, temperature (from 1e-6), frequency_penalty: see ``_sample_tokens``.
        max_tokens, batch_size: of a reply; replies sampled at once.
        num_samples: replies to each caption, for ``best_of_n``; 1 in the paper.

    Raises ValueError for a number out of range, or a caption that is no text.
    """
    check_number("temperature", temperature, low=1e-6)  # below, logits overflow
    check_number("frequency_penalty", frequency_penalty, -1000, 1000)
    check_whole("max_tokens", max_tokens)
    check_whole("batch_size", batch_size)
    check_whole("num_samples", num_samples)
    settings = run_seed, temperature, frequency_penalty
    remaining, start = each_text("captions", captions), 0
    while batch := list(islice(remaining, max(1, batch_size // num_samples))):
        samples = torch.arange(num_samples)[:, None] * _SAMPLE_STRIDE
        ids = (samples + torch.arange(len(batch)) + start).flatten()
        prompts, draw = batch * num_samples, partial(_sample_tokens, ids, *settings)
        replies = _continue_prompts(language_model, prompts, draw, max_tokens)
        for i, caption in enumerate(batch):
            yield best_of_n(caption, replies[i :: len(batch)])
        start += len(batch)


def _sample_tokens(
    ids: Tensor,
    run_seed: int,
    temperature: float,
    frequency_penalty: float,
    logits: Tensor,
    reply: Tensor,
) -> Tensor:
    """Sample the next tokens by inverting their cumulative distribution (equation 2).

    Args:
        ids: (B,) what the random numbers depend on, beside the seed and n.
        run_seed: another seed samples other triplets.
        temperature: from 1e-6; lower is more predictable.
        frequency_penalty: off a token's logit for each time it is in the reply already.
        logits: (B, V) of the next tokens.
        reply: (B, n) tokens of the replies so far.
    """
    ones = torch.ones_like(reply, dtype=logits.dtype)
    counts = torch.zeros_like(logits).scatter_add_(1, reply, ones)
    scores = (logits - frequency_penalty * counts).float() / temperature
    cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
    u = uniform(key(run_seed, "reply", reply.shape[1]), ids).to(cumulative)
    # Scaled by the last entry: rounded probabilities do not sum to exactly 1.
    threshold = u[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


def _continue_prompts(
    language_model: LanguageModel,
    captions: Sequence[str],
    sample: Callable[[Tensor, Tensor], Tensor],
    max_tokens: int,
) -> list[ScoredReply]:
    """Continue the prompts of B captions, each up to its stop text."""
    model, tokenizer = language_model.model, language_model.tokenizer
    half = context_length(model) // 2
    inputs = tokenizer(
        [to_prompt(caption) for caption in captions],
        return_tensors="pt",
        padding=True,
        padding_side="left",
        truncation=True,
        max_length=half,
    ).to(model.device)
    start, log_probs = inputs["input_ids"].shape[1], list[Tensor]()

    def sample_next(tokens: Tensor, logits: Tensor) -> Tensor:
        """Allow the sampled token only, and store its log-probability."""
        next_token = sample(logits, tokens[:, start:])[:, None]
        log_probs.append(logits.float().log_softmax(-1).gather(1, next_token))
        return torch.full_like(logits, -torch.inf).scatter_(1, next_token, 0.0)

    tokens = model.generate(
        **inputs,
        do_sample=False,  # transformers samples from torch's global generator
        logits_processor=LogitsProcessorList([sample_next]),
        max_new_tokens=min(max_tokens, half),
        stop_strings=STOP,
        tokenizer=tokenizer,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = zip(tokens[:, start:], torch.cat(log_probs, 1).cpu(), strict=True)
    return [score_reply(tokenizer, *row) for row in rows]


def score_reply(tokenizer: Any, tokens: Tensor, log_probs: Tensor) -> ScoredReply:
    """Decode (n,) tokens; average the (n,) log-probabilities of the edited caption."""
    decode = partial(
        tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )

    def index_of(delimiter: str) -> int:
        """Index of the token that completes a delimiter, or n."""
        return bisect_left(
            range(len(tokens)), True, key=lambda i: delimiter in decode(tokens[: i + 1])
        )

    edited_caption = log_probs[index_of(SEPARATOR) + 1 : index_of(STOP) + 1]
    score = float(edited_caption.mean()) if len(edited_caption) else -math.inf
    return ScoredReply(decode(tokens), score)


def best_of_n(caption: str, samples: Sequence[ScoredReply]) -> Reply:
    """The valid triplet with the most likely edited caption; the first reply if none.

    The instruction is not scored: its most likely tokens are the most common edits.
    """
    replies = [_parse(caption, sample.text) for sample in samples]
    valid = [i for i, reply in enumerate(replies) if reply.triplet]
    best = max(valid, key=lambda i: samples[i].log_likelihood, default=0)
    return replies[best]


def _parse(caption: str, text: str) -> Reply:
    if STOP not in text:
        return Reply(caption, text, reason="unfinished")
    try:
        return Reply(caption, text, parse_completion(caption, text))
    except TripletError as error:
        return Reply(caption, text, reason=error.reason)
