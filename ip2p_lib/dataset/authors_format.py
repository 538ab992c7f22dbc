"""Pairs in the layout of the authors' released scripts (section 3.1.2).

    0000000/prompt.json      {"input": caption, "edit": instruction, "output": ...}
    0000000/<seed>_0.jpg     before; <seed>_1.jpg after
    0000000/metadata.jsonl   a line per seed: p, guidance scale, the four CLIP scores
    seeds.json               [["0000000", ["<seed>", ...]], ...]

There is a folder per triplet. ``generate_img_dataset.py`` writes them,
``prepare_dataset.py`` the list of seeds, and ``edit_dataset.py`` trains from both.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ip2p_lib.dataset.dataset import read_each, read_encoded_shards, stored_bytes
from ip2p_lib.dataset.pairs import TEXTS, EncodedPair, Pair, Problem, make_pair
from ip2p_lib.files import atomic_directory
from ip2p_lib.images import load

SEEDS, PROMPT, METADATA = "seeds.json", "prompt.json", "metadata.jsonl"
_SCORES = {  # the released name of each score
    "clip_sim_0": "before",
    "clip_sim_1": "after",
    "clip_sim_dir": "direction",
    "clip_sim_image": "image",
}
_EXPORT = r"\d{7}|seeds\.json|README\.md"


def export_folders(
    source: str | Path, out: str | Path, *, replace: bool = False
) -> Path:
    """Write a data set of shards as the authors' scripts do, with JPEG images.

    The JPEG quality is 100, as in the released script, which also halves the resolution
    of colour; here it stays full.

    Arguments and errors are those of ``hub.export_parquet``; ValueError also says that
    a triplet has two pairs of one seed, which would be one file.
    """
    names: dict[tuple[str, ...], str] = {}  # of the triplets' folders
    seeds: dict[str, list[int]] = {}
    needed, replaces = stored_bytes(source), _EXPORT if replace else None
    with atomic_directory(Path(out), needed=needed, replaces=replaces) as folder:
        for pair in read_encoded_shards(source):
            texts = tuple(pair.record[name] for name in TEXTS)
            name = names.setdefault(texts, f"{len(names):07d}")
            used, seed = seeds.setdefault(name, []), pair.record.get("seed")
            used.append(len(used) if seed is None else seed)
            if used.count(used[-1]) > 1:
                raise ValueError(f"The pair {pair.key} repeats seed {seed}.")
            _write_pair(pair, folder / name, used[-1])
        listing = [[name, sorted(map(str, used))] for name, used in seeds.items()]
        (folder / SEEDS).write_text(json.dumps(listing), encoding="utf-8")
    return Path(out)


def _write_pair(pair: EncodedPair, folder: Path, seed: int) -> None:
    record, scores = pair.record, pair.record.get("scores", {})
    if not folder.exists():
        folder.mkdir()
        texts = zip(("input", "edit", "output"), TEXTS, strict=True)
        prompt = {key: record[name] for key, name in texts if record[name]}
        text = json.dumps(prompt, ensure_ascii=False)
        (folder / PROMPT).write_text(text, encoding="utf-8")
    for number, data in enumerate((pair.before, pair.after)):
        buffer = io.BytesIO()  # PIL may leave a truncated file on a full disk
        load(data).save(buffer, "JPEG", quality=100, subsampling=0)
        (folder / f"{seed}_{number}.jpg").write_bytes(buffer.getvalue())
    line = {
        "seed": seed,
        "p2p_threshold": record.get("p"),
        "cfg_scale": record.get("cfg"),
        **{name: scores[ours] for name, ours in _SCORES.items() if ours in scores},
        # The released scripts do not have the following.
        "key": pair.key,
        **{name: record.get(name) for name in ("steps", "language", "words")},
    }
    with (folder / METADATA).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_folders(
    folder: str | Path, *, problems: list[Problem] | None = None
) -> Iterator[Pair]:
    """Read the pairs that are there in the authors' layout, by folder and seed.

    ``seeds.json`` is not needed; the released one lists 10,434 folders that do not
    exist. ``problems`` is as in ``dataset.read_shards``.

    Raises:
        FileNotFoundError: there is no such data set.
        DatasetError: a pair cannot be used; the message names folder and seed.
    """
    triplets = sorted(path.parent for path in Path(folder).glob(f"*/{PROMPT}"))
    if not triplets:
        raise FileNotFoundError(f"{folder} has no folders with a {PROMPT}.")
    readings = (
        (triplet.name, f"seed {seed}", partial(_read, triplet, seed))
        for triplet in triplets
        for seed in sorted({int(p.stem[:-2]) for p in triplet.glob("*_[01].jpg")})
    )
    return read_each(readings, problems)


def _read(folder: Path, seed: int) -> Pair:
    before, after = (load(folder / f"{seed}_{number}.jpg") for number in (0, 1))
    line = _read_metadata(folder / METADATA).get(seed, {})
    prompt = _parse(folder / PROMPT, (folder / PROMPT).read_bytes())
    caption = prompt.get("input", prompt.get("caption", ""))  # the script's name
    return make_pair(
        line.get("key") or f"{folder.name}-{seed}",
        (before, after),
        (caption, prompt.get("edit", ""), prompt.get("output", "")),
        seed=seed,
        p=line.get("p2p_threshold"),
        cfg_scale=line.get("cfg_scale"),
        steps=line.get("steps"),
        scores={ours: line[name] for name, ours in _SCORES.items() if name in line},
        word_edit=line.get("words") or {},
        **({"language": line["language"]} if line.get("language") else {}),
    )


def _read_metadata(path: Path) -> dict[int, dict[str, Any]]:
    """Metadata by seed; the last line counts where a seed was generated twice."""
    if not path.is_file():
        return {}
    rows = [_parse(path, line) for line in path.read_bytes().splitlines() if line]
    return {row["seed"]: row for row in rows if "seed" in row}


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        return {**json.loads(data)}
    except (ValueError, TypeError) as error:
        raise ValueError(f"its {path.name} is no JSON ({error})") from error
