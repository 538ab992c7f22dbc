"""A run is one display that grows, and one file; both end in the run's last state."""

import base64
import io
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ip2p_lib.evaluation.metrics import Examples
from ip2p_lib.training import progress as training_figures
from ip2p_lib.training.loss_weighting import bin_losses
from ip2p_lib.training.progress import (
    ProgressFigure,
    format_duration,
    plot_loss_bins,
    plot_validation,
)
from ip2p_lib.training.train import TrainStep
from ip2p_lib.training.validation import ValidationResult

BEFORE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
EXAMPLES = Examples(BEFORE, ["make it a cat", "turn"], ["a", "b"], ["c", "d"])
BOUNDS = {"input copied": ValidationResult(0, 1.0, 0.0), "exact answer": ValidationResult(0, 0.7, 0.9)}
FIXED = SimpleNamespace(examples=EXAMPLES, bounds=lambda: BOUNDS)


def a_step(n, t=(100, 900)):
    bins = bin_losses(torch.tensor(t), torch.tensor([1.0 / n, 0.1 / n]))
    return TrainStep(n, torch.tensor(1.0), torch.tensor(1.0), 1e-4, bins)


def a_look(n):
    return ValidationResult(n, 1 - n / 100, n / 100, BEFORE)


@dataclass
class Screen:
    """A notebook's front end: what is shown now, and how often it changed."""

    shown: list = field(default_factory=list)
    changes: int = 0

    def display(self, data, *, raw, display_id):
        assert raw and display_id
        self.shown.append(data)
        return self

    def update(self, data, *, raw):
        assert raw
        self.shown[-1] = data
        self.changes += 1


@pytest.fixture
def screen(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(training_figures, "display", screen.display)
    return screen


def test_the_lines_are_the_running_means_of_the_bands():
    steps = torch.stack([a_step(n).bins for n in range(1, 6)])
    lines = plot_loss_bins(steps, window=2, first=11).axes[0].lines
    drawn = {line.get_label(): line.get_xydata() for line in lines}
    assert [*drawn] == ["t 0-249", "t 250-499", "t 500-749", "t 750-999"]
    assert drawn["t 0-249"][:, 0].tolist() == [11, 12, 13, 14, 15]
    assert drawn["t 0-249"][-1, 1] == pytest.approx((1 / 4 + 1 / 5) / 2)
    assert np.isnan(drawn["t 250-499"][:, 1]).all(), "no example was there"


def test_both_similarities_stand_over_what_trivial_edits_get():
    axes = plot_validation([a_look(0), a_look(50)], BOUNDS).axes[0]
    image, direction = axes.lines[:2]
    assert image.get_ydata().tolist() == [1.0, 0.5]
    assert direction.get_ydata().tolist() == [0.0, 0.5]
    levels = {float(line.get_ydata()[0]) for line in axes.lines[2:]}
    assert levels == {1.0, 0.0, 0.7, 0.9}
    assert {text.get_text() for text in axes.texts} == set(BOUNDS)


def test_a_run_is_one_display_and_one_file_however_often_it_is_drawn(screen, tmp_path):
    file = tmp_path / "run" / "progress.png"
    board = ProgressFigure(FIXED, last=4, file=file, every_seconds=0.0)
    for n in range(1, 5):
        board.show(a_step(n), a_look(n) if n % 2 == 0 else None)
    assert (len(screen.shown), screen.changes) == (1, 3)
    (shown,) = screen.shown
    assert shown["text/plain"] == "4 steps taken"
    assert base64.b64decode(shown["image/png"]) == file.read_bytes()
    assert [path.name for path in file.parent.iterdir()] == ["progress.png"]
    assert Image.open(io.BytesIO(file.read_bytes())).width > 600


def test_between_looks_it_is_drawn_only_when_it_has_grown_old(screen):
    board = ProgressFigure(FIXED, last=50, every_seconds=1000.0)
    for n in range(1, 51):
        board.show(a_step(n), a_look(n) if n == 20 else None)
    assert screen.changes == 2, "the first, the look at 20, the last"
    assert len(board.bins) == 50


def test_what_an_earlier_sitting_had_is_drawn_on(screen):
    earlier = [a_step(n).bins for n in (1, 2)]
    board = ProgressFigure(FIXED, last=3, bins=earlier, looks=[ValidationResult(2, 0.9, 0.1)])
    board.show(a_step(3))
    assert len(board.bins) == 3 and len(screen.shown) == 1


def test_the_time_left_is_reckoned_from_this_sittings_steps(screen, monkeypatch):
    now = iter([0.0, 60.0])
    monkeypatch.setattr(training_figures.time, "monotonic", lambda: next(now))
    board = ProgressFigure(FIXED, last=300, bins=[a_step(n).bins for n in range(1, 101)])
    for n in range(101, 111):
        board.bins.append(a_step(n).bins)
        board._taken += 1
    assert board.words(110) == "step 110 of 300, about 19 min left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (5400, "1 h 30 min")],
)
def test_a_time_is_told_as_a_person_would(seconds, words):
    assert format_duration(seconds) == words
