"""What a data set's pairs say in numbers: sizes, languages, seeds, scores (3.1.2)."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ip2p_lib.dataset.pairs import PackedPair


@dataclass
class Survey:
    """Counts of a data set; of a million pairs it takes some hundred MB."""

    pairs: int = 0
    sizes: Counter[str] = field(default_factory=Counter)  # "width x height", in pixels
    languages: Counter[str] = field(default_factory=Counter)  # of instructions
    instructions: set[str] = field(default_factory=set)
    seeds: set[int] = field(default_factory=set)
    numbers: dict[str, list[float]] = field(default_factory=dict)  # p, cfg, scores

    def quantiles(self, shares: Iterable[float]) -> dict[str, list[float]]:
        """For each number the values below which these shares of the pairs lie."""
        rows = self.numbers.items()
        return {name: np.quantile(x, list(shares)).tolist() for name, x in rows}


def survey(pairs: Iterable[PackedPair]) -> Survey:
    """Count what pairs hold, one at a time; no picture is decoded."""
    found = Survey()
    for pair in pairs:
        _add(found, pair)
    return found


def _add(found: Survey, pair: PackedPair) -> None:
    record = pair.record
    width, height = Image.open(io.BytesIO(pair.before)).size
    found.pairs += 1
    found.sizes[f"{width} x {height}"] += 1
    found.languages[record.get("language", "en")] += 1
    found.instructions.add(record["instruction"])
    if record.get("seed") is not None:
        found.seeds.add(record["seed"])
    made = {name: record.get(name) for name in ("p", "cfg", "steps")}
    for name, value in (made | record.get("scores", {})).items():
        if value is not None:
            found.numbers.setdefault(name, []).append(value)
