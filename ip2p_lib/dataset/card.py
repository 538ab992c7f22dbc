"""The card of a data set: what it holds and how it was generated, as the Hub shows it.

Every number is counted from the pairs or read from the manifest of their run.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ip2p_lib.dataset.dataset import read_encoded_shards, read_manifest
from ip2p_lib.files import write_bytes

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}

Images before and after an edit, and the instruction for it, generated as section 3.1 of
InstructPix2Pix (arXiv 2211.09800) describes.
{% for title, rows in tables.items() %}
## {{ title }}

{% for row in rows %}| {{ row | join(" | ") }} |
{% if loop.first %}|{{ " --- |" * (row | length) }}
{% endif %}{% endfor %}{% endfor %}
## Loading

`FOLDER` is where this file is.

```python
{{ loading }}
```

## Licence

{{ license }}. {{ attribution }}
"""
# The files of each layout, and how to open them.
_LOADING = {
    "data/train-*.parquet": "from datasets import load_dataset\n\n"
    'pairs = load_dataset("FOLDER", split="train", streaming=True)',
    "pairs-*.tar": "from ip2p_lib.dataset import PairDataset\n\n"
    'pairs = PairDataset("FOLDER")',
    "seeds.json": "from ip2p_lib.dataset import read_folders\n\n"
    'pairs = read_folders("FOLDER")',
}


def write_card(
    source: str | Path,
    out: str | Path,
    *,
    name: str,
    license: str,
    license_link: str | None = None,
    attribution: str = "No attribution required.",
) -> Path:
    """Write ``out/README.md`` for a folder of shards or an export of it.

    Args:
        source: the folder of shards, which is read completely.
        out: ``source`` itself, or what ``export_parquet`` or ``export_folders`` wrote.
        name, license, license_link: as the Hub spells them; a license of your own is
            ``"other"`` with the link to its text.
        attribution: whom to name, and for what.

    Raises:
        FileNotFoundError: ``out`` or ``source`` holds no data set.
        ValueError: the license is ``"other"``, without a link.
    """
    from huggingface_hub import DatasetCard

    if license == "other" and license_link is None:
        raise ValueError("license='other' needs a license_link to its text.")
    layout = next((p for p in _LOADING if any(Path(out).glob(p))), None)
    if layout is None:
        raise FileNotFoundError(f"{out} holds no data set; export it first.")
    languages, tables = _tables(source)
    card = DatasetCard.from_template(
        _metadata(name, license, license_link, languages, layout),
        template_str=_TEMPLATE,
        name=name,
        tables=tables,
        loading=_LOADING[layout],
        license=license_link or license,
        attribution=attribution,
    )
    return write_bytes(Path(out) / "README.md", str(card).encode())


def _metadata(
    name: str, license: str, link: str | None, languages: list[str], layout: str
) -> Any:
    """What the Hub and ``datasets`` read in a card."""
    from huggingface_hub import DatasetCardData

    config = {"config_name": "default", "data_files": layout}
    return DatasetCardData(
        pretty_name=name,
        license=license,
        license_link=link,
        language=languages,
        task_categories=["image-to-image"],
        tags=["instruct-pix2pix", "image-editing"],
        configs=[config] if "*" in layout else None,
    )


def _tables(source: str | Path) -> tuple[list[str], dict[str, list[Any]]]:
    """The languages, and the card's tables; no image is decoded."""
    counts = {n: Counter[str]() for n in ("language", "image size", "instruction")}
    values: dict[str, list[float]] = {}
    for pair in read_encoded_shards(source):
        width, height = Image.open(io.BytesIO(pair.before)).size
        counts["image size"][f"{width} x {height}"] += 1
        counts["instruction"][pair.record["instruction"]] += 1
        counts["language"][pair.record["language"]] += 1
        settings = {name: pair.record.get(name) for name in ("p", "cfg", "steps")}
        for name, value in (settings | pair.record.get("scores", {})).items():
            if value is not None:
                values.setdefault(name, []).append(value)
    distinct = len(counts.pop("instruction"))
    contents = [("what", "how many"), ("distinct instructions", f"{distinct:,}")]
    for name, counter in counts.items():
        row = ", ".join(f"{value}: {n:,}" for value, n in counter.items())
        contents.append((f"pairs by {name}", row))
    recorded, hidden = read_manifest(source).items(), ("format", "shards")
    rows = [(f"`{key}`", json.dumps(v)) for key, v in recorded if key not in hidden]
    quantiles = [["number", *(f"{q:.0%}" for q in QUANTILES)]]
    for name, column in values.items():
        cells = [f"{value:.3f}" for value in np.quantile(column, QUANTILES)]
        quantiles.append([name, *cells])
    return sorted(counts["language"]), {
        "Contents": contents,
        "Generation": [("what", "recorded by the run"), *rows],
        "Quantiles": quantiles,
    }
