"""Write the README's table of results, and all results into ``docs/results.md``.

    python -m jobs.readme.table             both tables, from data/results/*.json
    python -m jobs.readme.table --images    also the README's images, edited anew

Every result file carries its own rows (``ip2p_lib.results.ReadmeRow``), so no figure
is typed here; ``tests/jobs/test_readme.py`` compares the documents with the files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from ip2p_lib.config import RESULTS, ROOT, preset
from ip2p_lib.files import write_bytes
from jobs.readme.images import draw_images
from jobs.readme.pipeline import draw_pipeline

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = (
    "<!-- results: written by jobs/readme/table.py -->",
    "<!-- end of results -->",
)
# The files whose rows the README shows, quality first; docs/results.md has all.
IN_README = (
    "miniature-editor",
    "miniature-unet",
    "miniature-vae",
    "miniature-judge",
    "miniature-lm",
    "miniature-training",
    "rendering-sd15-cuda",
    "training-sd15-cuda",
    "editing-cpu",
    "fresh-clone",
)


def read_results(name: str) -> dict[str, Any]:
    """Read one result file by name, such as ``"miniature-vae"``."""
    results: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return results


def read_rows(name: str) -> list[dict[str, Any]]:
    """Read the rows that a result file has for the tables; none for most of them."""
    rows: list[dict[str, Any]] = read_results(name).get("readme", [])
    return rows


def table(names: Iterable[str], *, with_files: bool = False) -> str:
    """Format the rows of the named result files as a Markdown table.

    Args:
        names: result files, in the order in which their rows are to stand.
        with_files: add columns for the file, the date and the commit of each row.
    """
    header = ["what is measured", "result", "aim", "samples", "on"]
    header += ["file", "date", "commit"] if with_files else []
    lines = [header, ["---"] * len(header)]
    for name in names:
        results = read_results(name)
        link = f"[{name}](../data/results/{name}.json)"
        origin = [link, results["date"][:10], results["commit"][:7]]
        for row in read_rows(name):
            samples = "" if row["samples"] is None else f"{row['samples']:,}"
            device = row["device"].replace("80GB HBM3", "").strip()
            device = device if "NVIDIA" in device else f"CPU ({device})"
            cells = [row["claim"], row["value"], row["aim"], samples, device]
            lines.append(cells + (origin if with_files else []))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fill_readme(text: str) -> str:
    """Replace the table between the two markers of the README's text.

    Raises:
        ValueError: a marker is missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md needs the lines {BEGIN!r} and {END!r}.")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table(IN_README)}\n{END}{after}"


def table_of_edit_types() -> str:
    """Format the editor's results for each edit type, at its default scales."""
    editing = preset("miniature").editing
    scales = {"text_scale": editing.text_scale, "image_scale": editing.image_scale}
    head = ["edit type", "samples", "nearer to the target caption"]
    head += ["L1 to the ground truth", "the unedited input's"]
    lines = [head, ["---"] * len(head)]
    for row in read_results("miniature-editor")["rows"]:
        if scales.items() <= row.items():
            share, counts = f"{row['nearer_target']:.1%}", f"{row['samples']:,}"
            distances = [f"{row['l1_truth']:.3f}", f"{row['l1_untouched']:.3f}"]
            lines.append([row["kind"], counts, share, *distances])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def results_page() -> str:
    """Format ``docs/results.md``: the README's rows, all others, the edit types."""
    others = sorted({path.stem for path in RESULTS.glob("*.json")} - set(IN_README))
    return (
        "# All results\n\n"
        "Written by `python -m jobs.readme.table` from the files that the runs wrote "
        "in [data/results](../data/results); each file also has its seed, its "
        "package versions and its seconds. A commit that ends in `-dirty` in the file "
        "had changes that were not committed.\n\n"
        f"{table([*IN_README, *others], with_files=True)}\n\n"
        "## Edit types\n\nThe shipped editor on held-out scenes, from "
        "[miniature-editor](../data/results/miniature-editor.json). Where the edit's "
        "distance to the ground truth is above the unedited input's, a small change "
        "costs more elsewhere in the image than it gains.\n\n"
        f"{table_of_edit_types()}\n"
    )


def main() -> None:
    """Write both tables and the drawing, and the images if ``--images`` is given."""
    if "--images" in sys.argv[1:]:
        draw_images()
    draw_pipeline()
    write_bytes(PAGE, results_page().encode())
    write_bytes(README, fill_readme(README.read_text("utf-8")).encode())


if __name__ == "__main__":
    main()
