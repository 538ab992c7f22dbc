"""The judge's training: what it is told, what it is shown, and that it learns."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from ip2p_lib.miniature.render import encode
from jobs.miniature.loop import Budget
from jobs.miniature.stages import Stage, render_bank, to_bytes
from jobs.miniature.train_judge import (
    bodies,
    half_reconstructed,
    measure_judge,
    train_judge,
)
from tests.support.small_judge import BUS, CAT, LONE, PAIR, small_judge

CPU = torch.device("cpu")


def test_the_judge_is_told_where_things_are() -> None:
    where = bodies(encode([PAIR, LONE]))
    left, right = (
        where[f"{slot}.where"].reshape(2, 8, 8) for slot in ("left", "right")
    )
    columns = torch.arange(8) * 16 + 8.0
    assert (left.sum(1) @ columns)[0] == pytest.approx(CAT.x, abs=4)
    assert (left.sum(1) @ columns)[1] == pytest.approx(BUS.x, abs=4)
    middle = BUS.base - BUS.size / 2
    assert (right.sum(2) @ columns)[0] == pytest.approx(middle, abs=4)
    assert left.sum().item() == pytest.approx(2) and right[1].sum() == 0


def test_half_of_the_pictures_are_reconstructed() -> None:
    bank = torch.full((1030, 3, 2, 2), 200, dtype=torch.uint8)
    mixed = half_reconstructed(bank, lambda x: torch.zeros_like(x))
    assert torch.equal(mixed[1::2], bank[1::2])
    assert (mixed[::2] == to_bytes(torch.zeros(1))).all()
    assert (bank == 200).all()


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    codes = encode([PAIR, LONE])
    stage = Stage(Budget(600, 2e-3, warmup=1), batch=8)
    _, progress = train_judge(codes, render_bank(codes, CPU), stage, tmp_path)
    losses = [step.loss for step in islice(progress, 11)]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_a_judge_is_measured_on_both_kinds_of_pictures() -> None:
    rows = measure_judge(small_judge(), 4, reconstruct=lambda x: x)
    assert [row["pictures"] for row in rows] == ["rendered", "reconstructed"]
    assert rows[0]["samples"] == 4 and 0 <= rows[0]["objects"] <= 1
    assert {**rows[0], "pictures": ""} == {**rows[1], "pictures": ""}
