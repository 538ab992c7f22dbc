"""Captions come one at a time from files."""

import json
import tracemalloc

import pytest

from ip2p_lib.triplets.captions import read_captions


@pytest.fixture
def files(tmp_path):
    (tmp_path / "lines.txt").write_text("a cat\n\n  一只猫  \r\na\u2028dog\n", "utf-8")
    rows = [{"input": "a cat"}, {"caption": "a  dog\nat night"}, {"text": " "}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, "utf-8")
    return tmp_path


def test_text_files_hold_a_caption_a_line(files):
    assert list(read_captions(files / "lines.txt")) == ["a cat", "一只猫", "a dog"]


def test_json_lines_hold_it_under_one_of_the_usual_keys_or_a_given_one(files):
    path = files / "rows.jsonl"
    assert list(read_captions(path)) == ["a cat", "a dog at night"]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no text under 'title'"):
        list(read_captions(path, "title"))


def test_bad_files_are_named(files):
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        read_captions(files / "missing.txt")
    (files / "table.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"table\.csv: captions are read from"):
        read_captions(files / "table.csv")
    (files / "broken.jsonl").write_text('{"input": "a cat"}\n[1]\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl:2: expected an object"):
        list(read_captions(files / "broken.jsonl"))


def test_memory_stays_flat_over_half_a_million_captions(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("a cat on a mat in the sun, a photo\n" * 500_000)
    tracemalloc.start()
    count = sum(1 for _ in read_captions(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 500_000 and peak < 2**20
