"""A run of two processes takes the steps of a run of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ip2p_lib import distributed

SCRIPT = Path(__file__).parent / "support/train_in_parallel.py"


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
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
        for name in alone.keys() - {"own sample_ids", "own noise"}:
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
    shared = first.keys() - {"own sample_ids", "own noise"}
    assert all(torch.equal(first[name], second[name]) for name in shared)
    assert first["agreed"] == 7.0


def test_no_two_processes_draw_the_same_and_together_they_draw_what_one_does(
    alone, two
):
    first, second = (result["own sample_ids"].tolist() for result in two)
    assert not set(first) & set(second)
    assert sorted(first + second) == sorted(alone["own sample_ids"].tolist())
    noise = {
        v: n
        for r in two
        for v, n in zip(r["own sample_ids"].tolist(), r["own noise"], strict=True)
    }
    for sample_id, expected in zip(
        alone["own sample_ids"].tolist(), alone["own noise"], strict=True
    ):
        assert torch.equal(noise[sample_id], expected)


def test_a_run_may_say_itself_how_many_it_needs(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="4 processes are needed, but 1 share"):
        distributed.init(4)
    assert distributed.init(1).type in ("cpu", "cuda")


def test_one_process_needs_no_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    rows = torch.arange(3)
    assert distributed.init().type in ("cpu", "cuda")
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert torch.equal(distributed.local_shard(rows), rows)
    distributed.all_reduce_sum([rows])
    distributed.broadcast_tensors([rows])
    assert rows.tolist() == [0, 1, 2]
    assert distributed.broadcast_scalar(1.5, torch.device("cpu")) == 1.5
    distributed.shutdown()


def test_a_batch_too_small_for_its_processes_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(ValueError, match="too small for 4 processes"):
        distributed.local_shard(torch.arange(3))


def test_a_notebook_that_asks_for_one_process_is_that_process(tmp_path):
    seen = []
    distributed.launch(
        lambda word: seen.append((word, distributed.world_size())), "x", processes=1
    )
    assert seen == [("x", 1)]


def test_an_error_in_one_of_a_notebooks_processes_is_raised_here(tmp_path):
    from torch.multiprocessing import ProcessRaisedException

    def work():
        raise ZeroDivisionError("in the second half")

    with pytest.raises(ProcessRaisedException, match="in the second half"):
        distributed.launch(work, processes=2)
