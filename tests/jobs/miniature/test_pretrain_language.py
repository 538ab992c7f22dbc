"""The miniature language model's training, and the set written by hand."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPTokenizer

from ip2p_lib.config import MODELS, preset
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.miniature.parsing import (
    count_changes,
    find_difference,
    read_caption,
)
from ip2p_lib.miniature.vocabulary import COLOURS
from ip2p_lib.triplets.finetuning import tokenize_triplets
from ip2p_lib.triplets.loading import LanguageModel, load_language_model
from ip2p_lib.triplets.record import (
    Reply,
    read_jsonl,
    to_completion,
    to_prompt,
    write_jsonl,
)
from jobs.miniature import pretrain_language
from jobs.miniature.loop import Budget


@pytest.fixture(scope="module")
def grammar():
    return grammar_triplets(0, 300)


@pytest.fixture(scope="module")
def tokenizer(grammar):
    texts = [to_prompt(t.caption) + to_completion(t) for t in grammar]
    return pretrain_language.train_tokenizer(texts)


@pytest.fixture
def model(tokenizer):
    return pretrain_language.new_model(len(tokenizer), width=36, layers=1)


def test_grammar_triplets_are_of_both_languages_and_change_one_thing(grammar) -> None:
    assert {t.language for t in grammar} == {"en", "zh"}
    assert len(grammar) > 290
    for triplet in grammar:
        before = read_caption(triplet.caption)
        after = read_caption(triplet.edited_caption)
        assert count_changes(before, after) == 1, triplet


@pytest.mark.parametrize(
    "text", ["a cat", "  two  spaces \n##\n\nEND", "把猫换成狗", "naïve 🌹 \u200b $"]
)
def test_any_text_survives_the_tokenizer(tokenizer, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.eos_token_id not in ids


def test_pretraining_learns_and_goes_on_where_it_stopped(
    model, tokenizer, grammar, tmp_path
) -> None:
    rows = tokenize_triplets(tokenizer, grammar)

    def train(seconds: float, learner) -> list:
        budget = Budget(seconds, learning_rate=3e-3, warmup=5)
        work = tmp_path / "work"
        return list(pretrain_language.pretrain(learner, *rows, budget, work))

    first = train(2.0, model)
    fresh = pretrain_language.new_model(len(tokenizer), width=36, layers=1)
    second = train(6.0, fresh)
    assert second[0].step == first[-1].step + 1
    assert second[-1].loss < first[0].loss - 1


def test_a_saved_model_is_read_by_the_stock_classes(model, tokenizer, tmp_path) -> None:
    pretrain_language.save(model, tokenizer, tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).float().eval()
    read = AutoTokenizer.from_pretrained(tmp_path)
    text = "a cat at night\n##\n把猫换成狗"
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert read.pad_token_id == stock.config.eos_token_id == 0
    tokens = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        ours, theirs = model.eval()(tokens).logits, stock(tokens).logits
    assert torch.allclose(ours, theirs, atol=2e-3)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "vocab.json", "merges.txt"} <= names
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"


def test_the_measure_tells_a_bad_model(model, tokenizer) -> None:
    found = pretrain_language.measure(LanguageModel(model.eval(), tokenizer), n=4)
    assert found["captions"] == 4
    assert found["parsed"] == found["one_change"] == 0.0


def test_the_shipped_model_changes_one_thing_at_a_time() -> None:
    scale = preset("miniature")
    writer = load_language_model(scale.language_model, scale.language_adapter)
    found = pretrain_language.measure(writer, n=100)
    # A model that copies its caption or invents another one would be near zero.
    assert found["parsed"] >= 0.9
    assert found["one_change"] >= found["right"] >= 0.85
    assert found["new"] == 1.0  # nothing is known


def test_the_final_model_is_measured_at_one_attempt_and_at_the_miniatures(
    model, tokenizer, grammar, tmp_path, monkeypatch
) -> None:
    asked = []

    def write(writer, captions, *, num_samples):
        asked.append(num_samples)
        return [Reply(caption, "") for caption in captions]

    monkeypatch.setattr(pretrain_language, "generate_triplets", write)
    pretrain_language.save(model, tokenizer, tmp_path)
    write_jsonl(tmp_path / "written.jsonl", grammar[:12])
    paths = {
        "out": tmp_path,
        "results": tmp_path,
        "written": tmp_path / "written.jsonl",
    }
    args = argparse.Namespace(**paths, scenes=10, samples=4)
    pretrain_language.run_written(args, "cpu")
    rows = json.loads((tmp_path / "miniature-lm.json").read_text())["rows"]
    expected = [(0, 1), (70, 1), (12, 1), (12, 2)]
    assert [(row["written"], row["attempts"]) for row in rows] == expected
    assert asked == [attempts for _, attempts in expected]
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_the_measure_tells_what_is_known_and_what_is_wrong(monkeypatch) -> None:
    """A writer that answers by heart: half of it in training, a quarter wrong."""
    triplets = grammar_triplets(pretrain_language.HELD_OUT, 40)
    texts = [t.instruction for t in triplets]
    asked = [*texts[:30], *("make it better" for _ in texts[30:])]
    replies = [
        Reply(t.caption, "", replace(t, instruction=said))
        for t, said in zip(triplets, asked, strict=True)
    ]
    monkeypatch.setattr(
        pretrain_language, "generate_triplets", lambda *_, **__: replies
    )
    found = pretrain_language.measure(None, 40, known=set(triplets[:20]))
    assert (found["parsed"], found["one_change"]) == (1.0, 1.0)
    assert (found["right"], found["new"]) == (0.75, 0.5)


def test_the_hand_written_set_is_in_the_miniatures_words() -> None:
    written = read_jsonl(pretrain_language.WRITTEN)
    assert len(written) >= 400
    assert len({t.instruction for t in written}) == len(written)
    assert len({(t.caption, t.edited_caption) for t in written}) == len(written)
    chinese = sum(t.language == "zh" for t in written) / len(written)
    assert 0.1 < chinese < 0.2
    for triplet in written:
        before = read_caption(triplet.caption)
        after = read_caption(triplet.edited_caption)
        assert not before.rest + after.rest, triplet
        assert count_changes(before, after) == 1, triplet


def family(triplet) -> str:
    """What kind of edit a hand-written triplet is, as its captions tell."""
    captions = triplet.caption, triplet.edited_caption
    found = find_difference(*map(read_caption, captions))
    assert found is not None
    if found.attribute == "finish":
        return "colour" if (found.new or found.old) in COLOURS else "material"
    if found.attribute not in ("name", "accessory"):
        return found.attribute
    way = "add" if found.old is None else "remove" if found.new is None else "replace"
    if found.attribute == "accessory":
        return "give" if way == "add" else "take or swap"
    return way


def test_the_hand_written_sets_families_are_balanced() -> None:
    counts = Counter(map(family, read_jsonl(pretrain_language.WRITTEN)))
    assert len(counts) == 11
    assert max(counts.values()) <= 1.5 * min(counts.values())


def test_the_hand_written_set_fits_the_miniatures_text_encoder() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "miniature-sd" / "tokenizer")
    for t in read_jsonl(pretrain_language.WRITTEN):
        texts = [t.caption, t.instruction, t.edited_caption]
        assert max(map(len, tokenizer(texts).input_ids)) <= 77, t


def test_the_hand_written_set_asks_in_its_own_words() -> None:
    """Not a phrasing of the grammar, trained on or held out, and no long texts."""
    grammar = {
        t.instruction
        for wording in ("train", "held-out")
        for t in grammar_triplets(0, 3000, wording)
    }
    written = read_jsonl(pretrain_language.WRITTEN)
    assert sum(t.instruction in grammar for t in written) <= 0.05 * len(written)
    assert max(len(t.instruction) for t in written) < 77
