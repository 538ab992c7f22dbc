"""The miniature language model's training, and the set written by hand."""

import argparse
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPTokenizer

from ip2p_lib.config import MODELS, preset
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.miniature.parsing import find_difference, read_caption
from ip2p_lib.triplets.finetuning import tokenize_triplets
from ip2p_lib.triplets.loading import load_language_model
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


@pytest.mark.parametrize(
    "text", ["a cat", "  two  spaces \n##\n\nEND", "把猫换成狗", "naïve 🌹 \u200b $"]
)
def test_any_text_survives_the_tokenizer(tokenizer, text: str):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.eos_token_id not in ids


@pytest.mark.slow
def test_pretraining_learns(model, tokenizer, grammar):
    rows = tokenize_triplets(tokenizer, grammar)
    budget = Budget(8.0, learning_rate=1e-2, warmup=5)
    progress = list(pretrain_language.pretrain(model, *rows, budget))
    assert progress[-1].loss < progress[0].loss - 1


def test_a_saved_model_is_read_by_the_stock_classes(model, tokenizer, tmp_path):
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


def test_the_shipped_model_changes_one_thing_at_a_time():
    scale = preset("miniature")
    writer = load_language_model(scale.language_model, scale.language_adapter)
    found = pretrain_language.measure(writer, n=100)
    # A model that copies its caption or invents another one would be near zero.
    assert found["parsed"] >= 0.9
    assert found["one_change"] >= found["right"] >= 0.85
    assert found["new"] == 1.0  # nothing is known


def test_the_final_model_is_measured_at_one_attempt_and_at_the_miniatures(
    model, tokenizer, grammar, tmp_path, monkeypatch
):
    asked = []

    def write(writer, captions, *, num_samples):
        asked.append(num_samples)
        return [Reply(caption, "") for caption in captions]

    monkeypatch.setattr(pretrain_language, "generate_triplets", write)
    pretrain_language.save(model, tokenizer, tmp_path)
    paths = {"out": tmp_path, "results": tmp_path}
    paths["written"] = write_jsonl(tmp_path / "written.jsonl", grammar[:12])
    args = argparse.Namespace(**paths, scenes=10, samples=4)
    pretrain_language.run_written(args, "cpu")
    rows = json.loads((tmp_path / "miniature-lm.json").read_text())["rows"]
    expected = [(0, 1), (70, 1), (12, 1), (12, 2)]
    assert [(row["written"], row["attempts"]) for row in rows] == expected
    assert asked == [attempts for _, attempts in expected]
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_the_measure_tells_what_is_known_and_what_is_wrong(monkeypatch):
    """A writer that answers by heart: half of it in training, some wrong, some none."""
    triplets = grammar_triplets(pretrain_language.HELD_OUT, 40)
    texts = [t.instruction for t in triplets]
    asked = [*texts[:30], *("make it better" for _ in texts[30:])]
    replies = [
        Reply(t.caption, "", replace(t, instruction=said))
        for t, said in zip(triplets, asked, strict=True)
    ]
    other = replace(triplets[35], edited_caption="two singing aubergines")
    replies[35:] = [Reply("", "", other), *(Reply("", "", reason="parts"),) * 4]
    monkeypatch.setattr(
        pretrain_language, "generate_triplets", lambda *_, **__: replies
    )
    found = pretrain_language.measure(None, 40, known=set(triplets[:18]))
    assert (found["parsed"], found["one_change"]) == (0.9, 0.875)
    assert (found["right"], found["new"]) == (0.75, 0.5)


def test_the_hand_written_set_is_in_the_miniatures_words():
    written = read_jsonl(pretrain_language.WRITTEN)
    assert len(written) >= 400
    assert len({t.instruction for t in written}) == len(written)
    assert len({(t.caption, t.edited_caption) for t in written}) == len(written)
    chinese = sum(t.language == "zh" for t in written) / len(written)
    assert 0.1 < chinese < 0.2
    kinds = Counter()
    for triplet in written:
        before = read_caption(triplet.caption)
        after = read_caption(triplet.edited_caption)
        assert not before.rest + after.rest, triplet
        kinds[find_difference(before, after).as_edit()[0]] += 1
    kinds["accessory"] /= 2  # they are given, and they are taken off
    assert len(kinds) == 10 and max(kinds.values()) <= 1.5 * min(kinds.values())


def test_the_hand_written_set_fits_the_miniatures_text_encoder():
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "miniature-sd" / "tokenizer")
    for t in read_jsonl(pretrain_language.WRITTEN):
        texts = [t.caption, t.instruction, t.edited_caption]
        assert max(map(len, tokenizer(texts).input_ids)) <= 77, t


def test_the_hand_written_set_asks_in_its_own_words():
    """Not a phrasing of the grammar, trained on or held out, and no long texts."""
    grammar = {
        t.instruction
        for wording in ("train", "held-out")
        for t in grammar_triplets(0, 3000, wording)
    }
    written = read_jsonl(pretrain_language.WRITTEN)
    assert sum(t.instruction in grammar for t in written) <= 0.05 * len(written)
    assert max(len(t.instruction) for t in written) < 77
