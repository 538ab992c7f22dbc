"""Edit many images by one instruction: files, folders of photos, frames of a film.

    python -m jobs.edit photos/ cat.jpg --instruction "make it winter" --out winter

Each edit becomes a PNG in ``--out``, under the name of its image; ``edits.csv`` says
how it was made, or why not. The same command goes on after any stop; an edit made with
other options, or of an image that has changed since, is made again. A file that is no
edit of ours is never overwritten, and columns that you add to the table are kept. Every
image is edited from the same noise, so that frames flicker less.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ip2p_lib.config import SCALES
from ip2p_lib.editing import Editor, load_editor
from ip2p_lib.files import run_lock, sha256_of, write_bytes
from ip2p_lib.images import FORMATS, ImageError, load

TABLE = "edits.csv"
# Also kinds that cannot be read: their rows say so.
SUFFIXES = {f".{name.lower()}" for name in (*FORMATS, "jpg", "jfif", "tif")}
SUFFIXES |= {".heic", ".heif", ".avif"}
OPTIONS = ("instruction", "text_scale", "image_scale", "steps", "seed", "editor")
COLUMNS = ("output", "image", "sha256", *OPTIONS, "error")
STOPPED = "stopped before it was written"  # the error of an edit that may be an older
Row = dict[str, str]


def find_images(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Images named or in the folders named, in order; each with its PNG's name.

    What is in ``out`` is an edit, not an image to edit.

    Raises:
        FileNotFoundError: a path does not exist, or a folder has no image.
        ValueError: two edits would have one name, or an edit would replace its image.
    """
    names: dict[Path, Path] = {}
    own = out.resolve()
    for path in paths:
        found = {_place(path): Path(path.name)}
        if path.is_dir():
            inside = path.resolve().is_relative_to(own)
            files = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES)
            found = {
                _place(image): image.relative_to(path)
                for image in files
                if not (image.is_dir() or image.name.startswith("."))
                and (inside or not _place(image).is_relative_to(own))
            }
        if not found or not path.exists():
            raise FileNotFoundError(f"There is no image at {path}.")
        names |= {image: name.with_suffix(".png") for image, name in found.items()}
    images: dict[Path, Path] = {}
    for image, name in names.items():
        if (other := images.setdefault(name, image)) != image:
            raise ValueError(f"{other} and {image} would both become {name}.")
    originals = {image.resolve() for image in names}
    if lost := [n for n in images if (out / n).resolve() in originals]:
        raise ValueError(f"{out / lost[0]} would be overwritten; choose another --out.")
    return names


def _place(path: Path) -> Path:
    """The same for every way to name a file; a link is not followed."""
    return path.parent.resolve() / path.name


def read_table(path: Path) -> dict[str, Row]:
    """The rows of earlier runs by the edit's name; empty if there were none.

    Raises ValueError if it is damaged, or another table.
    """
    if not path.is_file():
        return {}
    try:
        # Names of files need not be UTF-8: write_table keeps their bytes too.
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if lost := {"output", "image", "error"} - {*(reader.fieldnames or ())}:
            raise ValueError(f"no column {min(lost)}")
        rows = list(reader)
        table = {row["output"]: row for row in rows}
        if len(table) < len(rows):
            raise ValueError("an output is there twice")
        if any(None in (*row, *row.values()) for row in rows):
            raise ValueError("a row has more or fewer cells than the first line")
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged ({error}), or no table of this job. Move it away, or "
            "choose another --out."
        ) from error
    for row in rows:
        row.pop("modified", None)  # of earlier versions
    return table


