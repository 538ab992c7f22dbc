"""The triplet record: format, rules and file (section 3.1.1)."""

import json
import math
import re
from collections import Counter

import pytest

from ip2p_lib.config import DATA
from ip2p_lib.triplets import record as triplets
from ip2p_lib.triplets.record import Triplet, TripletError, read_jsonl

ROSE = Triplet("a sunflower on a beach", "make it a rose", "a rose on a beach")
CHINESE = Triplet("a cat at night", "把猫换成狗", "a dog at night", "zh")


def test_a_completion_is_read_back():
    for triplet in (ROSE, CHINESE):
        text = triplet.instruction + "\n%%\n" + triplet.edited_caption
        for end in ("", "\nEND", "\nEND\nand more\n%%\nnoise"):
            assert triplets.parse_completion(triplet.caption, text + end) == triplet


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "parts"),
        ("make it a rose", "parts"),
        ("make it\n%%\na rose\n%%\non a beach", "parts"),
        ("make it %% a rose on a beach", "parts"),
        ("\nEND", "parts"),
        ("  \n%%\na rose on a beach\nEND", "blank"),
        ("make it a rose\n%%\n \nEND", "blank"),
        ("make it a rose\n%%\na rose\non a beach\nEND", "lines"),
        ("make it\u2028a rose\n%%\na rose on a beach", "lines"),
        ("##\n%%\na rose on a beach", "lines"),
        ("make it a rose\n%%\n%%\nEND", "lines"),
        ("keep it\n%%\nA Sunflower on a beach.\nEND", "unchanged"),
    ],
)
def test_a_bad_reply_is_refused_with_one_reason(reply: str, reason: str):
    with pytest.raises(TripletError) as caught:
        triplets.parse_completion(ROSE.caption, reply)
    assert caught.value.reason == reason


def test_case_and_end_punctuation_are_no_change_and_language_is_the_instructions():
    assert triplets.is_unchanged(" A cat. ", "a CAT!?")
    assert triplets.is_unchanged("一只猫。", "一只猫")
    assert not triplets.is_unchanged("a cat", "a cat, at night")
    assert triplets.make_triplet("a cat", "换成狗", "a dog").language == "zh"
    assert triplets.make_triplet("一只猫", "a dog please", "一只狗").language == "en"


def test_a_file_comes_back_as_it_was(tmp_path):
    swedish = Triplet("a cat", "en hund", "a dog", "sv")
    path = triplets.write_jsonl(tmp_path / "new" / "t.jsonl", [ROSE, CHINESE, swedish])
    assert triplets.read_jsonl(path) == [ROSE, CHINESE, swedish]
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert set(first) == {"input", "edit", "output"}
    assert "把猫换成狗" in path.read_text(encoding="utf-8")


def test_both_of_the_authors_spellings_are_read(tmp_path):
    path = tmp_path / "t.jsonl"
    edit = {"edit": ROSE.instruction, "output": ROSE.edited_caption}
    released = {"input": ROSE.caption, **edit, "url": "http://x"}
    generated = {"caption": ROSE.caption, **edit}
    path.write_text(json.dumps(released) + "\n\n" + json.dumps(generated))
    assert triplets.read_jsonl(path) == [ROSE, ROSE]


BAD_LINES = [b"{", b"[1]", b"\xff", b'{"input": "a", "edit": "b"}']
BAD_LINES += [b'{"input": "a", "edit": "b", "output": "c", "language": ["en"]}']
BAD_LINES += [b'{"input": "a", "edit": "b", "output": %s}' % x for x in (b"3", b'"A."')]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, line: bytes):
    path = triplets.write_jsonl(tmp_path / "t.jsonl", [ROSE])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=r"t\.jsonl:2: "):
        triplets.read_jsonl(path)


GENERAL = DATA / "triplets" / "general.jsonl"


def tokens_at_most(text):
    """No fewer than CLIP's tokens: three letters or one byte of any script a token."""
    words = re.findall(r"\w+|[^\w\s]", text)
    sizes = (len(w.encode()) / (3 if w.isascii() else 1) for w in words)
    return sum(max(1, math.ceil(size)) for size in sizes) + 2  # start and end


def test_the_general_set_is_as_large_as_the_papers_and_varied():
    general = read_jsonl(GENERAL)  # reading checks every triplet
    assert len(general) >= 700
    assert len({t.instruction.lower() for t in general}) == len(general)
    assert len({(t.caption, t.edited_caption) for t in general}) == len(general)
    for triplet in general:
        texts = (triplet.caption, triplet.instruction, triplet.edited_caption)
        assert max(map(tokens_at_most, texts)) <= 77, triplet
    rows = [json.loads(line) for line in GENERAL.read_text("utf-8").splitlines()]
    kinds = Counter(row["kind"] for row in rows)
    assert len(kinds) == 10
    assert max(kinds.values()) <= 1.25 * min(kinds.values())
    first_words = Counter(t.instruction.split()[0].lower() for t in general)
    assert max(first_words.values()) <= 0.08 * len(general)
    assert 0.05 < sum(t.language == "zh" for t in general) / len(general) < 0.2
    moves = re.compile(r"\b(zoom|rotate|flip|move|swap places|closer|camera)\b")
    assert sum(bool(moves.search(t.instruction)) for t in general) <= 3
