"""The settings of each part of a training run: it is resumed with those it had.

A part begins where ``--changed`` allowed other settings. ``run.json`` in the folder of
a run has the settings of each part, and the step ``after`` which it began.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from ip2p_lib.checkpoint import MANIFEST
from ip2p_lib.config import Scale, Source
from ip2p_lib.diffusion.loading import locate
from ip2p_lib.distributed import rank
from ip2p_lib.editing.editor import find_scale
from ip2p_lib.files import make_folder, read_json, write_json
from jobs.pairs import digest, fingerprint

RUN = "run.json"


def read_parts(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The settings of each part so far of the run in ``--out`` or ``--backup-dir``.

    An empty list if it left no checkpoint: then it begins anew, with any settings.

    Raises:
        ValueError: there are checkpoints, but ``run.json`` is missing or damaged
            (``--changed`` goes on without); or the two folders hold different runs.
    """
    folders = [folder for folder in (args.out, args.backup_dir) if folder]
    for folder in folders:
        make_folder(folder)
    stored = [f for f in folders if any(f.glob(f"step-*/{MANIFEST}"))]
    found = [_read_run(folder, args.changed) for folder in stored]
    parts = max(found, key=len, default=[])
    for folder, others in zip(stored, found, strict=True):
        both = zip(parts, others, strict=False)
        same = all({**a, "steps": 0} == {**b, "steps": 0} for a, b in both)
        if same and others and len(others) < len(parts):  # it missed the last parts
            same = _newest_step(folder) <= parts[len(others)]["after"]
        if not same:
            raise ValueError(
                f"{args.out} and {args.backup_dir} hold checkpoints of two different "
                f"runs, as their {RUN} say. Choose another --backup-dir, or --out."
            )
    return parts


def _read_run(folder: Path, changed: bool) -> list[dict[str, Any]]:
    """The parts in ``run.json``; without it, an error or, with ``changed``, none."""
    path = folder / RUN
    try:
        if path.is_file():
            parts = read_json(path)
            if not isinstance(parts, list) or not parts:
                raise ValueError("it is no list of parts")
            return [{"after": 0, **part} for part in parts]
        problem = (
            f"{folder} has checkpoints and no {RUN}, so nobody knows their settings. "
            "Choose another folder, or pass --changed to go on."
        )
    except (ValueError, TypeError) as error:
        problem = f"{path} is damaged ({error}); --changed goes on without it."
    if not changed:
        raise ValueError(problem)
    return []


def _newest_step(folder: Path) -> int:
    """The highest number of a folder's checkpoints."""
    names = [path.parent.name[5:] for path in folder.glob(f"step-*/{MANIFEST}")]
    return max((int(n) for n in names if n.isascii() and n.isdigit()), default=0)


def current_settings(args: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """All that the steps of a run depend on, by name; data and weights by a hash.

    Raises FileNotFoundError for networks that are not there, before any is loaded.
    """
    locate(scale.backbone, "model_index.json", "There is no model in {folder}.")
    locate(scale.clip, "config.json", "There is no CLIP in {folder}.")
    if args.editor:
        find_scale(args.editor)
    pairs = fingerprint(args.pairs, args.split, args.columns)
    return {
        "pairs": f"{args.pairs.name} {pairs:.8}",
        "validation_pairs": args.validation_pairs,
        "seed": args.seed,
        "flips": args.flips,
        "loss_weighting": args.loss_weighting,
        "lora_rank": args.lora_rank,
        "backbone": _identify(scale.backbone),
        "clip": _identify(scale.clip),
        "editor": args.editor
        and _identify(find_scale(args.editor).editor, args.editor),
        **vars(scale.training),
    }


def check_settings(args: argparse.Namespace, scale: Scale) -> list[dict[str, Any]]:
    """Compare the settings with those of the run that is resumed.

    Before anything is written: a command that is refused changes nothing.

    Returns:
        All parts of the run; the last one has these settings, and its ``after`` is None
        if it is new.

    Raises:
        ValueError: they differ, and ``--changed`` does not allow it.
    """
    if not args.pairs.exists():
        raise FileNotFoundError(f"There is nothing at {args.pairs}.")
    settings = current_settings(args, scale)
    parts = read_parts(args)
    if not parts:
        return [{"after": 0, **settings}]
    earlier = dict(parts[-1])
    if not settings["decay"] and settings["steps"] >= earlier.get("steps", 0):
        earlier["steps"] = settings["steps"]  # only longer
    changes = [name for name, value in settings.items() if earlier.get(name) != value]
    if changes and not args.changed:
        told = ", ".join(f"{n} {earlier.get(n)}, now {settings[n]}" for n in changes)
        raise ValueError(
            f"The run in {args.out} had {told}. Repeat its command, choose another "
            "--out, or pass --changed to go on with the new settings."
        )
    if changes:
        return [*parts, {"after": None, **settings}]
    return [*parts[:-1], {**parts[-1], **settings}]


def _identify(source: Source, name: str = "") -> str:
    """Name of networks, and a short hash of all their weights or the revision."""
    folder = Path(source.path_or_id)
    files = sorted(folder.rglob("*.safetensors"))
    weights = hashlib.sha256(str([digest(file) for file in files]).encode())
    return f"{Path(name or folder).name} {source.revision or weights.hexdigest()[:8]}"


def write_parts(
    args: argparse.Namespace, parts: list[dict[str, Any]], step: int
) -> None:
    """Note the settings of every part, in the backup folder too; process 0 does it."""
    parts[-1]["after"] = step if parts[-1]["after"] is None else parts[-1]["after"]
    if rank() == 0:
        for folder in filter(None, (args.out, args.backup_dir)):
            write_json(folder / RUN, parts)
