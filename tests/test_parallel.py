"""A run of two processes takes the steps of a run of one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ip2p_lib import parallel

SCRIPT = Path(__file__).with_name("train_in_parallel.py")


def run(out, *launcher):
    out.mkdir()
    command = [sys.executable, *launcher, str(SCRIPT), str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=SCRIPT.parents[1]
    )
    assert done.returncode == 0, done.stderr
    return [load_file(path) for path in sorted(out.glob("rank-*.safetensors"))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    return run(folder / "one"), run(folder / "two", *torchrun)


def test_losses_and_weights_are_those_of_one_process(runs):
    (one,), two = runs
    assert len(two) == 2
    for result in two:
        for name, expected in one.items():
            torch.testing.assert_close(
                result[name], expected, rtol=1e-6, atol=1e-6, msg=name
            )


def test_all_processes_end_with_the_same_numbers(runs):
    first, second = runs[1]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["agreed"] == 7.0


def test_one_process_needs_no_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    rows = torch.arange(3)
    assert parallel.join().type in ("cpu", "cuda")
    assert (parallel.rank(), parallel.processes()) == (0, 1)
    assert torch.equal(parallel.share(rows), rows)
    parallel.add_up([rows])
    parallel.copy_from_first([rows])
    assert rows.tolist() == [0, 1, 2]
    assert parallel.agree(1.5, torch.device("cpu")) == 1.5
    parallel.leave()


def test_a_batch_too_small_for_its_processes_is_refused(monkeypatch):
    monkeypatch.setattr(parallel, "processes", lambda: 4)
    with pytest.raises(ValueError, match="too small for 4 processes"):
        parallel.share(torch.arange(3))
