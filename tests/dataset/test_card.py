"""A card says what the pairs and their manifest say, and its snippets run."""

import os
import re
import subprocess
import sys

import pytest
from huggingface_hub import DatasetCard

from ip2p_lib.config import ROOT
from ip2p_lib.dataset import export_folders, export_parquet, write_card, write_shards
from tests.support.pairs import make_pair

RECORDED = {"run_seed": 1371, "thresholds": {"image": 0.55, "direction": 0.05}}
PAIRS = [make_pair(i, language="zh" if i < 3 else "en") for i in range(11)]
LABELS = {"name": "Pairs", "license": "cc-by-4.0", "attribution": "Sprites by X."}


@pytest.fixture
def source(tmp_path):
    write_shards(PAIRS, tmp_path / "shards", shard_size=6, **RECORDED)
    return tmp_path / "shards"


def test_the_numbers_are_those_of_the_pairs_and_the_manifest(source):
    text = write_card(source, source, **LABELS).read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line]
    assert [row for row in rows if "---" not in row] == [
        ["what", "how many"],
        ["distinct instructions", "6"],
        ["pairs by language", "zh: 3, en: 8"],
        ["pairs by image size", "16 x 16: 11"],
        ["what", "recorded by the run"],
        ["`pairs`", "11"],
        ["`run_seed`", "1371"],
        ["`thresholds`", '{"image": 0.55, "direction": 0.05}'],
    ]
    assert "Sprites by X." in text


def test_the_hub_reads_the_header(source):
    data = DatasetCard.load(write_card(source, source, **LABELS)).data
    assert (data.license, data.pretty_name) == ("cc-by-4.0", "Pairs")
    assert data.language == ["en", "zh"]
    assert data.task_categories == ["image-to-image"]


def test_a_folder_without_a_data_set_gets_no_card(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set"):
        write_card(source, tmp_path, **LABELS)
    assert not (tmp_path / "README.md").exists()


@pytest.mark.slow
def test_the_ways_to_load_each_layout_work(source, tmp_path):
    """In a process of its own, as a reader runs the snippets, offline."""
    parquet = export_parquet(source, tmp_path / "parquet")
    folders = export_folders(source, tmp_path / "folders")
    code = ""
    for out in (source, parquet, folders):
        text = write_card(source, out, **LABELS).read_text()
        (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        code += snippet.replace("FOLDER", str(out)) + "print(len([*pairs]))\n"
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["11"] * 3, done.stderr


def test_a_new_export_drops_the_card_of_the_older_one(source, tmp_path):
    out = export_parquet(source, tmp_path / "out")
    write_card(source, out, **LABELS)
    export_parquet(source, out, replace=True)
    assert not (out / "README.md").exists()
