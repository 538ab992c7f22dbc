"""Pairs in the layout of the authors' released scripts (section 3.1.2).

    0000000/prompt.json      {"input": caption, "edit": instruction, "output": ...}
    0000000/<seed>_0.jpg     before; <seed>_1.jpg after
    0000000/metadata.jsonl   a line for each seed: p, guidance, the four CLIP scores
    seeds.json               [["0000000", ["<seed>", ...]], ...]

There is a folder for each triplet. ``generate_img_dataset.py`` writes them,
``prepare_dataset.py`` the list of seeds, and ``edit_dataset.py`` reads both to train.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ip2p_lib.dataset.dataset import (
    DatasetError,
    read_packed_shards,
    stored_bytes,
    usable,
)
from ip2p_lib.dataset.pairs import PackedPair, Pair, Problem, attempt, decode, make_pair
from ip2p_lib.folders import atomic_directory
from ip2p_lib.images import load

SEEDS = "seeds.json"
_TEXTS = {"input": "caption", "edit": "instruction", "output": "edited_caption"}
_FACTS = {"p2p_threshold": "p", "cfg_scale": "cfg", "steps": "steps"}
_SCORES = {  # released name: ours
    "clip_sim_0": "before",
    "clip_sim_1": "after",
    "clip_sim_dir": "direction",
    "clip_sim_image": "image",
}
_OLDER = r"\d{7}|seeds\.json|README\.md"


def export_folders(
    source: str | Path,
    out: str | Path,
    *,
    quality: int = 100,
    replace: bool = False,
    problems: list[Problem] | None = None,
    max_bad: float = 0.05,
) -> Path:
    """Write a data set of ours as the authors' scripts do; the pictures become JPEG.

    ``edit_dataset.py`` then trains on it. Only a list of folders and seeds is held in
    memory; the folder appears when it is whole.

    Args:
        source: a folder of shards.
        out: a new folder.
        quality: of the JPEG files. The released script takes 100 and halves the
            resolution of colour, which stays full here.
        replace: whether an older export in ``out`` gives way to the new one.
        problems, max_bad: as ``dataset.read_shards``.

    Returns:
        ``out``.

    Raises:
        ValueError: a triplet has two pairs of one seed, which would be one file.
        FileExistsError, FolderInUseError, DatasetError, OSError: as in
            ``pair_parquet.export_parquet``.
    """
    pairs = read_packed_shards(source, problems=problems, max_bad=max_bad)
    older = _OLDER if replace else None
    needed = stored_bytes(source)
    with atomic_directory(Path(out), needed=needed, replaces=older) as folder:
        seeds = _write_pairs(pairs, folder, quality)
        listing = [[name, sorted(map(str, taken))] for name, taken in seeds.items()]
        _write_json(listing, folder / SEEDS)
    return Path(out)


def _write_pairs(
    pairs: Iterable[PackedPair], folder: Path, quality: int
) -> dict[str, list[int]]:
    """Write all pairs; returns the seeds in each triplet's folder."""
    names: dict[tuple[str, ...], str] = {}
    seeds: dict[str, list[int]] = {}
    for pair in pairs:
        texts = tuple(pair.record[text] for text in _TEXTS.values())
        name = names.setdefault(texts, f"{len(names):07d}")
        taken = seeds.setdefault(name, [])
        taken.append(_add(pair, folder / name, taken, quality))
    return seeds


def _add(pair: PackedPair, folder: Path, taken: list[int], quality: int) -> int:
    """Write one pair among those of its triplet; returns the seed that names it."""
    known = pair.record.get("seed")
    seed: int = len(taken) if known is None else known
    if seed in taken:
        raise ValueError(f"The pair {pair.key} repeats the seed {seed} of its triplet.")
    if not taken:
        folder.mkdir()
        texts = {key: pair.record[name] for key, name in _TEXTS.items()}
        _write_json({k: text for k, text in texts.items() if text}, _prompt(folder))
    for number, data in enumerate((pair.before, pair.after)):
        _picture(folder, seed, number).write_bytes(_jpeg(data, quality))
    with _metadata(folder).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(_to_line(pair, seed), ensure_ascii=False) + "\n")
    return seed


