"""Results carry their provenance."""

import json
import subprocess

import pytest
import torch

from ip2p_lib import results
from ip2p_lib.results import ReadmeRow, bootstrap_interval, commit_hash, write_results
from ip2p_lib.rng import key, normal


def test_results_say_where_they_come_from(tmp_path):
    path = write_results(
        tmp_path / "new" / "curve.json",
        [{"method": "SDEdit", "l1_source": 0.25}],
        seed=3,
        seconds=1.5,
        readme=[ReadmeRow("L1 to the input", "0.25", "0.3", 32)],
        text_scale=7.5,
    )
    result = json.loads(path.read_text())
    assert result["rows"] == [{"method": "SDEdit", "l1_source": 0.25}]
    assert (result["seed"], result["seconds"], result["text_scale"]) == (3, 1.5, 7.5)
    assert result["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    (row,) = result["readme"]
    assert row.pop("device") == result["device"]
    assert [*row.values()] == ["L1 to the input", "0.25", "0.3", 32]
    assert result["commit"] and result["device"] and result["date"].endswith("+00:00")


def test_the_commit_is_one_that_exists_and_dirty_only_if_the_code_differs(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("IP2P_COMMIT", raising=False)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert commit_hash() == "unknown"
    for folder in ("ip2p_lib", "docs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_text("1")

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", *who, "-C", str(tmp_path), *arguments]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        return run.stdout.strip()

    for arguments in (["init"], ["add", "-A"], ["commit", "-m", "first"]):
        git(*arguments)
    head = git("rev-parse", "HEAD")
    (tmp_path / "docs" / "a").write_text("2")
    assert commit_hash() == head
    (tmp_path / "ip2p_lib" / "a").write_text("2")
    assert commit_hash() == f"{head}-dirty"
    monkeypatch.setenv("IP2P_COMMIT", "0123abcd")  # where no repository is
    assert commit_hash() == "0123abcd"


def test_the_bootstrap_interval_is_the_normal_one_for_many_values():
    values = normal(key("bootstrap test"), torch.arange(400), (1,)).flatten()
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.double().std()) / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(float(values.double().mean()), abs=0.01)
    assert bootstrap_interval(torch.tensor([1.0, torch.nan, 1.0])) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval(torch.tensor([torch.nan]))


def test_a_missing_or_damaged_result_is_named_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    remedy = "git checkout data/results/some.json brings it back"
    with pytest.raises(FileNotFoundError, match=remedy):
        results.read_results("some")
    for text in ("{", "[]", '{"row": []}', "\xff"):
        (tmp_path / "some.json").write_text(text, "latin-1")
        with pytest.raises(ValueError, match=remedy):
            results.read_results("some")
    results.write_results(tmp_path / "some.json", [{"a": 1}], seed=3, seconds=0)
    assert results.read_results("some")["rows"] == [{"a": 1}]
