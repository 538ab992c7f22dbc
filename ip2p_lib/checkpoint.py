"""Save training so that a stop at any moment loses nothing that was saved before.

A checkpoint is a folder of two files: the tensors (safetensors, named by their own
SHA-256) and ``manifest.json``, which names them. The manifest is put in place last, by
one rename, so a folder is either complete or has no manifest that names it; every byte
is verified on reading. Nothing here is ever unpickled. The paper says nothing of this;
``training`` decides what to save.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint is incomplete or damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """What ``load`` read; ``refused`` says which newer checkpoints were damaged."""

    folder: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    refused: tuple[str, ...] = ()


def save(folder: str | Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a checkpoint; if ``folder`` holds one, it stays valid until replaced.

    Args:
        folder: made if missing.
        tensors: on any device.
        state: JSON values, such as the number of the step.

    Returns:
        ``folder``.

    Raises:
        OSError: the disk is full or not writable; an older checkpoint is untouched.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _require_space(folder, sum(t.numel() * t.element_size() for t in tensors.values()))
    partial = folder / f".partial-{os.getpid()}"
    try:
        cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(cpu, partial)
        _sync(partial)
        digest = _sha256(partial)
        file = f"{digest[:16]}.safetensors"
        os.replace(partial, folder / file)
        body = {"file": file, "sha256": digest, "state": state}
        partial.write_text(json.dumps({"body": body, "sha256": _seal(body)}, indent=1))
        _sync(partial)
        os.replace(partial, folder / MANIFEST)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        if _is_full(error):
            raise _no_room(folder, "the disk filled up while writing") from error
        raise
    finally:
        partial.unlink(missing_ok=True)
    for old in folder.iterdir():  # of the checkpoint replaced, or of a killed save
        if old.name not in (file, MANIFEST):
            old.unlink()
    return folder


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names has reached the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders and writes their names at once
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _no_room(
            folder, f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} free"
        )


def _no_room(folder: Path, detail: str) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"No room for a checkpoint ({detail}). Older checkpoints are untouched; free "
        "some space or save elsewhere",
        str(folder),
    )


def _is_full(error: Exception) -> bool:
    """Recognise a full disk; safetensors reports it as an error of its own."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error)


def load(folder: str | Path) -> Checkpoint:
    """Read one checkpoint and verify every byte of it.

    Raises:
        FileNotFoundError: there is no checkpoint in ``folder``.
        CheckpointError: it is incomplete or damaged; the message says where.
    """
    folder = Path(folder)
    if not _is_complete(folder):
        raise FileNotFoundError(f"No complete checkpoint in {folder}: no {MANIFEST}.")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        body = manifest["body"]
        intact = _seal(body) == manifest["sha256"]
        intact = intact and _sha256(folder / body["file"]) == body["sha256"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"The checkpoint {folder} cannot be read: {error}"
        ) from error
    if not intact:
        raise CheckpointError(
            f"The checkpoint {folder} is damaged: its SHA-256 differs from the one it "
            "was saved with. Use an older checkpoint."
        )
    return Checkpoint(folder, load_file(folder / body["file"]), body["state"])


def _numbered(root: Path) -> list[Path]:
    """List the folders ``<word>-<number>`` under ``root``, highest number first."""
    found = {f: re.search(r"-(\d+)$", f.name) for f in root.glob("*-*") if f.is_dir()}
    numbers = {folder: int(match[1]) for folder, match in found.items() if match}
    return sorted(numbers, key=lambda folder: -numbers[folder])


def _is_complete(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def latest(root: str | Path) -> Checkpoint | None:
    """Read the newest intact checkpoint among ``root/step-<number>``.

    Damaged ones are passed over and named in ``refused``. None means that nothing was
    ever saved here: damage is never mistaken for a fresh start.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
    """
    refused: list[str] = []
    for folder in filter(_is_complete, _numbered(Path(root))):
        try:
            return replace(load(folder), refused=tuple(refused))
        except CheckpointError as error:
            refused.append(str(error))
    if refused:
        raise CheckpointError(
            f"No checkpoint under {root} is intact. To start over, choose another "
            "folder or remove this one. " + " ".join(refused)
        )
    return None


def prune(root: str | Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints, and what killed saves left.

    Raises:
        ValueError: ``keep`` is below 1.
    """
    if keep < 1:
        raise ValueError(f"At least one checkpoint must be kept, not {keep}.")
    folders = _numbered(Path(root))
    kept = list(filter(_is_complete, folders))[:keep]
    for folder in folders:
        if folder not in kept:
            shutil.rmtree(folder)
