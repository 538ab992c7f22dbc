"""Pairs in the layout of the authors' released scripts (section 3.1.2).

    0000000/prompt.json      {"input": caption, "edit": instruction, "output": ...}
    0000000/<seed>_0.jpg     before; <seed>_1.jpg after
    0000000/metadata.jsonl   a line per seed: p, guidance scale, the four CLIP scores
    seeds.json               [["0000000", ["<seed>", ...]], ...]

There is a folder per triplet. ``generate_img_dataset.py`` writes them,
``prepare_dataset.py`` the list of seeds, and ``edit_dataset.py`` trains from both.
"""

import io
import itertools
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ip2p_lib.dataset.dataset import (
    Reading,
    read_each,
    read_encoded_shards,
    refuse,
    stored_bytes,
)
from ip2p_lib.dataset.pairs import TEXTS, EncodedPair, Pair, Problem, make_pair
from ip2p_lib.files import atomic_directory, decode_text
from ip2p_lib.images import load

SEEDS, PROMPT, METADATA = "seeds.json", "prompt.json", "metadata.jsonl"
_SCORES = {  # the released name of each score
    "clip_sim_0": "before",
    "clip_sim_1": "after",
    "clip_sim_dir": "direction",
    "clip_sim_image": "image",
}
_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_IMAGE = re.compile(rf"(0|-?[1-9]\d*)_([01])\.(?i:{'|'.join(_SUFFIXES)})", re.ASCII)
_FOREIGN = (  # of a file that does not belong
    f"it is no <seed>_0 or <seed>_1 image ({', '.join(_SUFFIXES)}), or the second one "
    "of its name"
)
_FILES = r"prompt\.json|metadata\.jsonl|-?\d+_[01]\.jpg"
_EXPORT = rf"\d{{7}}/({_FILES})|seeds\.json|README\.md"


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
    older = _EXPORT if replace else None, SEEDS
    with atomic_directory(Path(out), *older, needed=stored_bytes(source)) as folder:
        for pair in read_encoded_shards(source):
            texts = tuple(pair.record[name] for name in TEXTS)
            name = names.setdefault(texts, f"{len(names):07d}")
            used, seed = seeds.setdefault(name, []), pair.record.get("seed")
            free = next(n for n in itertools.count(len(used)) if n not in used)
            used.append(free if seed is None else seed)
            if used.count(used[-1]) > 1:
                raise ValueError(f"The pair {pair.key} repeats seed {seed}.")
            _write_pair(pair, folder / name, used[-1])
        listing = [[name, sorted(map(str, used))] for name, used in seeds.items()]
        (folder / SEEDS).write_text(json.dumps(listing), encoding="utf-8")
    return Path(out)


def _write_pair(pair: EncodedPair, folder: Path, seed: int) -> None:
    record, scores = pair.record, pair.record.get("scores") or {}
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
    exist. Images may also be PNG or WebP; hidden files, as macOS leaves them, do not
    count. ``problems`` is as in ``dataset.read_shards``.

    Raises:
        FileNotFoundError: there is no such data set, or not one image in it.
        DatasetError: a pair cannot be used, a prompt is without images, or a file is no
            part of this layout; the message names the folder, and seed or file.
    """
    triplets = sorted(path for path in Path(folder).glob("*") if path.is_dir())
    if not any((triplet / PROMPT).is_file() for triplet in triplets):
        raise FileNotFoundError(f"{folder} has no folders with a {PROMPT}.")
    if not any(_IMAGE.fullmatch(p.name) for t in triplets for p in t.iterdir()):
        raise FileNotFoundError(f"The folders in {folder} hold no <seed>_0 images.")
    keys = set[str]()
    readings = [r for n, t in enumerate(triplets) for r in _readings(t, n, keys)]
    for path in sorted(Path(folder).glob("[!.]*")):  # images in no folder
        if path.suffix.lower()[1:] in _SUFFIXES:
            readings.append((path.parent.name, path.name, partial(refuse, _FOREIGN)))
    return read_each(readings, problems)


def _readings(folder: Path, number: int, keys: set[str]) -> Iterator[Reading[Pair]]:
    """One for each seed of a folder, and one for each file that does not belong."""
    images: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _IMAGE.fullmatch(path.name)
        if match and match[2] not in images.setdefault(int(match[1]), {}):
            images[int(match[1])][match[2]] = path
        elif path.name not in (PROMPT, METADATA) and not path.name.startswith("."):
            yield folder.name, path.name, partial(refuse, _FOREIGN)
    for seed, files in sorted(images.items()):
        read = partial(_read, folder, number, seed, files, keys)
        yield folder.name, f"seed {seed}", read


def _read(
    folder: Path, number: int, seed: int, files: dict[str, Path], keys: set[str]
) -> Pair:
    if len(files) < 2:
        raise ValueError(f"There is no image beside {next(iter(files.values())).name}")
    before, after = (load(files[side]) for side in "01")
    line = _read_metadata(folder / METADATA).get(seed, {})
    prompt = _parse(folder / PROMPT, (folder / PROMPT).read_bytes())
    caption = prompt.get("input", prompt.get("caption", ""))  # the script's name
    # Other names than the released scripts' may hold what a key may not.
    own = folder.name.isascii() and folder.name.isdecimal()
    name = folder.name if own else f"folder-{number:07d}"
    key = line.get("key") or f"{name}-{seed}"
    if key in keys:
        raise ValueError(f"its key {key!r} occurs twice")
    keys.add(key)
    return make_pair(
        key,
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
    if odd := [row for row in rows if type(row.get("seed")) is not int]:
        raise ValueError(f"its {path.name} has a line without a whole seed: {odd[0]}")
    return {row["seed"]: row for row in rows}


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        return {**json.loads(decode_text(data, path.name))}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"its {path.name} is no JSON ({error})") from error
