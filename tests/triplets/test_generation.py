"""Triplets from a local language model: sampling, best of n, the shipped model."""

import math
from pathlib import Path

import pytest
import torch

from ip2p_lib.config import HELD_OUT, preset
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.triplets import generation
from ip2p_lib.triplets.generation import ScoredReply, best_of_n, generate_triplets
from ip2p_lib.triplets.loading import LanguageModel, load_language_model
from ip2p_lib.triplets.record import (
    SEPARATOR,
    Reply,
    Triplet,
    count_outcomes,
    to_prompt,
)
from jobs.miniature.pretrain_language import train_tokenizer
from tests.support.open_models import CAPTIONS, GOOD, new_model


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    tokenizer = train_tokenizer([*CAPTIONS, GOOD] * 9, size=300)
    return LanguageModel(new_model("gpt2", len(tokenizer)), tokenizer)


def test_a_reply_depends_on_neither_batch_nor_neighbours(tiny):
    captions = [f"{caption} {n}" for n in range(4) for caption in CAPTIONS]

    def texts(**settings) -> list[str]:
        replies = generate_triplets(tiny, captions, max_tokens=12, **settings)
        return [reply.text for reply in replies]

    before = torch.random.get_rng_state()
    alone = texts(batch_size=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert alone == texts(batch_size=5) == texts(batch_size=64)
    assert alone != texts(run_seed=1)
    assert len(set(alone)) > 6


def test_tokens_come_as_often_as_temperature_and_penalty_say():
    n, temperature, penalty = 50_000, 0.7, 0.1
    logits = torch.tensor([-torch.inf, 1.0, 0.5, 0.0, -torch.inf, -1.0, -torch.inf])
    reply = torch.tensor([1, 1, 1, 3])
    counts = torch.tensor([0, 3, 0, 1, 0, 0, 0])
    expected = ((logits.double() - penalty * counts) / temperature).softmax(0)
    tokens = generation._sample_tokens(
        torch.arange(n),
        0,
        temperature,
        penalty,
        logits.expand(n, -1),
        reply.expand(n, -1),
    )
    measured = torch.bincount(tokens, minlength=7) / n
    bound = 4.5 * (expected * (1 - expected) / n).sqrt()
    assert ((measured - expected).abs() <= bound).all(), (measured, expected)


def test_captions_are_read_one_batch_at_a_time(tiny):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield CAPTIONS[0]

    replies = generate_triplets(tiny, endless(), batch_size=4, max_tokens=2)
    for _ in range(5):
        next(replies)
    assert taken == 8


def test_a_caption_longer_than_the_context_is_answered_all_the_same(tiny):
    long, short = generate_triplets(tiny, ["cat " * 500, CAPTIONS[0]], max_tokens=4)
    assert long.caption == "cat " * 500
    assert short.text


def test_bad_settings_are_refused(tiny):
    numbers = [("temperature", 1e-40), ("frequency_penalty", math.nan)]
    for name, value in [*numbers, ("num_samples", 0), ("batch_size", 0)]:
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            next(generate_triplets(tiny, CAPTIONS, **{name: value}))
    with pytest.raises(ValueError, match="captions is one text"):
        next(generate_triplets(tiny, CAPTIONS[0]))


@pytest.fixture(scope="module")
def shipped() -> LanguageModel:
    scale = preset("miniature")
    return load_language_model(scale.language_model, scale.language_adapter)


def test_the_shipped_model_writes_triplets_for_scenes_it_never_saw(shipped):
    folder = Path(preset("miniature").language_model.path_or_id)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= 3_000_000
    captions = [triplet.caption for triplet in grammar_triplets(HELD_OUT, 100)]
    replies = list(generate_triplets(shipped, captions, run_seed=5))
    assert count_outcomes(replies)["kept"] >= 90
    instructions = {r.triplet.instruction for r in replies if r.triplet}
    assert len(instructions) >= 60


def likelihood(model: LanguageModel, text: str, caption: str) -> float:
    """Mean log-probability of a reply's edited caption, read in one go."""
    if SEPARATOR not in text:
        return -math.inf
    head, tail = text.split(SEPARATOR, 1)
    parts = to_prompt(caption), head + SEPARATOR, tail
    sizes = [len(model.tokenizer(part).input_ids) for part in parts]
    ids = model.tokenizer("".join(parts), return_tensors="pt").input_ids
    with torch.no_grad():
        log_probs = model.model(ids).logits.log_softmax(-1)[0, :-1]
    return float(
        log_probs.gather(1, ids[0, 1:, None])[sizes[0] + sizes[1] - 1 :].mean()
    )


def test_of_several_samples_the_most_likely_triplet_is_chosen(shipped, monkeypatch):
    all_samples = {}

    def watched(caption, samples):
        all_samples[caption] = samples
        return best_of_n(caption, samples)

    monkeypatch.setattr(generation, "best_of_n", watched)
    captions = [triplet.caption for triplet in grammar_triplets(HELD_OUT, 12)]
    once = list(generate_triplets(shipped, captions))
    thrice = list(generate_triplets(shipped, captions, num_samples=3, batch_size=7))
    assert sum(a.text != b.text for a, b in zip(once, thrice, strict=True)) > 2
    for first, reply in zip(once, thrice, strict=True):
        samples = all_samples[reply.caption]
        texts = [sample.text for sample in samples]
        assert texts[0] == first.text
        scores = [likelihood(shipped, text, reply.caption) for text in texts]
        scored = [sample.log_likelihood for sample in samples]
        assert scored == pytest.approx(scores, abs=1e-3)
        by_score = sorted(zip(scores, texts, strict=True), reverse=True)
        alone = [best_of_n(reply.caption, [ScoredReply(t, 0)]) for _, t in by_score]
        valid = [one.text for one in alone if one.triplet]
        assert reply.text == (valid or texts)[0]


def test_samples_that_are_no_triplets_never_win():
    def chosen(*texts: str) -> Reply:
        samples = [ScoredReply(text, -i) for i, text in enumerate(texts, start=1)]
        return best_of_n(CAPTIONS[0], samples)

    best = chosen("cat", GOOD, "dog")
    assert best.text == GOOD
    assert best.triplet == Triplet(CAPTIONS[0], "make it a dog", "a dog in a forest")
    assert chosen("make it a dog\nEND", "cat").reason == "parts"
    assert chosen("make it a dog\n%%\na dog").reason == "unfinished"
