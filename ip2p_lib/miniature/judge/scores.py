"""Score an edit: was it done, and was everything else kept (section 4.1, ours)?

The paper has only CLIP for these two questions. Here the judge reads the edited image,
and its answers are compared with those that the ground truth has:

- **done**: every attribute that the edit changes is read as the ground truth's;
- **kept**: every other attribute is, too. An attribute counts only where the judge
  reads it rightly in the ground truth after the autoencoder, which every edit has to
  pass, so that neither the judge's nor the autoencoder's errors are the editor's;
- **both**.

Two distances need no judge: the **background error** is the mean absolute difference of
edit and input where the ground truth equals the input, the **edit-region error** that
of edit and ground truth where it does not; both in [0, 1].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ip2p_lib.miniature.judge.model import Judge
from ip2p_lib.miniature.judge.readings import ANSWERS, labels

_EQUAL = 1.5 / 127.5  # a pixel of the ground truth that differs by less is unchanged
_FEWEST = 0.01  # smallest share of the image that counts as a background or region


@dataclass(frozen=True)
class EditScores:
    """Scores of B edits, on the CPU."""

    done: Tensor  # (B,) bool
    kept: Tensor  # (B,) bool
    background_error: Tensor  # (B,) in [0, 1]; NaN where the edit changes all
    edit_region_error: Tensor  # (B,) in [0, 1]

    @property
    def both(self) -> Tensor:
        """(B,) bool: done, and everything else kept."""
        return self.done & self.kept

    def columns(self) -> dict[str, Tensor]:
        """Each score by its name, (B,) float."""
        names = ("done", "kept", "both", "background_error", "edit_region_error")
        return {name: getattr(self, name).float() for name in names}


def read_answers(judge: Judge, images: Tensor) -> dict[str, Tensor]:
    """The likeliest answer of every attribute, (B,) index into its ``ANSWERS``.

    ``images`` are (B, 3, 128, 128) in [-1, 1].
    """
    logits = judge.predict(images)
    return {name: logits[name].argmax(1) for name in ANSWERS}


def score_edits(
    judge: Judge,
    edits: Tensor,
    before: Tensor,
    ground_truth: Tensor,
    codes: tuple[Tensor, Tensor],
    reconstructed: Tensor,
) -> EditScores:
    """Score B edits of known scenes.

    Args:
        judge: reads the images.
        edits, before, ground_truth: (B, 3, 128, 128) in [-1, 1].
        codes: (B, 20) each, of the scenes and of the edits' targets.
        reconstructed: the ground truth after the autoencoder.

    Raises:
        ValueError: the arguments differ in number.
    """
    lengths = {len(x) for x in (edits, before, ground_truth, *codes, reconstructed)}
    if len(lengths) > 1:
        raise ValueError(f"Each edit needs one of each argument, not {lengths}.")
    source, target = (labels(code.cpu()) for code in codes)
    answers = read_answers(judge, edits)
    reference = read_answers(judge, reconstructed)
    done = torch.ones(len(edits), dtype=torch.bool)
    kept = done.clone()
    for name, right in target.items():
        changed, agrees = source[name] != right, answers[name] == right
        done &= agrees | ~changed
        kept &= agrees | changed | (reference[name] != right)
    return EditScores(done, kept, *_errors(edits, before, ground_truth))


def _errors(
    edits: Tensor, before: Tensor, ground_truth: Tensor
) -> tuple[Tensor, Tensor]:
    """Background error and edit-region error, (B,) each."""
    edits, before, ground_truth = (
        x.float().cpu() for x in (edits, before, ground_truth)
    )
    region = (ground_truth - before).abs().amax(1) > _EQUAL  # (B, H, W)
    to_input = (edits - before).abs().mean(1) / 2
    to_ground_truth = (edits - ground_truth).abs().mean(1) / 2
    return _masked_mean(to_input, ~region), _masked_mean(to_ground_truth, region)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, H, W) values where the mask is, (B,); NaN where it is too small."""
    share = mask.float().mean((1, 2))
    mean = (values * mask).mean((1, 2)) / share.clamp(min=1e-9)
    return torch.where(share >= _FEWEST, mean, torch.nan)
