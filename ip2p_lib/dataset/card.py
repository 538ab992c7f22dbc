"""The card of a data set: what it holds and how it was generated, as the Hub shows it.

Every number is counted from the pairs or read from the manifest of their run.
"""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from ip2p_lib.dataset.dataset import read_encoded_shards, read_manifest
from ip2p_lib.files import write_bytes

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}

Images before and after an edit, and the instruction for it, generated as section 3.1 of
InstructPix2Pix (arXiv 2211.09800) describes.

## Contents

| what | how many |
| --- | --- |
{% for name, value in contents.items() %}| {{ name }} | {{ value }} |
{% endfor %}
## Generation

| what | recorded by the run |
| --- | --- |
{% for name, value in recorded.items() %}| `{{ name }}` | {{ value }} |
{% endfor %}
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
    attribution: str = "No attribution required.",
) -> Path:
    """Write ``out/README.md`` for a folder of shards or an export of it.

    Args:
        source: the folder of shards, which is read completely.
        out: ``source`` itself, or what ``export_parquet`` or ``export_folders`` wrote;
            FileNotFoundError if one of them holds no data set.
        name, license: as the Hub spells them, such as "cc-by-4.0".
        attribution: whom to name, and for what.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    layout = next((p for p in _LOADING if any(Path(out).glob(p))), None)
    if layout is None:
        raise FileNotFoundError(f"{out} holds no data set; export it first.")
    languages, texts = _read_tables(source)
    texts |= {"name": name, "license": license, "attribution": attribution}
    config = {"config_name": "default", "data_files": layout}
    metadata = DatasetCardData(
        pretty_name=name,
        license=license,
        language=languages,
        task_categories=["image-to-image"],
        tags=["instruct-pix2pix", "image-editing"],
        configs=[config] if "*" in layout else None,
    )
    card = DatasetCard.from_template(
        metadata, template_str=_TEMPLATE, loading=_LOADING[layout], **texts
    )
    return write_bytes(Path(out) / "README.md", str(card).encode())


def _read_tables(source: str | Path) -> tuple[list[str], dict[str, Any]]:
    """The languages, and the card's two tables; no image is decoded."""
    counts = {name: Counter[str]() for name in ("language", "image size")}
    instructions = set[str]()
    for pair in read_encoded_shards(source):
        width, height = Image.open(io.BytesIO(pair.before)).size
        counts["image size"][f"{width} x {height}"] += 1
        counts["language"][pair.record["language"]] += 1
        instructions.add(pair.record["instruction"])
    contents = {"distinct instructions": f"{len(instructions):,}"}
    for name, counter in counts.items():
        row = ", ".join(f"{value}: {n:,}" for value, n in counter.items())
        contents[f"pairs by {name}"] = row
    manifest, hidden = read_manifest(source), ("format", "shards")
    recorded = {k: json.dumps(v) for k, v in manifest.items() if k not in hidden}
    return sorted(counts["language"]), {"contents": contents, "recorded": recorded}