def write_table(path: Path, rows: Collection[Row]) -> None:
    """Write the table, whole or not at all, with all columns of its rows."""
    text = io.StringIO(newline="")
    names = [*COLUMNS, *(name for row in rows for name in row)]
    table = csv.DictWriter(text, list(dict.fromkeys(names)))
    table.writeheader()
    table.writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def edit_images(
    editor: Editor, images: dict[Path, Path], out: Path, options: dict[str, Any]
) -> Iterator[Row]:
    """Edit every image that has no edit with these options yet; yields its row.

    Args:
        editor: makes the edits.
        images: from ``find_images``.
        out: folder of the edits and of the table, which is written after each.
        options: ``instruction``, ``text_scale``, ``image_scale``, ``steps``, ``seed``
            of ``Editor.edit``, and the name of the ``editor``.
    """
    table = read_table(out / TABLE)
    for image, name in images.items():
        _check_owner(out / name, image, table.get(str(name)))
    texts = {name: str(value) for name, value in options.items()}
    arguments = {name: x for name, x in options.items() if name != "editor"}
    for image, name in images.items():
        earlier = table.get(str(name), {})
        row = {"sha256": "", **earlier, "output": str(name), "image": str(image)}
        row |= {**texts, "error": ""}
        try:
            row["sha256"] = sha256_of(image)
            if row != earlier or not _is_image(out / name):
                edited, file = editor.edit(load(image), **arguments), io.BytesIO()
                edited.save(file, "PNG")
                table[str(name)] = row | {"error": STOPPED}
                write_table(out / TABLE, table.values())
                write_bytes(out / name, file.getvalue())
        except (ImageError, OSError) as error:
            row["error"] = str(error)
            row["sha256"] *= os.path.lexists(out / name)  # empty: there is no edit
        if table.get(str(name)) != row:
            table[str(name)] = row
            write_table(out / TABLE, table.values())
        yield row


def _check_owner(edit: Path, image: Path, row: Row | None) -> None:
    """Raise ValueError if there is a file that is no edit of this image."""
    if row is None or row.get("sha256") == "":  # it could not be read, nor edited
        if os.path.lexists(edit):
            raise ValueError(
                f"{edit} would be overwritten, and {TABLE} does not list it as an "
                "edit. Move it away, or choose another --out."
            )
        return
    same = image.is_file() and sha256_of(image) == row.get("sha256")  # was moved
    if not same and _place(Path(row["image"])) != image:
        other = row["image"]
        raise ValueError(f"{edit} is of {other}, not {image}: another --out?")


def _is_image(path: Path) -> bool:
    """Whether the file is whole: a crash or a full disk may leave an empty one."""
    try:
        return bool(load(path))
    except (ImageError, OSError):
        return False


def _weights_of(editor: Editor) -> str:
    """A short hash of the U-Net's weights: a folder may hold others later."""
    digest = hashlib.blake2b(digest_size=4)
    for weight in editor.backbone.unet.parameters():
        digest.update(weight.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("images", nargs="+", type=Path, help="files and folders")
    add("--instruction", required=True)
    add("--out", required=True, type=Path, help="folder of the edits")
    add("--editor", default="miniature", help=f"{', '.join(SCALES)}, or a folder")
    add("--text-scale", type=float, help="default: the editor's")
    add("--image-scale", type=float, help="default: the editor's")
    add("--steps", type=int, help="default: the editor's")
    add("--seed", type=int, default=0)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Edit; the exit status is 1 if an image could not be edited, 2 if none could."""
    args = _arguments(words)
    try:
        images = find_images(args.images, args.out)
        editor = load_editor(args.editor)
        own = editor.settings
        options = {
            name: getattr(own if given is None else args, name)
            for name, given in vars(args).items()
            if name in OPTIONS
        }
        options["editor"] = f"{args.editor} {_weights_of(editor)}"
        with run_lock(args.out):
            edits = edit_images(editor, images, args.out, options)
            rows = list(tqdm(edits, total=len(images), unit="image"))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return 130
    failed = [row for row in rows if row["error"]]
    for row in failed:
        print(f"error: {row['error']}", file=sys.stderr)
    print(f"{len(rows) - len(failed)} of {len(rows)} images edited, in {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
