"""What a newcomer waits for: clone, install, run every notebook.

python benchmarks/fresh_clone.py      writes data/results/fresh-clone.json

Clones the last commit into a temporary folder and times ``make run`` there, with the
memory of all its processes. Packages come from pip's cache if it holds them.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from ip2p_lib.config import RESULTS, ROOT
from ip2p_lib.results import write_results


def memory(process: psutil.Process) -> int:
    """Resident bytes of a process and all below it."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def watch(command: list[str], folder: Path) -> tuple[float, int]:
    """Run a command to its end: seconds, and the most bytes it held.

    Raises:
        SystemExit: the command failed.
    """
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command, cwd=folder) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            peak = max(peak, memory(process))
            time.sleep(0.5)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return time.monotonic() - start, peak


def main() -> None:
    """Measure, and keep the times of the notebooks beside the whole."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        seconds, peak = watch(["make", "run"], clone)
        summary = json.loads((clone / "runs" / "summary.json").read_text("utf-8"))
    row = {
        "minutes": round(seconds / 60, 1),
        "peak_gib": round(peak / 2**30, 2),
        "cores": os.cpu_count(),
        "notebooks": {n["name"]: n["seconds"] for n in summary["notebooks"]},
    }
    path, spent = RESULTS / "fresh-clone.json", round(seconds, 1)
    print(write_results(path, [row], seed=0, seconds=spent), row)


if __name__ == "__main__":
    main()
