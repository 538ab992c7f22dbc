"""Save training so that a stop at any moment loses nothing that was saved before.

A checkpoint is a folder of two files: the tensors (safetensors, named by their own
SHA-256) and ``manifest.json``, which names them. The manifest is put in place last, by
one rename, so a folder is either complete or has no manifest that names it. A save
ends by reading back what it wrote, a load begins so, and nothing is deleted unless a
newer checkpoint reads back intact. Nothing here is ever unpickled. The paper says
nothing of this; ``training`` decides what to save, ``recovery`` when.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ip2p_lib.files import atomic_write, explain_disk_errors, require_room

MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint is incomplete or damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """What ``load`` read; ``refused`` says which newer ones were passed over, and why.

    ``newest`` is the highest number that was seen, refused or not.
    """

    folder: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    refused: tuple[str, ...] = ()
    newest: int = 0


def size_of(tensors: dict[str, Tensor]) -> int:
    """Bytes that the tensors take, in memory and on disk."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def save(folder: str | Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a checkpoint; if ``folder`` holds one, it stays valid until replaced.

    Args:
        folder: made if missing.
        tensors: on any device.
        state: JSON values, such as the number of the step.

    Returns:
        ``folder``, once every byte has been read back and is right.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are untouched.
        CheckpointError: the disk gave back other bytes than were written.
    """
    folder = Path(folder)
    size = size_of(tensors)
    require_room(folder, size)
    with explain_disk_errors(folder, size):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file, digest = _write_tensors(folder, tensors)
            body = {"file": file, "sha256": digest, "state": state}
            with atomic_write(folder / MANIFEST) as manifest:
                manifest.write(_encode(body))
            _sync(folder)
            _sync(folder.parent)
        finally:
            _sweep(folder)
    verify(folder)
    return folder


def _sweep(folder: Path) -> None:
    """Remove what no manifest names: of a replaced, a failed or a killed save."""
    try:
        named = {MANIFEST, json.loads((folder / MANIFEST).read_bytes())["body"]["file"]}
    except (OSError, ValueError, KeyError, TypeError):
        named = {MANIFEST}
    for stray in folder.iterdir():
        if stray.name not in named:
            stray.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _write_tensors(folder: Path, tensors: dict[str, Tensor]) -> tuple[str, str]:
    """Write the tensors whole; returns the file's name and SHA-256."""
    partial = folder / f".partial-{os.getpid()}"
    cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        save_file(cpu, partial)
        _sync(partial)
        digest = _sha256(partial)
        os.replace(partial, folder / f"{digest[:16]}.safetensors")
    except SafetensorError as error:
        raise _as_os_error(error) from error
    finally:
        partial.unlink(missing_ok=True)
    return f"{digest[:16]}.safetensors", digest


def _as_os_error(error: SafetensorError) -> Exception:
    """Read the system's number out of the words of safetensors, which hide it."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else error


def _encode(body: dict[str, Any]) -> bytes:
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"body": body, "sha256": seal}, indent=1).encode()


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


def verify(folder: str | Path) -> dict[str, Any]:
    """Check every byte of a checkpoint against its SHA-256; returns the manifest.

    Raises:
        FileNotFoundError: there is no checkpoint in ``folder``.
        CheckpointError: it is damaged, or a file of it is missing.
    """
    folder = Path(folder)
    if not _is_complete(folder):
        raise FileNotFoundError(f"No complete checkpoint in {folder}: no {MANIFEST}.")
    try:
        written = (folder / MANIFEST).read_bytes()
        body = json.loads(written)["body"]
        intact = written == _encode(body)  # so no byte goes unnoticed, not even a space
        intact = intact and _sha256(folder / body["file"]) == body["sha256"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        words = f"The checkpoint {folder} cannot be read: {error}"
        raise CheckpointError(words) from error
    if not intact:
        raise CheckpointError(
            f"The checkpoint {folder} is damaged: its SHA-256 differs from the one it "
            "was saved with. Use an older checkpoint."
        )
    return body


def load(folder: str | Path) -> Checkpoint:
    """Read one checkpoint and verify every byte of it; errors as in ``verify``."""
    body, folder = verify(folder), Path(folder)
    return Checkpoint(folder, load_file(folder / body["file"]), body["state"])


def _numbered(*roots: Path) -> list[Path]:
    """List the folders ``<word>-<number>`` under all roots, highest number first."""
    folders = [f for root in roots for f in root.glob("*-*") if f.is_dir()]
    numbers = {f: int(m[1]) for f in folders if (m := re.search(r"-(\d+)$", f.name))}
    return sorted(numbers, key=lambda folder: -numbers[folder])


def _is_complete(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def newest_state(*roots: str | Path) -> dict[str, Any] | None:
    """Read what the newest manifest says, no tensor; None if there is none."""
    for folder in _numbered(*map(Path, roots)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return dict(json.loads((folder / MANIFEST).read_bytes())["body"]["state"])
    return None


def latest(*roots: str | Path) -> Checkpoint | None:
    """Read the newest intact checkpoint among ``<root>/step-<number>`` of all roots.

    Damaged and half-written ones are passed over and named in ``refused``; of two with
    one number, that of the earlier root is preferred. None means that nothing was ever
    saved here: damage is never mistaken for a fresh start.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
    """
    refused, folders = list[str](), _numbered(*map(Path, roots))
    for folder in folders:
        try:
            newest = int(folders[0].name.rpartition("-")[2])
            return replace(load(folder), refused=tuple(refused), newest=newest)
        except (CheckpointError, FileNotFoundError) as error:
            refused.append(str(error))
    if any(map(_is_complete, folders)):
        raise CheckpointError(
            f"No checkpoint under {' or '.join(map(str, roots))} is intact. To start "
            "over, choose another folder or remove this one. " + " ".join(refused)
        )
    return None


def prune(root: str | Path, keep: int, *, intact: Path | None = None) -> None:
    """Remove all but the ``keep`` newest checkpoints, and what killed saves left.

    Counting starts at the newest that reads back intact, and damaged ones above it stay
    where they are; if none is intact, no complete checkpoint is removed.

    Args:
        root: holds the folders ``<word>-<number>``.
        keep: at least 1.
        intact: a checkpoint just verified, if any: it is not read again.

    Raises:
        ValueError: ``keep`` is below 1.
    """
    if keep < 1:
        raise ValueError(f"At least one checkpoint must be kept, not {keep}.")
    folders = _numbered(Path(root))
    complete = list(filter(_is_complete, folders))
    newest = next((f for f in complete if f == intact or _is_intact(f)), None)
    first = complete.index(newest) if newest else len(complete)
    for folder in folders:
        if folder not in complete or folder in complete[first + keep :]:
            shutil.rmtree(folder)


def _is_intact(folder: Path) -> bool:
    try:
        return bool(verify(folder))
    except CheckpointError:
        return False
