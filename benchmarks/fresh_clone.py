"""What a newcomer waits for: clone, install, run every notebook.

    python -m benchmarks.fresh_clone      writes data/results/fresh-clone.json

Clones the last commit into a temporary folder and times ``make run`` there, with the
peak memory of all its processes. Packages come from pip's cache if it has them.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from ip2p_lib.config import RESULTS, ROOT
from ip2p_lib.files import read_json
from ip2p_lib.results import ReadmeRow, write_results
from jobs.notebooks.run import memory_in_use


def run_and_watch(command: list[str], folder: Path) -> tuple[float, int]:
    """Run a command; return its seconds and the peak bytes of all its processes.

    Raises:
        SystemExit: the command failed.
    """
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command, cwd=folder) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            peak = max(peak, memory_in_use(process))
            time.sleep(0.5)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return time.monotonic() - start, peak


def main() -> None:
    """Measure the whole run, and write it with the seconds of each notebook."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        seconds, peak = run_and_watch(["make", "run"], clone)
        summary = read_json(clone / "runs" / "summary.json")
    row = {
        "minutes": round(seconds / 60, 1),
        "peak_gib": round(peak / 2**30, 2),
        "cores": os.cpu_count(),
        "notebooks": {n["name"]: n["seconds"] for n in summary["notebooks"]},
    }
    claim = (
        f"`make run` in a fresh clone, installation included, {row['cores']} CPU cores"
    )
    value = f"{row['minutes']:.0f} min, {row['peak_gib']:.1f} GiB"
    readme = [ReadmeRow(claim, value, "25 min, 6 GB", samples=1)]
    path, seconds = RESULTS / "fresh-clone.json", round(seconds, 1)
    print(write_results(path, [row], seed=0, seconds=seconds, readme=readme), row)


if __name__ == "__main__":
    main()
