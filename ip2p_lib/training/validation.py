"""Validation by fixed edits: is the change made, and nothing else (section 4.1)?

The loss hardly tells. So every N steps the averaged weights edit the same images from
the same noise, and both similarities of figure 8 are measured:

    nothing changes         image similarity stays near 1, directional near 0
    learning to edit        directional similarity rises
    the input is ignored    image similarity falls, and directional gains nothing more

``validate_every`` wraps the steps of ``train``. Edits draw from keys of their own (see
``rng``), so that validation changes no step.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ip2p_lib.diffusion.clip import ClipScorer
from ip2p_lib.distributed import rank
from ip2p_lib.editing.editor import Editor
from ip2p_lib.evaluation.metrics import Examples, measure, summarise
from ip2p_lib.training.state import TrainState
from ip2p_lib.training.train import TrainStep

COLUMNS = ("step", "image_similarity", "directional_similarity")


@dataclass(frozen=True)
class ValidationResult:
    """Means over the fixed edits after a step."""

    step: int
    image_similarity: float  # of edit and input, 1 for a copy
    directional_similarity: float | None  # of change in images and captions, if any
    edits: Tensor | None = None  # (B, 3, H, W) in [-1, 1] on the CPU

    def __str__(self) -> str:
        """Say the numbers, for a log or a model card."""
        image, direction = self.image_similarity, self.directional_similarity
        after = f"after step {self.step} CLIP image similarity {image:.4f}"
        if direction is None:
            return f"{after}; without captions there is no directional similarity"
        return f"{after}, directional similarity {direction:.4f}"


@dataclass(frozen=True)
class Validation:
    """The fixed edits."""

    editor: Editor  # its U-Net, a copy of the trained one, is overwritten by ``run``
    clip: ClipScorer
    examples: Examples
    steps: int | None = None  # of sampling; None is the editor's default
    seed: int = 0  # of the first example; each next one's is one higher

    def run(self, state: TrainState) -> ValidationResult:
        """Edit with the averaged weights and measure; ``state`` is not changed."""
        state.ema.copy_to(self.editor.backbone.unet)
        edits = self.editor.edit_tensors(
            self.examples.before,
            self.examples.instructions,
            steps=self.steps,
            seed=[self.seed + i for i in range(len(self.examples))],
        )
        return self.measure(state.step, edits)

    def measure(self, step: int, edits: Tensor) -> ValidationResult:
        """Both mean similarities of edits (B, 3, H, W) in [-1, 1]."""
        row = summarise(measure(self.clip, self.examples, edits))
        image, direction = row[COLUMNS[1]], row.get(COLUMNS[2])
        return ValidationResult(step, image, direction, edits.cpu())

    def reference_results(self) -> dict[str, ValidationResult]:
        """Results of two trivial edits: the input, and the ground truth if known."""
        known = {"input copied": self.examples.before}
        if self.examples.truth is not None:
            known["ground truth"] = self.examples.truth
        device = self.editor.backbone.device
        return {name: self.measure(0, x.to(device)) for name, x in known.items()}


def validate_every(
    steps: Iterable[TrainStep],
    state: TrainState,
    validation: Validation,
    *,
    interval: int,
    last: int,
) -> Iterator[tuple[TrainStep, ValidationResult | None]]:
    """Pair every step of ``train`` with a validation result, or None if none is due.

    Process 0 validates at multiples of ``interval`` (at least 1) and after ``last``.
    """
    for step in steps:
        due = rank() == 0 and (step.step % interval == 0 or step.step == last)
        yield step, validation.run(state) if due else None
