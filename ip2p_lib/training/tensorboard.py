"""A run's curves for TensorBoard, for those who have it installed (section 3.2).

The project does not need the package: ``losses.csv`` and ``Board`` say the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ip2p_lib.training.loss_weighting import band_names
from ip2p_lib.training.train import TrainStep
from ip2p_lib.training.validation import Look

EVERY = 25  # steps between points of the curves: each point waits for the GPU


class TensorBoardLog:
    """Writes events into a folder; ``note`` it every step, and ``close`` it."""

    def __init__(self, folder: str | Path) -> None:
        """Open a new event file in ``folder``.

        Raises:
            ImportError: TensorBoard is not installed; says how to install it.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard is not installed. Run: pip install tensorboard; or leave "
                "it out: losses.csv and the picture of the run hold the same."
            ) from error
        self._writer: Any = SummaryWriter(str(folder))

    def note(self, step: TrainStep, look: Look | None = None) -> None:
        """Add a point to the curves, if it is time, and all of a look."""
        if step.step % EVERY == 0:
            self._note_losses(step)
        if look:
            similarities = (look.image_similarity, look.directional_similarity)
            for name, value in zip(("image", "directional"), similarities, strict=True):
                self._writer.add_scalar(f"similarity/{name}", value, look.step)
            if look.edits is not None:
                pictures = (look.edits + 1) / 2
                self._writer.add_images("edits", pictures.clamp(0, 1), look.step)

    def _note_losses(self, step: TrainStep) -> None:
        sums, counts = step.bands.tolist()
        named = zip(band_names(bands=len(sums)), sums, counts, strict=True)
        curves = {f"loss/{name}": s / n for name, s, n in named if n}
        curves |= {"loss": float(step.loss), "gradient norm": float(step.grad_norm)}
        for name, value in (curves | {"learning rate": step.lr}).items():
            self._writer.add_scalar(name, value, step.step)

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()
