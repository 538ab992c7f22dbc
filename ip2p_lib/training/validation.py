"""Fixed edits while training goes on: is the change made, is the rest kept (4.1)?

The loss hardly tells. So every N steps the averaged weights edit the same pictures,
from the same noise, and both similarities of figure 8 are taken of them:

    nothing changes         image similarity stays near 1, directional near 0
    learning to edit        directional similarity rises
    the input is forgotten  image similarity falls, and directional gains nothing more

``with_looks`` wraps the steps of ``train``; plots stay with the caller. Edits draw from
keys of their own (see ``draws``), so that looking changes no step.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from ip2p_lib.distributed import rank
from ip2p_lib.editing.editor import Editor
from ip2p_lib.evaluation.metrics import Examples, measure
from ip2p_lib.files import atomic_write
from ip2p_lib.filtering.clip_filter import ClipScorer
from ip2p_lib.training.state import TrainState
from ip2p_lib.training.train import TrainStep

LOOKS = "validation.csv"


@dataclass(frozen=True)
class Look:
    """What the fixed edits were like after a step; means over the examples."""

    step: int
    image_similarity: float  # of edit and input, 1 for a copy
    directional_similarity: float  # of the change of pictures and that of captions
    edits: Tensor | None = None  # (B, 3, H, W) in [-1, 1] on the CPU


@dataclass(frozen=True)
class Validation:
    """The edits to look at, the same at every look."""

    editor: Editor  # its U-Net, a copy of the trained one, is overwritten by looks
    clip: ClipScorer
    examples: Examples
    steps: int | None = None  # of denoising; None is the editor's default
    seed: int = 0  # of the first example; each next one's is one higher

    def look(self, state: TrainState) -> Look:
        """Edit with the averaged weights, and measure; ``state`` stays as it is."""
        own = dict(self.editor.backbone.unet.named_parameters())
        with torch.no_grad():
            for name, weight in state.ema.weights.items():
                own[name].copy_(weight)
        edits = self.editor.edit_tensors(
            self.examples.before,
            self.examples.instructions,
            steps=self.steps,
            seed=[self.seed + i for i in range(len(self.examples))],
        )
        return self.measured(state.step, edits)

    def measured(self, step: int, edits: Tensor) -> Look:
        """Take both similarities of some edits (B, 3, H, W) in [-1, 1]."""
        columns = measure(self.clip, self.examples, edits)
        image, direction = (
            float(columns[f"{name}_similarity"].double().mean())
            for name in ("image", "directional")
        )
        return Look(step, image, direction, edits.cpu())

    def bounds(self) -> dict[str, Look]:
        """What two trivial edits get: the input itself and, if known, the truth."""
        known = {"input copied": self.examples.before}
        if self.examples.truth is not None:
            known["exact answer"] = self.examples.truth
        device = self.editor.backbone.device
        return {name: self.measured(0, x.to(device)) for name, x in known.items()}


def with_looks(
    steps: Iterable[TrainStep],
    state: TrainState,
    validation: Validation,
    *,
    every: int,
    last: int,
) -> Iterator[tuple[TrainStep, Look | None]]:
    """Pair every step of ``train`` with a look, where one is due.

    Args:
        steps: from ``train``, which changes ``state``.
        state: what is being trained.
        validation: the fixed edits.
        every: a look is due at its multiples; at least 1.
        last: number of the last step, where one is due too.

    Returns:
        An iterator over (step, look or None). Of several processes the first looks.

    Raises:
        ValueError: ``every`` is below 1.
    """
    if every < 1:
        raise ValueError(f"A look every {every} steps is impossible; give 1 or more.")
    for step in steps:
        due = rank() == 0 and (step.step % every == 0 or step.step == last)
        yield step, validation.look(state) if due else None


def write_looks(path: str | Path, looks: Sequence[Look]) -> Path:
    """Write the numbers of all looks as CSV, whole or not at all."""
    names = [field.name for field in fields(Look) if field.name != "edits"]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([names, *([getattr(look, n) for n in names] for look in looks)])
    with atomic_write(path := Path(path)) as file:
        file.write(text.getvalue().encode())
    return path


def read_looks(path: str | Path, up_to: int) -> list[Look]:
    """Read what ``write_looks`` wrote, without looks after step ``up_to``.

    A run that lost its last steps to a kill takes those looks again. No file, no looks.
    """
    if not Path(path).is_file():
        return []
    rows = csv.DictReader(Path(path).read_text().splitlines())
    looks = [
        Look(
            int(row["step"]),
            float(row["image_similarity"]),
            float(row["directional_similarity"]),
        )
        for row in rows
    ]
    return [look for look in looks if look.step <= up_to]
