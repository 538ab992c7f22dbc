"""Run the notebooks in order with papermill, and write one report.

    python -m jobs.notebooks                            every notebook, as it is
    python -m jobs.notebooks 03 07 --set SCALE=smoke    two of them, quickly
    python -m jobs.notebooks 07 --set "INSTRUCTION=make it night SEED=3"  parameters

Parameters are checked before anything runs: papermill alone only warns about a
misspelt name and goes on with the default. Executed notebooks, ``summary.json`` (time
and memory of each) and ``report.html`` land in ``--out``.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import nbclient.output_widget
import nbformat
import papermill
import psutil
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io

from ip2p_lib.files import explain_disk_errors, make_folder, write_bytes, write_json
from ip2p_lib.notebook.lesson import ParameterError
from jobs.notebooks.html_report import Run, report_page
from jobs.notebooks.parameters import check_settings, parse_settings

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
QUIET = {  # what packages would print into the notebooks or over the progress line
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


class AtomicHandler(LocalHandler):
    """Papermill's file handler; a killed run leaves the last whole notebook."""

    def write(self, buf: str, path: str) -> None:
        """Write a notebook's text, whole or not at all."""
        write_bytes(path, buf.encode())


def prepare_papermill(out: Path) -> None:
    """Make papermill write ``out`` atomically and quietly, and cure a deadlock.

    nbclient answers an Output widget's messages over the channel it is itself waiting
    on, and now and then waits for ever (jupyter/nbclient issue 312). Only a live front
    end needs the answer, so here there is none.
    """
    with explain_disk_errors(out, 0):
        make_folder(out)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["IP2P_GENERATED"] = str(out.resolve() / "generated")
    papermill_io.register(str(out.resolve()), AtomicHandler())
    nbclient.output_widget.OutputWidget.send = lambda self, *args, **kwargs: None


def find(names: Sequence[str], folder: Path = FOLDER) -> list[Path]:
    """Find notebooks, in order, by stem (``03_filtering``) or number (``03``).

    Raises:
        FileNotFoundError: no notebook has that name, or there are none.
    """
    every = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not every:
        raise FileNotFoundError(f"There are no notebooks in {folder.name}/.")
    for name in names:
        if not any(name in (p.stem, p.stem[:2]) for p in every):
            stems = ", ".join(p.stem for p in every)
            raise FileNotFoundError(
                f"No notebook is called {name}; there are: {stems}."
            )
    return [p for p in every if not names or {p.stem, p.stem[:2]} & set(names)]


class Watch(threading.Thread):
    """Print which cell runs and for how long, and record the peak memory.

    On a terminal the line is rewritten twice a second; in a log a new line is printed
    every 20 seconds.
    """

    def __init__(self, name: str, cells: int) -> None:
        super().__init__(daemon=True)
        self.name, self.cells, self.cell = name, cells, 0
        self.start_time, self.peak, self._printed = time.monotonic(), 0, 0.0
        self._done = threading.Event()

    @property
    def elapsed(self) -> float:
        """Seconds since the notebook started."""
        return time.monotonic() - self.start_time

    def on_cell_start(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Note the cell that runs; papermill calls this."""
        self.cell = cell_index + 1

    def run(self) -> None:
        """Watch until ``stop`` is called."""
        while not self._done.wait(0.5):
            self.peak = max(self.peak, memory_in_use(psutil.Process()))
            self._print()

    def stop(self, verdict: str) -> None:
        """End the watch and print the verdict with time and memory."""
        self._done.set()
        self.join()
        end = "\r\x1b[2K" if sys.stdout.isatty() else ""
        facts = f"{_clock(self.elapsed)}  {self.peak / 2**30:.1f} GiB"
        print(f"{end}{self.name:<16} {verdict:<20} {facts}", flush=True)

    def _print(self) -> None:
        line = f"{self.name:<16} cell {self.cell} of {self.cells}"
        line = f"{line:<37} {_clock(self.elapsed)}"
        if sys.stdout.isatty():
            print(f"\r\x1b[2K{line}", end="", flush=True)
        elif self.elapsed - self._printed > 20:
            self._printed = self.elapsed
            print(line, flush=True)


def memory_in_use(process: psutil.Process) -> int:
    """Resident bytes of a process and all its descendants."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def execute(path: Path, out: Path, parameters: dict, timeout: int) -> Run:
    """Run one notebook in a fresh kernel; a failing cell ends it.

    Args:
        path: the notebook; its kernel starts in its folder, as in Jupyter.
        out: where the executed notebook goes.
        parameters: already checked, by name.
        timeout: seconds that one cell may take.
    """
    cells = len(nbformat.read(path, as_version=4).cells) + bool(parameters)
    output, error = out.resolve() / path.name, None
    watch = Watch(path.stem, cells)
    watch.start()
    try:
        papermill.execute_notebook(
            path.resolve(),
            output,
            parameters,
            cwd=path.resolve().parent,
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=timeout,
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],
            on_cell_start=watch.on_cell_start,
        )
    except (PapermillExecutionError, TimeoutError) as failure:
        error = _explain(failure, watch.cell)
    finally:
        watch.stop(f"FAILED in cell {watch.cell}" if error else f"{cells} cells")
    return Run(path.stem, output.name, round(watch.elapsed, 1), watch.peak >> 20, error)


def _explain(failure: Exception, cell: int) -> str:
    if isinstance(failure, PapermillExecutionError):
        return f"cell {cell}: {failure.ename}: {failure.evalue}"
    return f"cell {cell} ran past the time limit; --timeout sets it, in seconds"


def run_all(paths: list[Path], out: Path, settings: dict, timeout: int) -> list[Run]:
    """Check every parameter, then run in order up to the first failure.

    Raises:
        ParameterError: before anything runs.
    """
    parameters = check_settings(paths, settings)
    prepare_papermill(out)
    runs: list[Run] = []
    for path in paths:
        runs.append(execute(path, out, parameters[path.stem], timeout))
        facts = {"settings": settings, "notebooks": [asdict(run) for run in runs]}
        write_json(out / "summary.json", facts)
        if runs[-1].error:
            break
    write_bytes(out / "report.html", report_page(runs, out, path.parent).encode())
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.notebooks")
    parser.add_argument("names", nargs="*", help="03_filtering or 03; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "runs")
    parser.add_argument("--timeout", type=int, default=1200, help="seconds a cell")
    options = parser.parse_args(arguments)
    if options.timeout < 1:
        parser.error(f"--timeout must be at least 1 second, not {options.timeout}")
    try:
        settings = parse_settings(options.set)
        paths = find(options.names)
        runs = run_all(paths, options.out, settings, options.timeout)
    except (ParameterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    total, peak = sum(r.seconds for r in runs), max(r.peak_mib for r in runs)
    print(f"{len(runs)} of {len(paths)} notebooks, {_clock(total)} in all, ", end="")
    print(f"peak memory {peak / 1024:.1f} GiB. Report: {options.out / 'report.html'}")
    if runs[-1].error:
        print(f"error: {runs[-1].name}, {runs[-1].error}", file=sys.stderr)
    return 1 if runs[-1].error else 0


if __name__ == "__main__":
    sys.exit(main())
