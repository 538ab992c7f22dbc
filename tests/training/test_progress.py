"""A run is one display that grows, and one file; both end in the run's last state."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ip2p_lib.evaluation.metrics import Examples
from ip2p_lib.training import progress
from ip2p_lib.training.progress import ProgressFigure, plot_loss_bins, plot_validation
from ip2p_lib.training.train import TrainStep, bin_losses
from ip2p_lib.training.validation import ValidationResult

BEFORE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
EXAMPLES = Examples(BEFORE, ["make it a cat", "turn"], ["a", "b"], ["c", "d"])
REFERENCES = {
    "input copied": ValidationResult(0, 1.0, 0.0),
    "ground truth": ValidationResult(0, 0.7, 0.9),
}
FIXED = SimpleNamespace(examples=EXAMPLES, reference_results=lambda: REFERENCES)


def a_step(n, t=(100, 900)):
    bins = bin_losses(torch.tensor(t), torch.tensor([1.0 / n, 0.1 / n]))
    return TrainStep(n, torch.tensor(1.0), torch.tensor(1.0), 1e-4, bins)


def a_result(n):
    return ValidationResult(n, 1 - n / 100, n / 100, BEFORE)


@dataclass
class Screen:
    """A notebook's front end: what is shown now, and how often it changed."""

    shown: list = field(default_factory=list)
    changes: int = 0

    def display(self, image, *, display_id):
        assert display_id
        self.shown.append(image)
        return self

    def update(self, image):
        self.shown[-1] = image
        self.changes += 1


@pytest.fixture
def screen(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(progress, "display", screen.display)
    return screen


@pytest.mark.parametrize("T", [1000, 10, 7])
def test_every_timestep_is_in_the_bin_that_is_named_after_it(T):
    lines = plot_loss_bins(torch.ones(1, 2, 4), T=T).axes[0].lines
    names = [line.get_label().removeprefix("t ").split("-") for line in lines]
    for first, last in ((int(a), int(b)) for a, b in names):
        for t in (first, last):
            sums, counts = bin_losses(torch.tensor([t]), torch.tensor([2.5]), T)
            at = [int(a) <= t <= int(b) for a, b in names]
            assert sums.tolist() == [2.5 * inside for inside in at]
            assert counts.tolist() == at
    assert names[0][0] == "0" and names[-1][1] == str(T - 1) and len(names) == 4


@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_running_mean_weighs_every_example_alike(window):
    numbers = [torch.arange(n) for n in range(1, 8)]
    steps = [bin_losses(100 * i, i + len(i)) for i in numbers]
    lines = plot_loss_bins(torch.stack(steps), window=window).axes[0].lines
    means = torch.stack([torch.tensor(line.get_ydata()) for line in lines], 1)
    for i, row in enumerate(means):
        sums, counts = (
            torch.stack(steps[max(0, i + 1 - window) : i + 1]).double().sum(0)
        )
        torch.testing.assert_close(row, sums / counts, equal_nan=True)
    assert means[0].isnan().tolist() == [False, True, True, True]
    assert lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_both_similarities_stand_over_what_trivial_edits_get():
    axes = plot_validation([a_result(0), a_result(50)], REFERENCES).axes[0]
    image, direction = axes.lines[:2]
    assert image.get_ydata().tolist() == [1.0, 0.5]
    assert direction.get_ydata().tolist() == [0.0, 0.5]
    levels = {float(line.get_ydata()[0]) for line in axes.lines[2:]}
    assert levels == {1.0, 0.0, 0.7, 0.9}
    assert {text.get_text() for text in axes.texts} == set(REFERENCES)


def test_a_run_is_one_display_and_one_file(screen, tmp_path):
    file = tmp_path / "run" / "progress.png"
    progress_figure = ProgressFigure(FIXED, 4, file, [a_result(0)], every_seconds=0.0)
    for n in range(1, 5):
        progress_figure.show(a_step(n), a_result(n) if n % 2 == 0 else None)
    assert (len(screen.shown), screen.changes) == (1, 3)
    assert Image.open(file).tobytes() == screen.shown[0].tobytes()
    assert [path.name for path in file.parent.iterdir()] == ["progress.png"]


def test_between_validations_it_is_redrawn_only_when_it_is_old(screen, tmp_path):
    file = tmp_path / "progress.png"
    progress_figure = ProgressFigure(FIXED, 50, file, [a_result(0)], 1000.0)
    for n in range(1, 51):
        progress_figure.show(a_step(n), a_result(n) if n == 20 else None)
    assert screen.changes == 2, "the first, the one at 20, the last"
