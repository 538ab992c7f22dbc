"""The card of a data set: what it holds and how it was made, as the Hub reads it.

Every number comes from the pairs or from the manifest that their run wrote; none is
typed in. A manifest may hold these facts, which have a place of their own in the card,
and any others, which are listed as they are:

    run_seed     of all draws
    triplets     outcomes of section 3.1.1, such as {"kept": 6506, "unchanged": 349}
    rendered     pairs rendered (3.1.2)
    kept         of these, pairs that the filter kept
    thresholds   of the filter, as {"image": ..., "text": ..., "direction": ...}
    models       by role, {"path_or_id": ..., "revision": ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ip2p_lib.dataset.dataset import read_manifest, read_packed_shards, stored_bytes
from ip2p_lib.dataset.statistics import Survey, survey
from ip2p_lib.files import write_bytes

SHARES = (0.0, 0.05, 0.5, 0.95, 1.0)  # quantiles of every number
_PLACED = {"format", "pairs", "shards", "run_seed", "triplets", "rendered", "kept"}
_PLACED |= {"thresholds", "models"}
_UP_TO = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}
_ABOUT = """\
Pictures before and after an edit, and the instruction that asks for it, made as section
3.1 of InstructPix2Pix (arXiv 2211.09800) describes.
"""
_HUB = 'load_dataset("FOLDER", split="train", streaming=True)'
# What a folder of each layout holds, and three ways to open it.
_LOADING = {
    "data/train-*.parquet": (
        ("from datasets import load_dataset", _HUB),
        ("from pyarrow.dataset import dataset", 'dataset("FOLDER/data")'),
        ("from ip2p_lib.dataset.parquet import read_parquet", 'read_parquet("FOLDER")'),
    ),
    "pairs-*.tar": (
        ("from datasets import load_dataset", _HUB),
        (
            "from glob import glob\n\nfrom webdataset import WebDataset",
            'WebDataset(sorted(glob("FOLDER/pairs-*.tar")), shardshuffle=False)',
        ),
        ("from ip2p_lib.dataset.dataset import PairDataset", 'PairDataset("FOLDER")'),
    ),
    "seeds.json": (
        ("from edit_dataset import EditDataset", 'EditDataset("FOLDER")'),
        (
            "import json\nfrom pathlib import Path",
            'json.loads(Path("FOLDER/seeds.json").read_text())',
        ),
        (
            "from ip2p_lib.dataset.authors_format import read_folders",
            'read_folders("FOLDER")',
        ),
    ),
}


def write_card(
    source: str | Path,
    out: str | Path,
    *,
    name: str,
    license: str,
    license_link: str | None = None,
    attribution: str = "Nobody is to be named.",
) -> Path:
    """Write ``out/README.md`` for a data set of ours or an export of it.

    Args:
        source: the folder of shards, which is read whole.
        out: ``source`` itself, or what ``export_parquet`` or ``export_folders`` wrote.
        name: of the data set, for people.
        license: as the Hub spells it, such as ``"cc-by-4.0"``.
        license_link: where its text is; needed with ``license="other"``.
        attribution: whom to name, and for what.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: ``out`` holds no data set, or ``source`` none of ours.
        ValueError: the license is ``"other"``, without a link.
        DatasetError: a pair of ``source`` is damaged.
    """
    if license == "other" and license_link is None:
        raise ValueError("license='other' needs a license_link to its text.")
    layout = _layout(Path(out))
    found = survey(read_packed_shards(source))
    fields = {"pretty_name": name, "license": license, "license_link": license_link}
    parts = [
        f"---\n{_header(found, layout, fields)}\n---\n\n# {name}\n\n{_ABOUT}",
        *_sections(found, read_manifest(source), stored_bytes(source)),
        f"## Loading\n\n`FOLDER` is where this file is.\n\n{_loading(layout)}",
        f"## Licence\n\n{license_link or license}. {attribution}\n",
    ]
    return write_bytes(Path(out) / "README.md", "\n".join(parts).encode())


def _layout(folder: Path) -> str:
    for pattern in _LOADING:
        if any(folder.glob(pattern)):
            return pattern
    raise FileNotFoundError(f"{folder} holds no data set; export it first.")


def _header(found: Survey, layout: str, fields: dict[str, Any]) -> str:
    """The YAML that the Hub and ``datasets`` read."""
    from huggingface_hub import DatasetCardData

    train = {"split": "train", "path": layout}
    data = DatasetCardData(
        language=sorted(found.languages),
        task_categories=["image-to-image"],
        size_categories=[*(t for n, t in _UP_TO.items() if found.pairs < n), "n>1M"][
            :1
        ],
        tags=["instruct-pix2pix", "image-editing"],
        configs=[{"config_name": "default", "data_files": [train]}]
        if layout != "seeds.json"
        else None,
        **fields,
    )
    return str(data.to_yaml())


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {n:,}" for name, n in counts.items())


def _sections(found: Survey, manifest: dict[str, Any], size: int) -> Iterator[str]:
    yield f"## Contents\n\n{_contents(found, manifest, size)}"
    yield f"## Making\n\n{_making(found, manifest)}"
    yield f"## Scores\n\n{_scores(found, manifest)}"


def _contents(found: Survey, manifest: dict[str, Any], size: int) -> str:
    rows = [
        ("pairs", f"{found.pairs:,}"),
        ("distinct instructions", f"{len(found.instructions):,}"),
        ("languages of instructions", _counts(found.languages)),
        ("sizes of pictures", _counts(found.sizes)),
        ("as shards", f"{len(manifest['shards'])} of {size / 1e6:.1f} MB together"),
    ]
    return _table(("what", "how many"), rows)


def _making(found: Survey, manifest: dict[str, Any]) -> str:
    rest = {f"`{k}`": json.dumps(v) for k, v in manifest.items() if k not in _PLACED}
    rows = [
        *_funnel(manifest),
        ("pairs here", f"{found.pairs:,}"),
        ("seed of the run", manifest.get("run_seed", "not recorded")),
        ("seeds of pairs", f"{len(found.seeds):,} distinct, each with its pair"),
        *_models(manifest.get("models", {})),
        *rest.items(),
    ]
    return _table(("what", "recorded"), rows)


def _funnel(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What each stage took and left, as far as the run recorded it."""
    if "triplets" in manifest:
        yield "triplets written", _counts(manifest["triplets"])
    for name, told in (("rendered", "pairs rendered"), ("kept", "kept by the filter")):
        if name in manifest:
            yield told, f"{manifest[name]:,}"


def _models(models: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not models:
        yield "models", "not recorded"
    for role, source in models.items():
        revision = source.get("revision") or "no revision"
        yield role, f"`{source['path_or_id']}` at {revision}"


def _scores(found: Survey, manifest: dict[str, Any]) -> str:
    limits = manifest.get("thresholds", {})
    text = limits.get("text")
    limits = {"before": text, "after": text} | limits
    rows = [
        (name, limits.get(name) or "-", *(f"{value:.3f}" for value in values))
        for name, values in found.quantiles(SHARES).items()
    ]
    head = ["number", "at least", *(f"{share:.0%}" for share in SHARES)]
    return f"That share of the pairs lies below:\n\n{_table(head, rows)}"


def _loading(layout: str) -> str:
    snippets = _LOADING[layout]
    return "\n".join(f"```python\n{a}\n\npairs = {b}\n```\n" for a, b in snippets)
