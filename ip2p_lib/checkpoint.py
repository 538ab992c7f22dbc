"""Save and load training checkpoints that survive a kill at any moment.

A checkpoint is a folder with ``tensors.safetensors`` and ``manifest.json``, which holds
the state and the SHA-256 of both. It is written under a hidden name and renamed, so it
is complete or absent; ``load`` verifies every byte. ``latest`` and ``prune`` know those
called ``step-<number>``; old ones go only below a newer one that was read back.
"""

import hashlib
import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ip2p_lib.files import atomic_directory, sha256_of

MANIFEST, TENSORS = "manifest.json", "tensors.safetensors"
_DAMAGE = (ValueError, KeyError, TypeError, OSError, RecursionError)


class CheckpointError(ValueError):
    """A checkpoint is incomplete or damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read."""

    folder: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    refused: tuple[str, ...] = ()  # why newer ones were skipped


def size_of(tensors: dict[str, Tensor]) -> int:
    """Bytes that the tensors take, in memory and on disk."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def save(folder: str | Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a checkpoint; one that ``folder`` already holds is replaced at the end.

    ``state`` are JSON values, such as the step number. Raises OSError if the disk is
    full or write-protected; older checkpoints are untouched.
    """
    folder, ours = Path(folder), r"manifest\.json|[^/]*\.safetensors"
    cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic_directory(folder, needed=size_of(cpu), replaces=ours) as partial:
        try:
            save_file(cpu, partial / TENSORS)
        except SafetensorError as error:  # it hides the system's error number
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), str(error)) from error
            raise
        body = {"sha256": sha256_of(partial / TENSORS), "state": state}
        (partial / MANIFEST).write_bytes(_encode(body))
    return folder


def _encode(body: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"body": body, "sha256": digest}, indent=1).encode()


def verify(folder: str | Path) -> dict[str, Any]:
    """Check every byte of a checkpoint against its SHA-256; returns its state.

    Raises:
        FileNotFoundError: there is no checkpoint in ``folder``.
        CheckpointError: it is damaged, or a file is missing.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"No complete checkpoint in {folder}: no {MANIFEST}.")
    try:
        body = _read_manifest(folder)
        if sha256_of(folder / TENSORS) != body["sha256"]:
            raise ValueError("its SHA-256 differs from the one it was saved with")
    except _DAMAGE as error:
        message = f"The checkpoint {folder} is damaged: {error}."
        raise CheckpointError(message) from error
    return dict(body["state"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What ``save`` wrote into a manifest, bit for bit; one of ``_DAMAGE`` if not."""
    data = (folder / MANIFEST).read_bytes()
    body: dict[str, Any] = json.loads(data)["body"]
    if data != _encode(body):
        raise ValueError(f"its {MANIFEST} is not as it was saved")
    return body


def load(folder: str | Path) -> Checkpoint:
    """Read one checkpoint and verify every byte of it; errors as in ``verify``."""
    state, folder = verify(folder), Path(folder)
    return Checkpoint(folder, load_file(folder / TENSORS), state)


def numbered(*roots: Path) -> list[Path]:
    """List the folders ``step-<number>`` under all roots, highest number first."""
    folders = [f for root in roots for f in root.glob("step-*") if f.is_dir()]
    ours = [f for f in folders if re.fullmatch(r"step-[0-9]+", f.name)]
    return sorted(ours, key=lambda folder: -int(folder.name[5:]))


def _is_ours(folder: Path) -> bool:
    with suppress(*_DAMAGE):
        return bool(_read_manifest(folder))
    return False


def latest(*roots: str | Path) -> Checkpoint | None:
    """Read the newest intact checkpoint ``<root>/step-<number>`` of all roots.

    Damaged ones are skipped and named in ``refused``; of two with one number the one in
    the earlier root counts. Returns None if there is no checkpoint at all; raises
    CheckpointError if there are, but all are damaged.
    """
    refused, folders = list[str](), numbered(*map(Path, roots))
    for folder in folders:
        try:
            return replace(load(folder), refused=tuple(refused))
        except (CheckpointError, FileNotFoundError) as error:
            refused.append(str(error))
    if any((folder / MANIFEST).is_file() for folder in folders):
        raise CheckpointError(
            f"No checkpoint under {' or '.join(map(str, roots))} is intact. To start "
            "over, choose another folder or remove this one. " + " ".join(refused)
        )
    return None


def prune(root: str | Path, keep: int) -> None:
    """Delete all but the ``keep`` (at least 1) newest, and the rest of killed saves.

    Counting starts at the newest that reads back intact; damaged ones above it stay, as
    do folders whose manifest is not ours. If none is intact, nothing is deleted.
    """
    if keep < 1:
        raise ValueError(f"At least one checkpoint must be kept, not {keep}.")
    ours = list(filter(_is_ours, numbered(Path(root))))
    for newest, folder in enumerate(ours):
        with suppress(CheckpointError):
            verify(folder)
            for older in ours[newest + keep :]:
                shutil.rmtree(older)
            break
    for left in Path(root).glob(".step-*"):
        if re.fullmatch(r"\.step-[0-9]+\.ip2p-(partial|old|lock)", left.name):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
