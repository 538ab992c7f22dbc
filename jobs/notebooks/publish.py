"""Write the notebooks' outputs into the repository: one clean run, then cleaned.

    python -m jobs.notebooks.publish            every notebook, SCALE miniature
    python -m jobs.notebooks.publish 03 07      two of them

A reader on a web page sees every figure before running anything. What is committed is
one run from top to bottom; ``outputs.lock.json`` has a hash of each notebook's sources,
so that sources and outputs cannot drift apart (``tests/test_notebooks.py``).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from jobs.notebooks.run import FOLDER, QUIET, find, run_all, write_atomically
from jobs.notebooks.widget_stills import VIEW, replace_widgets

LIMIT = 500_000  # bytes a published notebook
RUNS = FOLDER.parent / "runs" / "publish"
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_EMBEDDED = re.compile(r"(data:image/png;base64,)([A-Za-z0-9+/=]+)")
_FAULTS = {  # in outputs that are text
    "a machine's path": r"(?<![\w.:/-])/(home|root|Users|tmp|var|work|mnt|opt|usr)/\w",
    "an object's address": r"\b0x[0-9a-f]{6,}",
    "progress-bar litter": r"\r|\x1b\[",
    "a script": r"<script|javascript:",
    "a picture from the network": r"<img[^>]+src=.https?:",
}


def source_hash(notebook: NotebookNode) -> str:
    """SHA-256 of what a person wrote: kind, tags and source of every cell."""
    cells = [[c.cell_type, _tags(c), c.source] for c in notebook.cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def clean(notebook: NotebookNode) -> None:
    """Drop what differs from run to run: timings, paths, ids, widget state."""
    replace_widgets(notebook)
    shrink_pictures(notebook)
    kept = {k: v for k, v in notebook.metadata.items() if k in ("accelerator", "colab")}
    notebook.metadata = nbformat.from_dict(
        kept | {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    )
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = nbformat.from_dict({"tags": _tags(cell)} if _tags(cell) else {})


def shrink_pictures(notebook: NotebookNode) -> None:
    """Reduce every PNG to 256 colours, which keeps most figures a third in size."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = _shrink(data["image/png"])
            if "text/html" in data:
                page = "".join(data["text/html"])
                data["text/html"] = _EMBEDDED.sub(
                    lambda m: m.group(1) + _shrink(m.group(2)), page
                )


def _shrink(encoded: str) -> str:
    original = base64.b64decode(encoded)
    picture = Image.open(io.BytesIO(original)).convert("RGB")
    small = io.BytesIO()
    palette = picture.quantize(256, dither=Image.Dither.NONE)
    palette.save(small, "PNG", optimize=True)
    best = min(original, small.getvalue(), key=len)
    return base64.b64encode(best).decode()


def faults(notebook: NotebookNode) -> list[str]:
    """Why this notebook may not be committed; empty when it may."""
    code = [c for c in notebook.cells if c.cell_type == "code"]
    found = []
    if [c.execution_count for c in code] != list(range(1, len(code) + 1)):
        found.append("is not one run from top to bottom")
    if len(nbformat.writes(notebook)) > LIMIT:
        found.append(f"is larger than {LIMIT // 1000} kB")
    for index, cell in enumerate(notebook.cells):
        outputs = cell.get("outputs", [])
        found += [f"cell {index + 1}: {f}" for o in outputs for f in _output_faults(o)]
    return found


def publish(paths: Sequence[Path], out: Path = RUNS, timeout: int = 1200) -> list[str]:
    """Run, clean and write back each notebook; returns what is wrong, if anything.

    A notebook with a fault stays as it was; its run lies in ``out`` to look at.
    """
    problems = []
    for path in paths:
        run = run_all([path], out, {}, timeout)[0]
        notebook = nbformat.read(out / run.output, as_version=4)
        clean(notebook)
        found = [run.error] if run.error else faults(notebook)
        problems += [f"{path.stem}: {fault}" for fault in found]
        if not found:
            write_atomically(path, nbformat.writes(notebook) + "\n")
            _lock(path, source_hash(notebook))
    return problems


def _lock(path: Path, digest: str) -> None:
    lock = path.with_name("outputs.lock.json")
    hashes = json.loads(lock.read_text()) if lock.exists() else {}
    hashes = {k: v for k, v in hashes.items() if path.with_name(f"{k}.ipynb").exists()}
    text = json.dumps(hashes | {path.stem: digest}, indent=1, sort_keys=True)
    write_atomically(lock, text + "\n")


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _output_faults(output: NotebookNode) -> list[str]:
    if output.output_type == "error" or output.get("name") == "stderr":
        return [f"{output.get('ename', 'text')} on standard error"]
    data = output.get("data", {})
    texts = [output.get("text", "")]
    texts += [v for k, v in data.items() if k.startswith("text/") or k.endswith("xml")]
    plain = re.sub(r"data:image/[^\"')]*", "", "\n".join(texts))
    found = [name for name, pattern in _FAULTS.items() if re.search(pattern, plain)]
    live = {"application/javascript", VIEW} & data.keys()
    return found + [f"live content ({kind})" for kind in sorted(live)]


def main(names: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})
    try:
        problems = publish(find(names))
    except (ValueError, FileNotFoundError) as error:
        problems = [str(error)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
