"""Curves for TensorBoard, where it is installed; a plain word where it is not."""

import sys
from types import ModuleType

import pytest
import torch

from ip2p_lib.training.loss_weighting import by_band
from ip2p_lib.training.tensorboard import EVERY, TensorBoardLog
from ip2p_lib.training.train import TrainStep
from ip2p_lib.training.validation import Look


class Writer:
    """In place of torch's SummaryWriter: keeps what it is given."""

    last = None

    def __init__(self, folder):
        self.folder, self.scalars, self.images, self.closed = folder, {}, {}, False
        Writer.last = self

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def add_images(self, name, pictures, step):
        self.images[name, step] = pictures

    def close(self):
        self.closed = True


@pytest.fixture
def writer(monkeypatch, tmp_path):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    log = TensorBoardLog(tmp_path)
    bands = by_band(torch.tensor([10, 20, 900]), torch.tensor([3.0, 1.0, 0.5]))
    for n in range(1, 2 * EVERY + 1):
        look = Look(n, 0.9, 0.1, torch.full((2, 3, 8, 8), 1.01)) if n == 7 else None
        log.note(TrainStep(n, torch.tensor(1.5), torch.tensor(2.0), 1e-4, bands), look)
    log.close()
    return Writer.last


def test_curves_have_a_point_every_few_steps_and_looks_all_of_theirs(writer):
    steps = {step for name, step in writer.scalars if not name.startswith("simil")}
    assert steps == {EVERY, 2 * EVERY}
    at = {name: v for (name, step), v in writer.scalars.items() if step == EVERY}
    assert at == {
        "loss": 1.5,
        "gradient norm": 2.0,
        "learning rate": 1e-4,
        "loss/t 0-249": 2.0,
        "loss/t 750-999": 0.5,
    }
    assert writer.scalars["similarity/image", 7] == 0.9
    assert writer.scalars["similarity/directional", 7] == 0.1
    assert writer.images["edits", 7].max() == 1
    assert writer.closed


def test_without_the_package_the_reader_is_told_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard; or leave it out"):
        TensorBoardLog(tmp_path)
