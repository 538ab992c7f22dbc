"""The job that trains the miniature: its stages, their order, and what stops it."""

import signal
import subprocess
import sys
import time

import pytest

from jobs import miniature

PARTS = ("rendering", "its neighbour", "the editor")


class Ended:
    """A process that has ended."""

    def __init__(self, code=0):
        self.code = code

    def poll(self):
        return self.code

    def terminate(self):
        """It has ended before."""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The job on two GPUs, nothing started; it returns what it would start."""
    started, work = [], tmp_path / "work"

    def start(self, log, module, *arguments, gpu=None):
        started.append((log, module, gpu, " ".join(arguments)))
        return Ended(fails == log)

    def job(*arguments, failing=None):
        nonlocal fails
        fails = failing
        command = ["miniature", "--out", str(tmp_path), "--work", str(work)]
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        miniature.main()
        return started

    fails = None
    monkeypatch.setattr(miniature.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(miniature.Job, "start", start)
    work.mkdir()
    return job, started, work


def test_every_gpu_has_its_part(run):
    job, _, work = run
    stale = work / "part-0"
    stale.mkdir()
    started = job("--seconds", "100")
    logs = [log for log, *_ in started]
    expected = ["unet", "write", "editor", "pairs-0", "pairs-1"]
    assert logs == [*expected, "measure-unet", "measure-editor"]
    rows = {log: (gpu, arguments) for log, _, gpu, arguments in started}
    assert rows["unet"][0] is None and "--batch 4096" in rows["unet"][1]
    assert "--parts 2" in rows["editor"][1] and "--batch 3072" in rows["editor"][1]
    for part in (0, 1):
        gpu, arguments = rows[f"pairs-{part}"]
        assert gpu == part and f"--part {part}/2" in arguments
    assert not stale.exists(), "the editor would train on an earlier run's pairs"


def test_an_editor_may_go_on_from_an_earlier_one(run):
    job, *_ = run
    rows = {log: arguments for log, *_, arguments in job("--since", "old")}
    assert "--since old" in rows["editor"]


def test_triplets_that_are_there_are_not_written_again(run):
    job, _, work = run
    (work / "triplets.jsonl").write_text("")
    assert "write" not in [log for log, *_ in job()]


def test_a_new_language_model_writes_while_the_unet_learns(run):
    job, *_ = run
    started = job("--language-seconds", "130")
    logs = [log for log, *_ in started]
    assert logs[:4] == ["unet", "language", "write", "editor"]
    rows = {log: (gpu, arguments) for log, _, gpu, arguments in started}
    assert rows["language"][0] == rows["write"][0] == 1
    assert "grammar written --seconds 130" in rows["language"][1]
    for log in ("language", "write"):
        assert "miniature-lm" in rows["language"][1] and "--out" in rows[log][1]


def test_the_work_can_be_done_in_sittings(run):
    job, started, _ = run
    assert [log for log, *_ in job("--stages", "unet")] == ["unet", "write"]
    started.clear()
    logs = [log for log, *_ in job("--stages", "measure", "editor")]
    assert logs[0] == "editor" and logs[-1] == "measure-editor"


def test_without_triplets_nothing_goes_on(run):
    job, started, _ = run
    with pytest.raises(SystemExit, match="write failed"):
        job(failing="write")
    assert [log for log, *_ in started] == ["unet", "write"]


def test_the_editors_deadline_comes_after_the_unets(run):
    job, *_ = run
    rows = {log: arguments.split() for log, _, _, arguments in job("--seconds", "100")}
    deadlines = [
        float(rows[log][rows[log].index("--deadline") + 1])
        for log in ("unet", "editor")
    ]
    assert 20 < deadlines[1] - deadlines[0] < 100


def test_a_stage_that_fails_ends_the_job_and_says_where_to_look(run):
    job, started, work = run
    with pytest.raises(SystemExit, match=f"pairs failed .*{work}"):
        job(failing="pairs-1")
    assert started[-1][0] == "pairs-1"


def process(code):
    return subprocess.Popen([sys.executable, "-c", code])


@pytest.mark.parametrize("which", PARTS)
def test_what_works_for_a_failed_process_is_stopped_with_it(tmp_path, which):
    """An editor waits for its pairs for ever, and pairs without it are for nobody."""
    codes = {name: "import time; time.sleep(60)" for name in PARTS}
    codes[which] = "raise SystemExit(3)"
    parts = {name: process(code) for name, code in codes.items()}
    *rendering, editor = parts.values()
    job, began = miniature.Job(tmp_path, tmp_path, 2, 1.0), time.monotonic()
    with pytest.raises(SystemExit, match=r"pairs failed with .*3.*: see the logs"):
        job.finish("pairs", *rendering, beside=[editor])
    ends = {name: part.wait(timeout=20) for name, part in parts.items()}
    assert time.monotonic() - began < 30
    assert ends.pop(which) == 3 and set(ends.values()) == {-signal.SIGTERM}


def test_what_works_beside_a_stage_goes_on_after_it(tmp_path):
    editor, rendering = process("import time; time.sleep(60)"), process("")
    miniature.Job(tmp_path, tmp_path, 1, 1.0).finish("x", rendering, beside=[editor])
    assert rendering.poll() == 0 and editor.poll() is None
    editor.kill()
    editor.wait()


def test_a_started_module_leaves_its_log(tmp_path):
    job = miniature.Job(tmp_path, tmp_path, 0, 1.0)
    process = job.start("lm", "pretrain_language", "--help", gpu=0)
    job.finish("language", process)
    assert "grammar" in (tmp_path / "lm.log").read_text()
