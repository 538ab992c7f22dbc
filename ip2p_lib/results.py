"""Write what a run measured, with its commit, device, seed and duration.

Every number in the prose and in the README is read from such a file. Where only a part
of the tree is copied to another machine, pass the commit along:

    IP2P_COMMIT=$(python -m ip2p_lib.results) python -m jobs...
"""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p_lib.config import RESULTS, ROOT
from ip2p_lib.files import read_json, write_json
from ip2p_lib.rng import integers, key

Row = dict[str, Any]
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow")
CODE = ("ip2p_lib", "jobs", "benchmarks")  # what a result depends on


@dataclass(frozen=True)
class ReadmeRow:
    """One line of the README's table of results."""

    claim: str  # what is measured, without the sample size
    value: str  # as printed: "97.3 %"
    aim: str  # as printed: "97 %"
    samples: int | None = None  # how many were measured


def commit_hash() -> str:
    """The commit of the code, with ``-dirty`` if the code differs from it.

    ``IP2P_COMMIT`` in the environment comes first. Without it and without git the
    answer is "unknown".
    """
    if commit := os.environ.get("IP2P_COMMIT"):
        return commit
    try:
        changes = _git("status", "--porcelain", "--", *CODE)
        return _git("rev-parse", "HEAD") + ("-dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    output = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True)
    return output.strip()


def provenance(device: str | torch.device | None = None) -> Row:
    """Describe how a result was made: commit, device, package versions, date."""
    on_gpu = device is not None and torch.device(device).type == "cuda"
    return {
        "commit": commit_hash(),
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
    readme: Sequence[ReadmeRow] = (),
    **settings: Any,
) -> Path:
    """Write a table of results as JSON, atomically, with its provenance.

    Args:
        path, rows: the file and its table.
        seed, seconds, device: of the run; None is the CPU.
        readme: the file's lines in the README; the device is added to each.
        settings: further JSON values, such as the number of steps.

    Raises ValueError if a number is NaN or infinite.
    """
    run = provenance(device) | {"seed": seed, "seconds": seconds} | settings
    lines = [asdict(row) | {"device": run["device"]} for row in readme]
    return write_json(path, run | {"readme": lines, "rows": list(rows)})


def read_results(name: str) -> Row:
    """Read ``data/results/<name>.json``.

    Raises FileNotFoundError or ValueError, with a remedy, if it is missing or damaged.
    """
    path, advice = RESULTS / f"{name}.json", f"git checkout data/results/{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: {advice} brings it back.")
    try:
        run: Row = read_json(path)
        run["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {advice} brings it back.") from error
    return run


def bootstrap_interval(values: Tensor) -> tuple[float, float]:
    """Interval of 95 % for the mean of (N,) values, by 2000 bootstrap resamplings.

    NaN values are left out; raises ValueError if no other is there.
    """
    values = values[~values.isnan()].double()
    n = len(values)
    if n == 0:
        raise ValueError("An interval needs at least one value that is not NaN.")
    rows = integers(key("bootstrap", 0), torch.arange(2000), n, (n,))
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = values[rows].mean(1).quantile(levels).tolist()
    return low, high


if __name__ == "__main__":
    print(commit_hash())
