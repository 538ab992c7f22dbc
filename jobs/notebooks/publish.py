"""Run the notebooks and write them back with their outputs, for readers on the web.

    python -m jobs.notebooks.publish            every notebook, SCALE miniature
    python -m jobs.notebooks.publish 03 07      two of them

What is committed is one run from top to bottom; ``outputs.lock.json`` has a hash of
each notebook's sources, and a test compares it (``tests/jobs/test_notebooks.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

from ip2p_lib.files import read_json, write_bytes, write_json
from jobs.notebooks.outputs import clean, faults, source_hash
from jobs.notebooks.run import FOLDER, find, run_all

RUNS = FOLDER.parent / "runs" / "publish"


def publish(paths: Sequence[Path], out: Path = RUNS, timeout: int = 1200) -> list[str]:
    """Run, clean and write back each notebook; return what is wrong, if anything.

    A notebook with a fault stays as it was; its run is in ``out``.
    """
    problems = []
    for path in paths:
        run = run_all([path], out, {}, timeout)[0]
        notebook = nbformat.read(out / run.output, as_version=4)
        clean(notebook)
        reasons = [run.error] if run.error else faults(notebook)
        problems += [f"{path.stem}: {reason}" for reason in reasons]
        if not reasons:
            write_bytes(path, f"{nbformat.writes(notebook)}\n".encode())
            _record_hash(path, source_hash(notebook))
    return problems


def _record_hash(path: Path, digest: str) -> None:
    lock = path.with_name("outputs.lock.json")
    hashes = read_json(lock) if lock.exists() else {}
    hashes = {k: v for k, v in hashes.items() if path.with_name(f"{k}.ipynb").exists()}
    write_json(lock, dict(sorted((hashes | {path.stem: digest}).items())))


def main(names: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    try:
        problems = publish(find(names))
    except (ValueError, FileNotFoundError) as error:
        problems = [str(error)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
