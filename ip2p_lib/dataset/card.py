"""The card of a data set: what it holds and how it was generated, as the Hub shows it.

Every number is counted from the pairs or read from the manifest of their run.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ip2p_lib.dataset.dataset import read_encoded_shards, read_manifest
from ip2p_lib.dataset.pairs import EncodedPair
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


def dataset_statistics(
    pairs: Iterable[EncodedPair],
) -> tuple[dict[str, Counter[str]], dict[str, list[float]]]:
    """Count instructions, languages and image sizes, and collect p, cfg and scores."""
    counts = {n: Counter[str]() for n in ("instruction", "language", "image size")}
    values: dict[str, list[float]] = {}
    for pair in pairs:
        record = pair.record
        width, height = Image.open(io.BytesIO(pair.before)).size
        counts["image size"][f"{width} x {height}"] += 1
        counts["instruction"][record["instruction"]] += 1
        counts["language"][record.get("language", "en")] += 1
        settings = {name: record.get(name) for name in ("p", "cfg", "steps")}
        for name, value in (settings | record.get("scores", {})).items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return counts, values


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
    from huggingface_hub import DatasetCard, DatasetCardData

    if license == "other" and license_link is None:
        raise ValueError("license='other' needs a license_link to its text.")
    layout = next((p for p in _LOADING if any(Path(out).glob(p))), None)
    if layout is None:
        raise FileNotFoundError(f"{out} holds no data set; export it first.")
    counts, values = dataset_statistics(read_encoded_shards(source))
    config = {"data_files": [{"split": "train", "path": layout}]}
    data = DatasetCardData(
        pretty_name=name,
        license=license,
        license_link=license_link,
        language=sorted(counts["language"]),
        task_categories=["image-to-image"],
        tags=["instruct-pix2pix", "image-editing"],
        configs=[{"config_name": "default"} | config] if "*" in layout else None,
    )
    card = DatasetCard.from_template(
        data,
        template_str=_TEMPLATE,
        name=name,
        tables=_tables(counts, values, read_manifest(source)),
        loading=_LOADING[layout],
        license=license_link or license,
        attribution=attribution,
    )
    return write_bytes(Path(out) / "README.md", str(card).encode())


def _tables(
    counts: dict[str, Counter[str]],
    values: dict[str, list[float]],
    manifest: dict[str, Any],
) -> dict[str, list[Any]]:
    contents = {
        "pairs": f"{manifest['pairs']:,}",
        "distinct instructions": f"{len(counts.pop('instruction')):,}",
        **{
            f"pairs by {name}": ", ".join(f"{k}: {n:,}" for k, n in counter.items())
            for name, counter in counts.items()
        },
    }
    recorded = {
        f"`{name}`": json.dumps(value)
        for name, value in manifest.items()
        if name not in ("format", "pairs", "shards")
    }
    quantiles = {name: np.quantile(v, QUANTILES) for name, v in values.items()}
    return {
        "Contents": [("what", "how many"), *contents.items()],
        "Generation": [("what", "recorded by the run"), *recorded.items()],
        "Quantiles": [
            ("number", *(f"{share:.0%}" for share in QUANTILES)),
            *([name, *(f"{q:.3f}" for q in row)] for name, row in quantiles.items()),
        ],
    }
