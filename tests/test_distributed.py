"""A run of two processes takes the steps of a run of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing import ProcessRaisedException

from ip2p_lib import distributed

SCRIPT = Path(__file__).parent / "support/train_in_parallel.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
STARTED = {"torchrun": (TORCHRUN, ()), "notebook": ((), ("as-from-a-notebook",))}
OWN = {"own sample_ids", "own noise"}


def results(out, launcher=(), arguments=()):
    out.mkdir()
    command = [sys.executable, *launcher, str(SCRIPT), str(out), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # or there are threads of arithmetic
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=SCRIPT.parents[2], env=env
    )
    assert done.returncode == 0, done.stderr
    return [load_file(path) for path in sorted(out.glob("rank-*.safetensors"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return results(tmp_path_factory.mktemp("alone") / "one")[0]


@pytest.fixture(scope="module", params=STARTED)
def two(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "runs"
    first, second = results(out, *STARTED[request.param])
    # A connection's thread that outlives it now and then aborts the ending process.
    threads = [path.read_text() for path in out.glob("threads-*")]
    assert threads == (["1", "1"] if request.param == "torchrun" else [])
    return first, second


@pytest.mark.slow
def test_losses_and_weights_are_those_of_one_process(alone, two):
    first, second = two
    for name in alone.keys() - OWN:
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], alone[name], rtol=1e-6, atol=1e-6, msg=name
        )
    assert first["agreed"] == 7.0


@pytest.mark.slow
def test_two_processes_draw_different_numbers_that_one_process_draws(alone, two):
    ids, noise = "own sample_ids", "own noise"
    first, second = (result[ids].tolist() for result in two)
    assert not set(first) & set(second)
    order = torch.tensor(first + second).argsort()
    expected = alone[ids].argsort()
    drawn = torch.cat([result[noise] for result in two])
    assert sorted(first + second) == sorted(alone[ids].tolist())
    assert torch.equal(drawn[order], alone[noise][expected])


def test_one_process_needs_no_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    rows, calls = torch.arange(3), []
    assert distributed.init().type in ("cpu", "cuda")
    with pytest.raises(RuntimeError, match="4 processes are needed, but 1 share"):
        distributed.init(4)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert torch.equal(distributed.local_shard(rows), rows)
    distributed.all_reduce_sum([rows])
    distributed.broadcast_tensors([rows])
    assert rows.tolist() == [0, 1, 2]
    assert distributed.broadcast_scalar(1.5, torch.device("cpu")) == 1.5
    distributed.launch(calls.append, "from a notebook", processes=1)
    assert calls == ["from a notebook"]
    distributed.shutdown()


def test_a_batch_too_small_for_its_processes_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(ValueError, match="too small for 4 processes"):
        distributed.local_shard(torch.arange(3))


def test_an_error_in_one_of_a_notebooks_processes_is_raised_here():
    def function():
        raise ZeroDivisionError("in the second half")

    with pytest.raises(ProcessRaisedException, match="in the second half"):
        distributed.launch(function, processes=2)
