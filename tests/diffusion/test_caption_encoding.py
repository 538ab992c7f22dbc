"""A caption is encoded once for all that comes of it, and not kept for longer."""

import pytest

from ip2p_lib.config import Rendering
from ip2p_lib.rendering.render import draw_candidates, render
from tests.support.small_rendering import CANDIDATES, CAT, HOUSE, exact_backbone


@pytest.fixture(scope="module")
def backbone(tiny_sd_folder):
    return exact_backbone(tiny_sd_folder)


@pytest.fixture
def encoded(backbone, monkeypatch):
    """The texts that were encoded, in order."""
    seen = []

    def encode_text(texts):
        seen.extend(texts)
        return type(backbone).encode_text(backbone, texts)

    monkeypatch.setattr(backbone, "encode_text", encode_text, raising=False)
    backbone.__dict__.pop("null_text", None)
    return seen


def test_a_caption_is_encoded_once(backbone, encoded):
    candidates = draw_candidates([CAT, HOUSE], 3, 0, Rendering())
    list(render(backbone, candidates, steps=1, batch_size=2))
    captions = {t for c in (CAT, HOUSE) for t in (c.caption, c.edited_caption)}
    assert sorted(encoded) == sorted(["", *captions])


def test_memory_does_not_grow_with_the_number_of_captions(backbone, encoded):
    """Only the last batch's embeddings are kept: what comes again is encoded again."""
    cat, house = CANDIDATES[:2]
    list(render(backbone, [cat, house, cat], steps=1, batch_size=1))
    assert encoded.count(CAT.caption) == 2 and encoded.count(HOUSE.caption) == 1
