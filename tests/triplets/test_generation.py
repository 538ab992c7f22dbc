"""The local writer of triplets: sampling, formats, and what the shipped one writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ip2p_lib.config import HELD_OUT, preset
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.triplets import generation as language_model
from ip2p_lib.triplets import record as triplets
from ip2p_lib.triplets.generation import LanguageModel, load_writer, write_triplets
from ip2p_lib.triplets.service import ServiceError
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


def said(tiny: LanguageModel, text: str) -> triplets.Reply:
    writer = LanguageModel(Parrot(tiny.tokenizer, text), tiny.tokenizer)
    (reply,) = write_triplets(writer, CAPTIONS[:1])
    return reply


def test_a_reply_in_the_papers_format_is_a_triplet(tiny) -> None:
    reply = said(tiny, GOOD + "\nand more")
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
    reply = said(tiny, text)
    assert (reply.triplet, reply.reason) == (None, reason)


def test_replies_are_counted_by_reason() -> None:
    kept = triplets.Reply("c", "t", triplets.Triplet("a", "b", "c"))
    parts, blank = (triplets.Reply("c", "t", reason=r) for r in ("parts", "blank"))
    counts = triplets.tally([parts, blank, kept, parts])
    assert list(counts.items()) == [("kept", 1), ("parts", 2), ("blank", 1)]
    assert triplets.tally([]) == {"kept": 0}


def test_almost_no_temperature_is_greedy_as_transformers_decodes(tiny) -> None:
    """Row by row and unpadded, against padded batches of ours."""
    replies = write_triplets(
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
        found = write_triplets(tiny, captions, max_tokens=12, **settings)
        return [reply.text for reply in found]

    alone = texts(batch_size=1)
    assert alone == texts(batch_size=5) == texts(batch_size=64)
    assert alone != texts(run_seed=1)
    assert len(set(alone)) > 6


def test_sampling_leaves_torchs_generator_alone(tiny) -> None:
    before = torch.random.get_rng_state()
    list(write_triplets(tiny, CAPTIONS, max_tokens=3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tokens_come_as_often_as_temperature_and_penalty_say() -> None:
    n, temperature, penalty = 20_000, 0.7, 0.1
    logits = torch.tensor([1.0, 0.5, 0.0, -1.0])
    written = torch.tensor([0, 0, 0, 2])
    scores = (logits.double() - penalty * torch.tensor([3, 0, 1, 0])) / temperature
    expected = scores.softmax(0)
    chosen = language_model._choose(
        logits.expand(n, 4),
        written.expand(n, 4),
        ids=torch.arange(n),
        run_seed=0,
        temperature=temperature,
        penalty=penalty,
    )
    seen = torch.bincount(chosen, minlength=4) / n
    bound = 4.5 * (expected * (1 - expected) / n).sqrt()
    assert ((seen - expected).abs() < bound).all(), (seen, expected)


def test_a_token_of_no_probability_is_never_chosen() -> None:
    n = 50_000
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(n, 5)
    none = torch.zeros(n, 0, dtype=torch.int64)
    settings = {"run_seed": 0, "temperature": 1.0, "penalty": 0.0}
    chosen = language_model._choose(logits, none, ids=torch.arange(n), **settings)
    assert set(chosen.tolist()) == {1, 3}


def test_captions_are_read_one_batch_at_a_time(tiny) -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield CAPTIONS[0]

    replies = write_triplets(tiny, endless(), batch_size=4, max_tokens=2)
    for _ in range(5):
        next(replies)
    assert taken == 8


def test_a_caption_longer_than_the_context_is_answered_all_the_same(tiny) -> None:
    long, short = write_triplets(tiny, ["cat " * 500, CAPTIONS[0]], max_tokens=4)
    assert long.caption == "cat " * 500
    assert short.text


def test_bad_settings_are_refused(tiny, tmp_path) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        next(write_triplets(tiny, CAPTIONS, temperature=0.0))
    with pytest.raises(ValueError, match="attempts must be at least 1, not 0"):
        next(write_triplets(tiny, CAPTIONS, attempts=0))
    with pytest.raises(FileNotFoundError, match="no language model in"):
        load_writer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no language model in"):
        load_writer(preset("miniature").language_model.path_or_id + "-absent")


def test_a_name_that_is_no_folder_is_a_services_model(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ServiceError, match="OPENAI_API_KEY"):
        load_writer(preset("sd15").language_model)


def test_the_shipped_model_writes_triplets_for_scenes_it_never_saw() -> None:
    scale = preset("miniature")
    files = [p for p in Path(scale.language_model.path_or_id).rglob("*") if p.is_file()]
    assert sum(file.stat().st_size for file in files) <= 3_000_000
    captions = [triplet.caption for triplet in grammar_triplets(HELD_OUT, 100)]
    write = load_writer(scale.language_model, scale.language_adapter, run_seed=5)
    replies = list(write(captions))
    assert triplets.tally(replies)["kept"] >= 90  # data/results has the exact share
    instructions = {r.triplet.instruction for r in replies if r.triplet}
    assert len(instructions) >= 60
