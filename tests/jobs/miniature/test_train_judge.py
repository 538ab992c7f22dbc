"""The judge's training: what it is told, what it is shown, and that it learns."""

import pytest
import torch

from ip2p_lib.miniature.render import encode
from jobs.miniature.data import render_bytes, to_bytes, to_unit
from jobs.miniature.loop import Budget
from jobs.miniature.train_judge import (
    judge_loss,
    measure_judge,
    mix_reconstructions,
    object_positions,
    train_judge,
)
from tests.support.small_judge import BUS, CAT, LONE, PAIR, small_judge

CPU = torch.device("cpu")


def test_the_judge_is_taught_where_objects_are():
    where = object_positions(encode([PAIR, LONE]))
    left, right = (
        where[f"{slot}.where"].reshape(2, 8, 8) for slot in ("left", "right")
    )
    columns = torch.arange(8) * 16 + 8.0
    assert (left.sum(1) @ columns)[0] == pytest.approx(CAT.x, abs=4)
    assert (left.sum(1) @ columns)[1] == pytest.approx(BUS.x, abs=4)
    middle = BUS.base - BUS.size / 2
    assert (right.sum(2) @ columns)[0] == pytest.approx(middle, abs=4)
    assert left.sum().item() == pytest.approx(2) and right[1].sum() == 0


def test_half_of_the_images_are_reconstructed():
    images = torch.full((1030, 3, 2, 2), 200, dtype=torch.uint8)
    mixed = mix_reconstructions(images, lambda x: torch.zeros_like(x))
    assert torch.equal(mixed[1::2], images[1::2])
    assert (mixed[::2] == to_bytes(torch.zeros(1))).all()
    assert (images == 200).all()


def test_training_teaches_the_judge_what_it_is_shown():
    codes = encode([PAIR, LONE])
    images = render_bytes(codes, CPU)
    judge = train_judge(codes, images, Budget(15, 2e-3, warmup=1), batch=8)
    losses = [
        judge_loss(network(to_unit(images)), codes).item()
        for network in (small_judge(), judge.eval())
    ]
    assert losses[1] < 0.8 * losses[0]


def test_a_judge_is_measured_on_renders_and_reconstructions():
    rows = measure_judge(small_judge(), 4, reconstruct=lambda x: x)
    assert [row["images"] for row in rows] == ["rendered", "reconstructed"]
    assert rows[0]["samples"] == 4 and 0 <= rows[0]["objects"] <= 1
    assert {**rows[0], "images": ""} == {**rows[1], "images": ""}
