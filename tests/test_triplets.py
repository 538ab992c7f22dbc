"""The triplet record: format, rules and file (section 3.1.1)."""

from __future__ import annotations

import json

import pytest

from ip2p_lib import triplets
from ip2p_lib.triplets import Triplet, TripletError

ROSE = Triplet("a sunflower on a beach", "make it a rose", "a rose on a beach")
CHINESE = Triplet("a cat at night", "把猫换成狗", "a dog at night", "zh")


def test_the_training_row_is_the_authors_format() -> None:
    row = triplets.to_prompt(ROSE.caption) + triplets.to_completion(ROSE)
    assert row == (
        "a sunflower on a beach\n##\nmake it a rose\n%%\na rose on a beach\nEND"
    )


@pytest.mark.parametrize("triplet", [ROSE, CHINESE])
@pytest.mark.parametrize("after_end", ["", "\nEND", "\nEND\nand more\n%%\nnoise"])
def test_a_completion_is_read_back(triplet: Triplet, after_end: str) -> None:
    text = triplet.instruction + "\n%%\n" + triplet.edited_caption + after_end
    assert triplets.parse_completion(triplet.caption, text) == triplet


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
def test_a_bad_reply_is_refused_with_one_reason(reply: str, reason: str) -> None:
    with pytest.raises(TripletError) as caught:
        triplets.parse_completion(ROSE.caption, reply)
    assert caught.value.reason == reason


def test_end_punctuation_and_case_are_no_change() -> None:
    assert triplets.is_unchanged(" A cat. ", "a CAT!?")
    assert triplets.is_unchanged("一只猫。", "一只猫")
    assert not triplets.is_unchanged("a cat", "a cat, at night")


def test_the_language_is_the_instructions() -> None:
    assert triplets.make_triplet("a cat", "换成狗", "a dog").language == "zh"
    assert triplets.make_triplet("一只猫", "a dog please", "一只狗").language == "en"
    assert triplets.make_triplet("a", "en hund", "b", language="sv").language == "sv"


def test_a_file_comes_back_as_it_was(tmp_path) -> None:
    swedish = Triplet("a cat", "en hund", "a dog", "sv")
    path = triplets.write_jsonl(tmp_path / "new" / "t.jsonl", [ROSE, CHINESE, swedish])
    assert triplets.read_jsonl(path) == [ROSE, CHINESE, swedish]
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert set(first) == {"input", "edit", "output"}
    assert "把猫换成狗" in path.read_text(encoding="utf-8")


def test_both_of_the_authors_spellings_are_read(tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    edit = {"edit": ROSE.instruction, "output": ROSE.edited_caption}
    released = {"input": ROSE.caption, **edit, "url": "http://x"}
    generated = {"caption": ROSE.caption, **edit}
    path.write_text(json.dumps(released) + "\n\n" + json.dumps(generated))
    assert triplets.read_jsonl(path) == [ROSE, ROSE]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "Expecting property name"),
        (b"[1]", "expected a JSON object"),
        (b'{"input": "a", "edit": "b"}', "'output'"),
        (b'{"input": "a", "edit": "b", "output": 3}', "'output'"),
        (b'{"input": "a", "edit": "b", "output": "A."}', "changes nothing"),
        (b"\xff", "codec can't decode"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line: bytes, says: str) -> None:
    path = triplets.write_jsonl(tmp_path / "t.jsonl", [ROSE])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match="codec" if line == b"\xff" else says) as error:
        triplets.read_jsonl(path)
    assert f"{path}:2: " in str(error.value)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        triplets.read_jsonl(tmp_path / "nowhere.jsonl")


def test_an_interrupted_write_leaves_the_old_file(tmp_path) -> None:
    path = triplets.write_jsonl(tmp_path / "t.jsonl", [ROSE])

    def interrupted():
        yield CHINESE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        triplets.write_jsonl(path, interrupted())
    assert triplets.read_jsonl(path) == [ROSE]
    assert list(tmp_path.iterdir()) == [path]
