"""Of several attempts at a caption, the likeliest that is a triplet is given back."""

from __future__ import annotations

import pytest
import torch

from ip2p_lib.config import HELD_OUT, preset
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.triplets import generation as language_model
from ip2p_lib.triplets import record as triplets
from ip2p_lib.triplets.best_of_n import Written, surest
from ip2p_lib.triplets.generation import (
    LanguageModel,
    load_language_model,
    load_writer,
    write_triplets,
)
from tests.support.open_models import CAPTIONS, GOOD


def likelihood(writer: LanguageModel, text: str, caption: str) -> float:
    """Mean log-probability of a reply's edited caption, read in one go."""
    head, tail = text.split(triplets.SPLIT, 1)
    parts = triplets.to_prompt(caption), head + triplets.SPLIT, tail
    sizes = [len(writer.tokenizer(part).input_ids) for part in parts]
    ids = writer.tokenizer("".join(parts), return_tensors="pt").input_ids
    with torch.no_grad():
        said = writer.model(ids).logits.log_softmax(-1)[0, :-1]
    return float(said.gather(1, ids[0, 1:, None])[sizes[0] + sizes[1] - 1 :].mean())


def is_triplet(caption: str, text: str) -> bool:
    try:
        return bool(triplets.parse_completion(caption, text))
    except triplets.TripletError:
        return False


def test_of_several_attempts_the_likeliest_triplet_is_given_back(monkeypatch) -> None:
    scale, seen = preset("miniature"), {}
    writer = load_language_model(scale.language_model, scale.language_adapter)

    def watched(caption, written):
        seen[caption] = written
        return surest(caption, written)

    monkeypatch.setattr(language_model, "surest", watched)
    captions = [triplet.caption for triplet in grammar_triplets(HELD_OUT, 12)]
    once = list(write_triplets(writer, captions))
    thrice = list(write_triplets(writer, captions, attempts=3, batch_size=7))
    assert sum(a.text != b.text for a, b in zip(once, thrice, strict=True)) > 2
    for first, reply in zip(once, thrice, strict=True):
        texts = [written.text for written in seen[reply.caption]]
        assert texts[0] == first.text and len(set(texts)) > 1
        scores = [likelihood(writer, text, reply.caption) for text in texts]
        noted = [written.log_likelihood for written in seen[reply.caption]]
        assert noted == pytest.approx(scores, abs=1e-3)
        by_score = sorted(zip(scores, texts, strict=True), reverse=True)
        good = [text for _, text in by_score if is_triplet(reply.caption, text)]
        assert reply.text == (good or texts)[0]
    source = scale.language_model, scale.language_adapter
    write = load_writer(*source, attempts=3, device=writer.model.device)
    assert [r.text for r in write(captions)] == [r.text for r in thrice]


def test_attempts_that_are_no_triplets_never_win() -> None:
    def chosen(*texts: str) -> triplets.Reply:
        written = [Written(text, -i) for i, text in enumerate(texts, start=1)]
        return surest(CAPTIONS[0], written)

    assert chosen("cat", GOOD, "dog").text == GOOD
    assert chosen("make it a dog\nEND", "cat").reason == "parts"
