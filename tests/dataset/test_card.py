"""A card says what the pairs and their manifest say, and its snippets run."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import DatasetCard

from ip2p_lib.config import ROOT
from ip2p_lib.dataset.authors_format import export_folders
from ip2p_lib.dataset.card import write_card
from ip2p_lib.dataset.dataset import read_packed_shards, write_shards
from ip2p_lib.dataset.parquet import export_parquet
from ip2p_lib.dataset.statistics import survey
from tests.support.pairs import make_pair

FACTS = {
    "run_seed": 1371,
    "triplets": {"kept": 6506, "unchanged": 349},
    "rendered": 18432,
    "kept": 8840,
    "thresholds": {"image": 0.55, "text": 0.15, "direction": 0.05},
    "models": {
        "text-to-image": {"path_or_id": "some/model", "revision": "451f4fe1"},
        "CLIP": {"path_or_id": "miniature-clip", "revision": None},
    },
    "seconds": 40.6,
}
PAIRS = [make_pair(i, language="zh" if i < 3 else "en") for i in range(11)]
LICENSE = {"name": "Pairs", "license": "cc-by-4.0", "attribution": "Sprites by X."}


@pytest.fixture
def source(tmp_path):
    write_shards(PAIRS, tmp_path / "shards", shard_size=6, **FACTS)
    return tmp_path / "shards"


def rows(text):
    """The cells of every table, by what stands first in the row."""
    lines = [
        line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"
    ]
    return {line[0]: line[1:] for line in lines}


def test_the_numbers_are_those_of_the_manifest_and_the_pairs(source):
    table = rows(write_card(source, source, **LICENSE).read_text())
    size = sum(path.stat().st_size for path in source.glob("*.tar")) / 1e6
    expected = {
        "pairs": ["11"],
        "distinct instructions": ["6"],
        "languages of instructions": ["zh: 3, en: 8"],
        "sizes of pictures": ["16 x 16: 11"],
        "as shards": [f"2 of {size:.1f} MB together"],
        "triplets written": ["kept: 6,506, unchanged: 349"],
        "pairs rendered": ["18,432"],
        "kept by the filter": ["8,840"],
        "seed of the run": ["1371"],
        "seeds of pairs": ["11 distinct, each with its pair"],
        "text-to-image": ["`some/model` at 451f4fe1"],
        "CLIP": ["`miniature-clip` at no revision"],
        "`seconds`": ["40.6"],
    }
    assert expected.items() <= table.items()


def test_scores_are_shown_with_their_thresholds_and_quantiles(source):
    table = rows(write_card(source, source, **LICENSE).read_text())
    values = [pair.scores["direction"] for pair in PAIRS]
    shares = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    assert table["direction"] == ["0.05", *(f"{value:.3f}" for value in shares)]
    assert table["before"][0] == table["after"][0] == "0.15"
    assert table["p"][:4] == ["-", "0.100", "0.105", "0.150"]


def test_a_run_that_recorded_nothing_is_shown_as_such(tmp_path):
    bare = {"seed": None, "p": None, "cfg_scale": None, "steps": None, "scores": {}}
    write_shards([make_pair(0, **bare)], tmp_path)
    table = rows(write_card(tmp_path, tmp_path, **LICENSE).read_text())
    assert table["models"] == table["seed of the run"] == ["not recorded"]
    assert not {"pairs rendered", "kept by the filter", "direction", "p"} & table.keys()


@pytest.mark.parametrize(
    ("n", "size"), [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "n>1M")]
)
def test_the_hub_reads_the_header(source, monkeypatch, n, size):
    def counted(pairs):
        found = survey(pairs)
        found.pairs = n
        return found

    monkeypatch.setattr("ip2p_lib.dataset.card.survey", counted)
    data = DatasetCard.load(write_card(source, source, **LICENSE)).data
    assert data.license == "cc-by-4.0" and data.pretty_name == "Pairs"
    assert data.language == ["en", "zh"] and data.size_categories == [size]
    assert data.task_categories == ["image-to-image"]


def test_a_license_of_ones_own_needs_a_link(source):
    with pytest.raises(ValueError, match="needs a license_link"):
        write_card(source, source, name="Pairs", license="other")
    link = "https://example.org/license"
    card = write_card(source, source, name="Pairs", license="other", license_link=link)
    assert DatasetCard.load(card).data.license_link == link


def test_a_folder_without_a_data_set_gets_no_card(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no data set"):
        write_card(source, tmp_path / "shards" / "..", **LICENSE)
    assert not (tmp_path / "README.md").exists()


def snippets(card):
    text = card.read_text().replace("FOLDER", str(card.parent))
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


COUNT = "print(pairs.count_rows() if hasattr(pairs, 'count_rows') else len([*pairs]))"


def run(codes, home):
    """Snippets in a process of their own, as a reader runs them, offline."""
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "\n".join(f"{code}{COUNT}" for code in codes)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


@pytest.mark.parametrize("layout", ["shards", "parquet", "folders"])
def test_each_layout_has_three_ways_to_load_it_and_they_work(source, tmp_path, layout):
    out = tmp_path / layout
    if layout != "shards":
        {"parquet": export_parquet, "folders": export_folders}[layout](source, out)
    codes = snippets(write_card(source, out, **LICENSE))
    assert len(codes) == 3
    # edit_dataset is of the authors' repository, which is not here.
    ours = [code for code in codes if "edit_dataset" not in code]
    expected = [6, 11] if layout == "folders" else [11, 11, 11]
    assert run(ours, tmp_path) == expected


def test_a_new_export_drops_the_card_of_the_older_one(source, tmp_path):
    out = export_parquet(source, tmp_path / "out")
    write_card(source, out, **LICENSE)
    export_parquet(source, out, replace=True)
    assert not (out / "README.md").exists()


def test_a_survey_decodes_no_picture_and_counts_all(source, monkeypatch):
    monkeypatch.setattr("ip2p_lib.dataset.pairs.decode", None)
    found = survey(read_packed_shards(source))
    assert found.pairs == 11 and len(found.seeds) == 11
    assert json.dumps(found.quantiles([0.5])["steps"]) == "[25.0]"