def _jpeg(data: bytes, quality: int) -> bytes:
    """The picture as JPEG; in memory, since PIL may cut a file short on a full disk."""
    buffer = io.BytesIO()
    decode(data).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _prompt(folder: Path) -> Path:
    return folder / "prompt.json"


def _metadata(folder: Path) -> Path:
    return folder / "metadata.jsonl"


def _picture(folder: Path, seed: int, number: int) -> Path:
    return folder / f"{seed}_{number}.jpg"


def _to_line(pair: PackedPair, seed: int) -> dict[str, Any]:
    """The released keys, and after them what only we record."""
    record, scores = pair.record, pair.record.get("scores", {})
    return {
        "seed": seed,
        **{name: record.get(ours) for name, ours in _FACTS.items()},
        **{name: scores[ours] for name, ours in _SCORES.items() if ours in scores},
        "key": pair.key,
        "language": record.get("language"),
        "words": record.get("words", {}),
    }


def read_folders(
    folder: str | Path, *, problems: list[Problem] | None = None
) -> Iterator[Pair]:
    """Pairs of the authors' layout, in order of folder and seed.

    The caption may stand under ``input`` (the released set) or ``caption`` (what the
    released script writes). Without ``seeds.json``, as before ``prepare_dataset.py``,
    the pictures that are there count.

    Args:
        folder: as the authors' scripts or ``export_folders`` leave it.
        problems: a list that collects the pairs that cannot be used, such as folders
            that ``seeds.json`` names and are absent; without it, the first one stops
            the reading.

    Raises:
        FileNotFoundError: no such data set.
        DatasetError: ``seeds.json`` or a pair cannot be used; the message says where.
    """
    items = (
        attempt(name, f"seed {seed}", partial(_read, Path(folder) / name, seed))
        for name, seeds in _listing(Path(folder))
        for seed in seeds
    )
    return usable(items, problems)


def _listing(folder: Path) -> list[tuple[str, list[int]]]:
    if not (folder / SEEDS).is_file():
        found = _found(folder)
        if not found:
            raise FileNotFoundError(
                f"{folder} holds neither {SEEDS} nor folders with a prompt.json."
            )
        return found
    try:
        listing = json.loads((folder / SEEDS).read_bytes())
        return [(Path(name).name, [int(s) for s in seeds]) for name, seeds in listing]
    except (ValueError, TypeError) as error:
        raise DatasetError(
            f"{folder / SEEDS} is no list of [folder, [seeds]] ({error}). Remove it: "
            "without it, the pictures that are there count."
        ) from error


def _found(folder: Path) -> list[tuple[str, list[int]]]:
    names = sorted(path.parent for path in folder.glob("*/prompt.json"))
    seeds = [[p.stem.removesuffix("_0") for p in n.glob("*_0.jpg")] for n in names]
    return [(n.name, sorted(map(int, s))) for n, s in zip(names, seeds, strict=True)]


def _read(folder: Path, seed: int) -> Pair:
    before, after = (load(_picture(folder, seed, number)) for number in (0, 1))
    line = _lines(folder).get(seed, {})
    scores = {ours: line[name] for name, ours in _SCORES.items() if name in line}
    return make_pair(
        line.get("key") or f"{folder.name}-{seed}",
        before,
        after,
        _texts(_prompt(folder)),
        seed=seed,
        p=line.get("p2p_threshold"),
        cfg_scale=line.get("cfg_scale"),
        steps=line.get("steps"),
        scores=scores,
        words=line.get("words", {}),
        **({"language": line["language"]} if line.get("language") else {}),
    )


def _texts(path: Path) -> tuple[str, str, str]:
    prompt = _parsed(path, path.read_bytes())
    caption = prompt.get("input", prompt.get("caption", ""))
    return caption, prompt.get("edit", ""), prompt.get("output", "")


def _lines(folder: Path) -> dict[int, dict[str, Any]]:
    """Metadata by seed; of a seed that a second run repeated, the last line."""
    if not _metadata(folder).is_file():
        return {}
    with _metadata(folder).open("rb") as lines:
        rows = [_parsed(_metadata(folder), line) for line in lines if line.strip()]
    return {row["seed"]: row for row in rows if "seed" in row}


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        return {**json.loads(data)}
    except (ValueError, TypeError) as error:
        raise ValueError(f"its {path.name} is no JSON ({error})") from error
