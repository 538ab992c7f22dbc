"""Write the README's table of results, and all results into ``docs/results.md``.

    python -m jobs.readme.table             tables and cards, from data/results/*.json
    python -m jobs.readme.table --images    also the README's images, edited anew

Every result file carries its own rows (``ip2p_lib.results.ReadmeRow``), so no figure
is typed here; ``tests/jobs/test_readme.py`` compares the documents with the files.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

import torch

from ip2p_lib.config import RESULTS, ROOT, preset
from ip2p_lib.files import write_bytes
from ip2p_lib.filtering.calibration import proportion_ci
from jobs.readme.cards import write_cards
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
    "miniature-judge",
    "miniature-lm",
    "miniature-training",
    "rendering-sd15-cuda",
    "training-sd15-cuda",
    "editing-cpu",
    "fresh-clone",
)

# Columns of the table of edit types; a file has some of them.
EDIT_COLUMNS = {
    "kind": "edit type",
    "group": "edit type",
    "samples": "samples",
    "done": "edit done",
    "kept": "rest kept",
    "both": "both",
    "nearer_target": "nearer to the target caption",
    "l1": "L1 to the ground truth",
    "l1_truth": "L1 to the ground truth",
    "l1_input": "the unedited input's",
    "l1_untouched": "the unedited input's",
}


def read_results(name: str) -> dict[str, Any]:
    """Read one result file by name, such as ``"miniature-vae"``."""
    results: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return results


def read_rows(name: str) -> list[dict[str, Any]]:
    """Read the rows that a result file has for the tables; none for most of them."""
    rows: list[dict[str, Any]] = read_results(name).get("readme", [])
    return rows


def with_interval(value: str, samples: int | None) -> str:
    """Add the 95 % interval to a percentage of ``samples``; other values stay."""
    percentage = re.fullmatch(r"([\d.]+) ?%", value)
    if not percentage or not samples:
        return value
    hits = torch.arange(samples) < round(float(percentage[1]) / 100 * samples)
    interval = proportion_ci(hits)
    return f"{value} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


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
            value = with_interval(row["value"], row["samples"])
            cells = [row["claim"], value, row["aim"], samples, device]
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
    rows = read_results("miniature-editor")["rows"]
    rows = [row for row in rows if scales.items() <= row.items()]
    columns = {key: head for key, head in EDIT_COLUMNS.items() if key in rows[0]}
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[_edit_cell(row, key) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _edit_cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if key.startswith("l1"):
        return f"{value:.3f}"
    if interval := row.get(f"{key}_interval"):
        low, high = (100 * bound for bound in interval)
        return f"{value:.1%} ({low:.1f} to {high:.1f})"
    return with_interval(f"{value:.1%}", row["samples"])


def results_page() -> str:
    """Format ``docs/results.md``: the README's rows, all others, the edit types."""
    others = sorted({path.stem for path in RESULTS.glob("*.json")} - set(IN_README))
    return (
        "# All results\n\n"
        "Written by `python -m jobs.readme.table` from the files that the runs wrote "
        "in [data/results](../data/results); each file also has its seed, its "
        "package versions and its seconds. A commit that ends in `-dirty` in the file "
        "had changes that were not committed. Percentages are followed by their 95 % "
        "interval (Wilson, or by the bootstrap).\n\n"
        f"{table([*IN_README, *others], with_files=True)}\n\n"
        "## Edit types\n\nThe shipped editor on held-out scenes, from "
        "[miniature-editor](../data/results/miniature-editor.json). Where the edit's "
        "distance to the ground truth is above the unedited input's, a small change "
        "costs more elsewhere in the image than it gains.\n\n"
        f"{table_of_edit_types()}\n"
    )


def main() -> None:
    """Write tables, cards and the drawing, and the images if ``--images`` is given."""
    if "--images" in sys.argv[1:]:
        draw_images()
    draw_pipeline()
    write_bytes(PAGE, results_page().encode())
    write_bytes(README, fill_readme(README.read_text("utf-8")).encode())
    write_cards(table_of_edit_types(), vars(preset("miniature").editing))


if __name__ == "__main__":
    main()
