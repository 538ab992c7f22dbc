"""What may stay in a notebook that is committed: clean outputs, compressed images."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re

import nbformat
import PIL.Image
import PIL.ImageChops
import PIL.ImageStat
from nbformat import NotebookNode

LIMIT = 600_000  # bytes of a published notebook
COLAB = "colab"  # tag of the cells that jobs/notebooks/address.py writes
WIDGET = "application/vnd.jupyter.widget-view+json"
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_FAULTS = {  # in outputs that are text
    "a machine's path": r"(?<![\w.:/-])/(home|root|Users|tmp|var|work|mnt|opt|usr)/\w",
    "an object's address": r"\b0x[0-9a-f]{6,}",
    "progress-bar litter": r"\r|\x1b\[",
    "a script": r"<script|javascript:",
    "an image from the network": r"<img[^>]+src=.https?:",
}


def source_hash(notebook: NotebookNode) -> str:
    """SHA-256 of the type, tags and source of every cell but those for Colab."""
    cells = [[c.cell_type, tags(c), c.source] for c in notebook.cells]
    own = [cell for cell in cells if COLAB not in cell[1]]
    return hashlib.sha256(json.dumps(own).encode()).hexdigest()


def tags(cell: NotebookNode) -> list[str]:
    """A cell's tags, such as ``parameters``."""
    return list(cell.metadata.get("tags", []))


def clean(notebook: NotebookNode) -> None:
    """Drop what differs from run to run (times, paths, ids), and compress images."""
    drop_widgets(notebook)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    )
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = nbformat.from_dict({"tags": tags(cell)} if tags(cell) else {})
        if COLAB in tags(cell) and cell.cell_type == "code":
            cell.execution_count, cell.outputs = None, []
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                data = base64.b64decode(output.data.pop("image/png"))
                kind, data = compress(data)
                output.data[f"image/{kind}"] = base64.b64encode(data).decode()
                output.metadata = nbformat.from_dict({})


def drop_widgets(notebook: NotebookNode) -> None:
    """Leave of every widget the still image that ``ip2p_lib.notebook.panel`` adds."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if {"image/png", "image/jpeg"} & data.keys():
                data.pop(WIDGET, None)


def compress(png: bytes) -> tuple[str, bytes]:
    """Encode an image again, smaller: photographs as JPEG, plots as PNG.

    If 256 colours reproduce it to a fifth of a level (of 255, in the mean), it is a
    plot, whose lines and letters stay sharp in a PNG. A photograph or generated image
    would show steps in every sky; it becomes a JPEG of quality 90.

    Returns:
        ``"jpeg"`` or ``"png"``, and the bytes.
    """
    image = PIL.Image.open(io.BytesIO(png)).convert("RGB")
    palette = image.quantize(256, dither=PIL.Image.Dither.NONE)
    error = PIL.ImageChops.difference(image, palette.convert("RGB"))
    file = io.BytesIO()
    if max(PIL.ImageStat.Stat(error).mean) < 0.2:
        palette.save(file, "PNG", optimize=True)
        return "png", file.getvalue()
    image.save(file, "JPEG", quality=90, optimize=True)
    return "jpeg", file.getvalue()


def faults(notebook: NotebookNode) -> list[str]:
    """Reasons why a notebook may not be committed; empty when it may."""
    code = [c for c in notebook.cells if c.cell_type == "code"]
    counts = [c.execution_count for c in code if COLAB not in tags(c)]
    first = 1 + len(code) - len(counts) if counts[:1] != [1] else 1
    reasons = []
    if counts != list(range(first, first + len(counts))):
        reasons.append("is not one run from top to bottom")
    if len(nbformat.writes(notebook)) > LIMIT:
        reasons.append(f"is larger than {LIMIT // 1000} kB")
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            reasons += [f"cell {index + 1}: {f}" for f in _output_faults(output)]
    return reasons


def _output_faults(output: NotebookNode) -> list[str]:
    if output.output_type == "error" or output.get("name") == "stderr":
        return [f"{output.get('ename', 'text')} on standard error"]
    data = output.get("data", {})
    texts = [output.get("text", "")]
    texts += [v for k, v in data.items() if k.startswith("text/") or k.endswith("xml")]
    plain = re.sub(r"data:image/[^\"')]*", "", "\n".join(texts))
    reasons = [name for name, pattern in _FAULTS.items() if re.search(pattern, plain)]
    live = {"application/javascript", WIDGET} & data.keys()
    return reasons + [f"live content ({kind})" for kind in sorted(live)]
