"""The miniature's pairs are made and found, and its editor begins where it should."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ip2p_lib.config import DATA, MODELS, preset
from ip2p_lib.dataset.dataset import read_shards
from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion
from ip2p_lib.editing.editor import load_editor
from ip2p_lib.triplets.record import read_jsonl
from jobs.miniature import make_pairs
from jobs.miniature.make_pairs import world_captions
from jobs.miniature.train_editor import first_unet, read_pairs


def test_pairs_are_generated_and_read_back_for_training(tmp_path: Path):
    """All of ``make_pairs`` and ``train_editor`` with the shipped models, in small."""
    scale, out = preset("smoke"), tmp_path / "data"
    both = {"out": out, "work": tmp_path}
    args = Namespace(captions=6, batch=6, part=0, seconds=0.0, **both)
    out.mkdir()
    (out / "models").symlink_to(MODELS)
    make_pairs.run_write(args)
    triplets = read_jsonl(tmp_path / "triplets-0.jsonl")
    assert {t.caption for t in triplets} <= set(world_captions(0, 6))
    easy = replace(scale.filtering, image=-1.0, text=-1.0, direction=-1.0)
    make_pairs.run_generate(args, replace(scale, filtering=easy))
    backbone = load_stable_diffusion(scale.backbone, device="cpu")
    latents, counts = read_pairs(tmp_path, backbone)
    assert counts["kept"] == len(latents) > 0
    sample = list(read_shards(out / "pairs" / "sample"))
    assert sample[0].instruction in {t.instruction for t in triplets}


def test_an_editor_begins_as_the_widened_unet_or_as_an_earlier_editor():
    backbone = load_stable_diffusion(MODELS / "miniature-sd", device="cpu")
    begun = first_unet(DATA, backbone, warm=False)
    assert not begun.conv_in.weight[:, 4:].any()
    assert torch.equal(
        begun.mid_block.resnets[0].conv1.weight,
        backbone.unet.mid_block.resnets[0].conv1.weight,
    )
    continued = first_unet(DATA, backbone, warm=True)
    shipped = load_editor("miniature", "cpu").backbone.unet.state_dict()
    for name, weight in continued.state_dict().items():
        assert torch.equal(weight, shipped[name].to(weight)), name


def test_training_without_pairs_says_how_to_make_some(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="make_pairs write generate"):
        read_pairs(tmp_path, None)  # type: ignore[arg-type]
