"""What a run measured, as a file that says where, when and by what it was made.

Every figure in the prose is read from such a file, so that none is typed by hand.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ip2p_lib.files import write_bytes

Row = dict[str, Any]
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow")


def provenance(device: str | torch.device | None = None) -> Row:
    """Say where and by what a result was made: commit, device, versions, date."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"  # installed without its repository
    commit = os.environ.get("IP2P_COMMIT", commit)
    on_gpu = device is not None and torch.device(device).type == "cuda"
    return {
        "commit": commit.strip(),
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_results(
    path: str | Path,
    rows: Sequence[Row],
    *,
    seed: int,
    seconds: float,
    device: str | torch.device | None = None,
    **facts: Any,
) -> Path:
    """Write a table as JSON with what is needed to trust it, whole or not at all.

    ``seconds`` is what the run took, ``device`` what it ran on; ``facts`` are any more
    JSON values, such as its settings. Not-a-number in a row is refused: ValueError.
    """
    run = {**provenance(device), "seed": seed, "seconds": seconds, **facts}
    text = json.dumps({**run, "rows": list(rows)}, indent=1, allow_nan=False)
    return write_bytes(path, text.encode())
