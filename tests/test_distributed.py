"""A run of two processes takes the steps of a run of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ip2p_lib import distributed as parallel

SCRIPT = Path(__file__).parent / "support/train_in_parallel.py"


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ACCELERATE = ("-m", "accelerate.commands.launch")
STARTED = {
    "torchrun": (TORCHRUN, ()),
    "from a notebook": ((), ("as-from-a-notebook",)),
}


def started(out, launcher=(), words=()):
    out.mkdir()
    command = [sys.executable, *launcher, str(SCRIPT), str(out), *words]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # else threads of arithmetic, too
    return subprocess.run(
        command, capture_output=True, text=True, cwd=SCRIPT.parents[2], env=alone
    )


def results(out, *how):
    done = started(out, *how)
    assert done.returncode == 0, done.stderr
    return [load_file(path) for path in sorted(out.glob("rank-*.safetensors"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return results(tmp_path_factory.mktemp("alone") / "one")[0]


@pytest.fixture(scope="module", params=STARTED)
def two(request, tmp_path_factory):
    return results(tmp_path_factory.mktemp("two") / "runs", *STARTED[request.param])


def test_losses_and_weights_are_those_of_one_process(alone, two):
    assert len(two) == 2
    for result in two:
        for name in alone.keys() - {"own visits", "own noise"}:
            torch.testing.assert_close(
                result[name], alone[name], rtol=1e-6, atol=1e-6, msg=name
            )


def test_no_thread_of_the_connections_outlives_them(tmp_path):
    """A process that ends while one runs is aborted now and then."""
    done = started(tmp_path / "runs", TORCHRUN)
    assert done.returncode == 0, done.stderr
    left = [path.read_text() for path in (tmp_path / "runs").glob("threads-*")]
    assert left == ["1", "1"]


def test_all_processes_end_with_the_same_numbers(two):
    first, second = two
    shared = first.keys() - {"own visits", "own noise"}
    assert all(torch.equal(first[name], second[name]) for name in shared)
    assert first["agreed"] == 7.0


def test_no_two_processes_draw_the_same_and_together_they_draw_what_one_does(
    alone, two
):
    first, second = (result["own visits"].tolist() for result in two)
    assert not set(first) & set(second)
    assert sorted(first + second) == sorted(alone["own visits"].tolist())
    noise = {
        v: n
        for r in two
        for v, n in zip(r["own visits"].tolist(), r["own noise"], strict=True)
    }
    for visit, expected in zip(
        alone["own visits"].tolist(), alone["own noise"], strict=True
    ):
        assert torch.equal(noise[visit], expected)


def test_a_launcher_that_starts_fewer_than_it_was_told_is_found_out(tmp_path):
    """``accelerate launch --cpu --num_processes 2`` runs one process and is silent."""
    launcher = (*ACCELERATE, "--cpu", "--num_processes", "2")
    done = started(tmp_path / "fewer", launcher)
    assert done.returncode != 0
    words = "2 processes were asked for, but 1 share this run. Start it by: torchrun"
    assert words in done.stderr
    assert not list((tmp_path / "fewer").iterdir())


def test_a_launcher_that_was_told_one_is_content_with_one(tmp_path):
    launcher = (*ACCELERATE, "--cpu", "--num_processes", "1")
    assert len(results(tmp_path / "one", launcher)) == 1


def test_a_run_may_say_itself_how_many_it_needs(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="4 processes were asked for, but 1 share"):
        parallel.join(4)
    assert parallel.join(1).type in ("cpu", "cuda")


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


def test_a_notebook_that_asks_for_one_process_is_that_process(tmp_path):
    seen = []
    parallel.launch(
        lambda word: seen.append((word, parallel.processes())), "x", processes=1
    )
    assert seen == [("x", 1)]


def test_an_error_in_one_of_a_notebooks_processes_is_raised_here(tmp_path):
    from torch.multiprocessing import ProcessRaisedException

    def work():
        raise ZeroDivisionError("in the second half")

    with pytest.raises(ProcessRaisedException, match="in the second half"):
        parallel.launch(work, processes=2)
