"""Captions come one at a time from files."""

import json
import tracemalloc

import pytest

from ip2p_lib.triplets.record import read_captions


def test_text_files_hold_a_caption_a_line(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("a cat\n\n  一只猫  \r\na\u2028dog\ra cow", "utf-8")
    assert list(read_captions(path)) == ["a cat", "一只猫", "a dog", "a cow"]
    path.write_text("a cat\r\na dog\r", "utf-16-le")
    with pytest.raises(ValueError, match=r"lines\.txt:1: a NUL is no text"):
        list(read_captions(path))


def test_json_lines_hold_it_under_one_of_the_usual_keys(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"input": "a cat"}, {"caption": "a  dog\nat night"}, {"text": " "}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert list(read_captions(path)) == ["a cat", "a dog at night"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("table.csv", "a,b"),
        ("rows.jsonl:2", '{"input": "a cat"}\n[1]\n'),
        ("rows.jsonl:1", '{"title": "a cat"}'),
        ("rows.jsonl:1", '{"input": 3}'),
        ("rows.jsonl:1", "{"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text):
    path = tmp_path / name.partition(":")[0]
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{name}: "):
        list(read_captions(path))


def test_memory_stays_flat_over_half_a_million_captions(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("a cat on a mat in the sun, a photo\n" * 500_000)
    tracemalloc.start()
    count = sum(1 for _ in read_captions(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 500_000 and peak < 2**20


@pytest.mark.parametrize("name", ["rows.jsonl", "lines.txt"])
def test_a_byte_order_mark_is_no_letter_and_latin_1_is_refused_by_name(tmp_path, name):
    line = '{"caption": "%s"}' if name == "rows.jsonl" else "%s"
    path = tmp_path / name
    path.write_text(line % "a café", "utf-8-sig")
    assert list(read_captions(path)) == ["a café"]
    path.write_text(line % "a cat" + "\n" + line % "a café", "latin-1")
    with pytest.raises(ValueError, match=f"{name}:2: byte 0xe9 is not UTF-8"):
        list(read_captions(path))
