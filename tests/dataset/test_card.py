"""A card says what the pairs and their manifest say, and its snippets run."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import DatasetCard

from ip2p_lib.config import ROOT
from ip2p_lib.dataset import export_folders, export_parquet, write_card, write_shards
from tests.support.pairs import make_pair

RECORDED = {
    "run_seed": 1371,
    "rendered": 18432,
    "thresholds": {"image": 0.55, "text": 0.15, "direction": 0.05},
}
PAIRS = [make_pair(i, language="zh" if i < 3 else "en") for i in range(11)]
LICENSE = {"name": "Pairs", "license": "cc-by-4.0", "attribution": "Sprites by X."}


@pytest.fixture
def source(tmp_path):
    write_shards(PAIRS, tmp_path / "shards", shard_size=6, **RECORDED)
    return tmp_path / "shards"


def rows(text):
    """The cells of every table, by what stands first in the row."""
    lines = [
        line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"
    ]
    return {line[0]: line[1:] for line in lines}


def test_the_numbers_are_those_of_the_manifest_and_the_pairs(source):
    table = rows(write_card(source, source, **LICENSE).read_text())
    directions = np.quantile(
        [p.scores["direction"] for p in PAIRS], [0, 0.05, 0.5, 0.95, 1]
    )
    expected = {
        "pairs": ["11"],
        "distinct instructions": ["6"],
        "pairs by language": ["zh: 3, en: 8"],
        "pairs by image size": ["16 x 16: 11"],
        "`run_seed`": ["1371"],
        "`rendered`": ["18432"],
        "`thresholds`": ['{"image": 0.55, "text": 0.15, "direction": 0.05}'],
        "direction": [f"{value:.3f}" for value in directions],
    }
    assert expected.items() <= table.items()


def test_a_run_that_recorded_nothing_has_no_numbers_of_it(tmp_path):
    bare = {"seed": None, "p": None, "cfg_scale": None, "steps": None, "scores": {}}
    write_shards([make_pair(0, **bare)], tmp_path)
    table = rows(write_card(tmp_path, tmp_path, **LICENSE).read_text())
    assert not {"`rendered`", "direction", "p"} & table.keys()


def test_the_hub_reads_the_header(source):
    data = DatasetCard.load(write_card(source, source, **LICENSE)).data
    assert data.license == "cc-by-4.0" and data.pretty_name == "Pairs"
    assert data.language == ["en", "zh"]
    assert data.task_categories == ["image-to-image"]


def test_a_license_of_your_own_needs_a_link(source):
    with pytest.raises(ValueError, match="needs a license_link"):
        write_card(source, source, name="Pairs", license="other")
    link = "https://example.org/license"
    card = write_card(source, source, name="Pairs", license="other", license_link=link)
    assert DatasetCard.load(card).data.license_link == link


def test_a_folder_without_a_data_set_gets_no_card(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no data set"):
        write_card(source, tmp_path, **LICENSE)
    assert not (tmp_path / "README.md").exists()


def snippets(card):
    text = card.read_text().replace("FOLDER", str(card.parent))
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(codes, home):
    """Snippets in a process of their own, as a reader runs them, offline."""
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    code = "".join(f"{code}print(len([*pairs]))\n" for code in codes)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


@pytest.mark.slow
def test_the_ways_to_load_each_layout_work(source, tmp_path):
    parquet = export_parquet(source, tmp_path / "parquet")
    folders = export_folders(source, tmp_path / "folders")
    cards = [write_card(source, out, **LICENSE) for out in (source, parquet, folders)]
    assert (
        run([code for card in cards for code in snippets(card)], tmp_path) == [11] * 3
    )


def test_a_new_export_drops_the_card_of_the_older_one(source, tmp_path):
    out = export_parquet(source, tmp_path / "out")
    write_card(source, out, **LICENSE)
    export_parquet(source, out, replace=True)
    assert not (out / "README.md").exists()
