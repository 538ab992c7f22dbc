"""Triplets from a local language model: sampling, best of n, the shipped model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ip2p_lib.config import HELD_OUT, preset
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.triplets import generation
from ip2p_lib.triplets import record as triplets
from ip2p_lib.triplets.generation import (
    ScoredReply,
    best_of_n,
    generate_triplets,
)
from ip2p_lib.triplets.loading import LanguageModel, load_language_model
from jobs.miniature.pretrain_language import train_tokenizer
from tests.support.open_models import CAPTIONS, GOOD


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    """An untrained model whose guesses are far from uniform."""
    tokenizer = train_tokenizer([*CAPTIONS, GOOD] * 9, size=300)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LanguageModel(GPT2LMHeadModel(config).eval(), tokenizer)


class Parrot:
    """A language model that says what it is told, whatever it reads."""

    def __init__(self, tokenizer, says: str) -> None:
        self.config = GPT2Config(n_positions=96)
        self.device = torch.device("cpu")
        self.says = says
        self.tokenizer = tokenizer

    def generate(self, input_ids, logits_processor, stop_strings, **rest):
        """As transformers does it: processors choose, a stop string ends."""
        start = input_ids.shape[1]
        for token in self.tokenizer(self.says)["input_ids"][: rest["max_new_tokens"]]:
            logits = torch.full((len(input_ids), len(self.tokenizer)), -50.0)
            logits[:, token] = 50.0
            chosen = logits_processor(input_ids, logits).argmax(-1)[:, None]
            input_ids = torch.cat([input_ids, chosen], dim=1)
            if stop_strings in self.tokenizer.decode(input_ids[0, start:]):
                break
        return input_ids


def reply_of(tiny: LanguageModel, text: str) -> triplets.Reply:
    writer = LanguageModel(Parrot(tiny.tokenizer, text), tiny.tokenizer)
    (reply,) = generate_triplets(writer, CAPTIONS[:1])
    return reply


def test_a_reply_in_the_papers_format_is_a_triplet(tiny) -> None:
    reply = reply_of(tiny, GOOD + "\nand more")
    assert reply.triplet == triplets.Triplet(
        CAPTIONS[0], "make it a dog", "a dog in a forest"
    )
    assert reply.text == GOOD
    assert reply.reason is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("make it a dog\n%%\na dog", "unfinished"),
        ("make it a dog\nEND", "parts"),
        ("make it a dog\n%%\n \nEND", "blank"),
        ("keep it\n%%\nA cat in a forest.\nEND", "unchanged"),
        ("cat " * 200, "unfinished"),
    ],
)
def test_an_unusable_reply_has_one_reason(tiny, text: str, reason: str) -> None:
    reply = reply_of(tiny, text)
    assert (reply.triplet, reply.reason) == (None, reason)


def test_replies_are_counted_by_reason() -> None:
    kept = triplets.Reply("c", "t", triplets.Triplet("a", "b", "c"))
    parts, blank = (triplets.Reply("c", "t", reason=r) for r in ("parts", "blank"))
    counts = triplets.count_outcomes([parts, blank, kept, parts])
    assert list(counts.items()) == [("kept", 1), ("parts", 2), ("blank", 1)]
    assert triplets.count_outcomes([]) == {"kept": 0}


def test_almost_no_temperature_is_greedy_as_transformers_decodes(tiny) -> None:
    """Row by row and unpadded, against padded batches of ours."""
    replies = generate_triplets(
        tiny, CAPTIONS, temperature=1e-6, frequency_penalty=0.0, max_tokens=20
    )
    for caption, reply in zip(CAPTIONS, replies, strict=True):
        prompt = tiny.tokenizer(triplets.to_prompt(caption), return_tensors="pt")
        tokens = tiny.model.generate(
            **prompt, do_sample=False, max_new_tokens=20, pad_token_id=0
        )
        start = prompt["input_ids"].shape[1]
        greedy = tiny.tokenizer.decode(tokens[0, start:], skip_special_tokens=True)
        assert reply.text == greedy


def test_a_reply_depends_on_neither_batch_nor_neighbours(tiny) -> None:
    captions = [f"{caption} {n}" for n in range(4) for caption in CAPTIONS]

    def texts(**settings) -> list[str]:
        found = generate_triplets(tiny, captions, max_tokens=12, **settings)
        return [reply.text for reply in found]

    alone = texts(batch_size=1)
    assert alone == texts(batch_size=5) == texts(batch_size=64)
    assert alone != texts(run_seed=1)
    assert len(set(alone)) > 6


def test_sampling_leaves_torchs_generator_alone(tiny) -> None:
    before = torch.random.get_rng_state()
    list(generate_triplets(tiny, CAPTIONS, max_tokens=3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tokens_come_as_often_as_temperature_and_penalty_say() -> None:
    n, temperature, penalty = 20_000, 0.7, 0.1
    logits = torch.tensor([1.0, 0.5, 0.0, -1.0])
    reply = torch.tensor([0, 0, 0, 2])
    scores = (logits.double() - penalty * torch.tensor([3, 0, 1, 0])) / temperature
    expected = scores.softmax(0)
    chosen = generation._sample_tokens(
        logits.expand(n, 4),
        reply.expand(n, 4),
        ids=torch.arange(n),
        run_seed=0,
        temperature=temperature,
        frequency_penalty=penalty,
    )
    seen = torch.bincount(chosen, minlength=4) / n
    bound = 4.5 * (expected * (1 - expected) / n).sqrt()
    assert ((seen - expected).abs() < bound).all(), (seen, expected)


def test_a_token_of_no_probability_is_never_chosen() -> None:
    n = 50_000
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(n, 5)
    none = torch.zeros(n, 0, dtype=torch.int64)
    settings = {"run_seed": 0, "temperature": 1.0, "frequency_penalty": 0.0}
    chosen = generation._sample_tokens(logits, none, ids=torch.arange(n), **settings)
    assert set(chosen.tolist()) == {1, 3}


def test_captions_are_read_one_batch_at_a_time(tiny) -> None:
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


def test_a_caption_longer_than_the_context_is_answered_all_the_same(tiny) -> None:
    long, short = generate_triplets(tiny, ["cat " * 500, CAPTIONS[0]], max_tokens=4)
    assert long.caption == "cat " * 500
    assert short.text


def test_bad_settings_are_refused(tiny, tmp_path) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        next(generate_triplets(tiny, CAPTIONS, temperature=0.0))
    with pytest.raises(ValueError, match="num_samples must be at least 1, not 0"):
        next(generate_triplets(tiny, CAPTIONS, num_samples=0))
    with pytest.raises(FileNotFoundError, match="no language model in"):
        load_language_model(tmp_path)


@pytest.fixture(scope="module")
def shipped() -> LanguageModel:
    scale = preset("miniature")
    return load_language_model(scale.language_model, scale.language_adapter)


def test_the_shipped_model_writes_triplets_for_scenes_it_never_saw(shipped) -> None:
    folder = Path(preset("miniature").language_model.path_or_id)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= 3_000_000
    captions = [triplet.caption for triplet in grammar_triplets(HELD_OUT, 100)]
    replies = list(generate_triplets(shipped, captions, run_seed=5))
    assert triplets.count_outcomes(replies)["kept"] >= 90
    instructions = {r.triplet.instruction for r in replies if r.triplet}
    assert len(instructions) >= 60


def likelihood(model: LanguageModel, text: str, caption: str) -> float:
    """Mean log-probability of a reply's edited caption, read in one go."""
    head, tail = text.split(triplets.SEPARATOR, 1)
    parts = triplets.to_prompt(caption), head + triplets.SEPARATOR, tail
    sizes = [len(model.tokenizer(part).input_ids) for part in parts]
    ids = model.tokenizer("".join(parts), return_tensors="pt").input_ids
    with torch.no_grad():
        log_probs = model.model(ids).logits.log_softmax(-1)[0, :-1]
    return float(
        log_probs.gather(1, ids[0, 1:, None])[sizes[0] + sizes[1] - 1 :].mean()
    )


def is_triplet(caption: str, text: str) -> bool:
    try:
        return bool(triplets.parse_completion(caption, text))
    except triplets.TripletError:
        return False


def test_of_several_samples_the_most_likely_triplet_is_chosen(
    shipped, monkeypatch
) -> None:
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
        assert texts[0] == first.text and len(set(texts)) > 1
        scores = [likelihood(shipped, text, reply.caption) for text in texts]
        noted = [sample.log_likelihood for sample in samples]
        assert noted == pytest.approx(scores, abs=1e-3)
        by_score = sorted(zip(scores, texts, strict=True), reverse=True)
        valid = [text for _, text in by_score if is_triplet(reply.caption, text)]
        assert reply.text == (valid or texts)[0]


def test_samples_that_are_no_triplets_never_win() -> None:
    def chosen(*texts: str) -> triplets.Reply:
        samples = [ScoredReply(text, -i) for i, text in enumerate(texts, start=1)]
        return best_of_n(CAPTIONS[0], samples)

    assert chosen("cat", GOOD, "dog").text == GOOD
    assert chosen("make it a dog\nEND", "cat").reason == "parts"
