"""Train the judge of the miniature world and measure it on held-out scenes.

    python -m jobs.miniature.train_judge train measure

What it will judge is generated: softer than a rendering, a little noisy, a few pixels
off. So half of the images it learns from went through the autoencoder, and of all of
them many are mirrored, moved, softened or lit differently.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p_lib.config import MODELS, RESULTS
from ip2p_lib.device import pick_device
from ip2p_lib.miniature.backdrop import RESOLUTION
from ip2p_lib.miniature.judge.model import WIDTHS, Judge, load_judge, save_judge
from ip2p_lib.miniature.judge.readings import SLOTS, agreement, labels
from ip2p_lib.miniature.render import (
    OBJECT_COLUMNS,
    SCENE_COLUMNS,
    encode,
    render_codes,
)
from ip2p_lib.miniature.world import sample_edit, sample_scene
from ip2p_lib.results import write_results
from ip2p_lib.rng import integers, key
from jobs.miniature import measure as quality
from jobs.miniature.augmentation import augment
from jobs.miniature.data import render_bytes, to_bytes, to_unit
from jobs.miniature.loop import Budget, fit, follow

BUDGET = Budget(seconds=150, learning_rate=2e-3, warmup=200, weight_decay=0.05)
BATCH = 512
Reconstruct = Callable[[Tensor], Tensor]  # (B, 3, 128, 128) in [-1, 1] to the same


def bodies(codes: Tensor) -> dict[str, Tensor]:
    """Where each thing of a scene is, as shares of the judge's cells.

    Without being told where to look, the judge takes long to find things at all.

    Args:
        codes: (B, 20).

    Returns:
        (B, 64) for ``left.where`` and ``right.where``; zeros where there is no thing.
    """
    side = RESOLUTION >> len(WIDTHS)
    cell = RESOLUTION / side
    axis = (torch.arange(side, device=codes.device) + 0.5) * cell
    found = {}
    for index, slot in enumerate(SLOTS):
        start = SCENE_COLUMNS + index * OBJECT_COLUMNS
        name, x, base, size = codes[:, start : start + 4, None, None].unbind(1)
        across, down = axis[None, None, :] - x, axis[None, :, None] - (base - size / 2)
        near = -(across.square() + down.square()) / (2 * cell**2)
        found[f"{slot}.where"] = near.flatten(1).softmax(1) * (name[:, 0] >= 0)
    return found


def judge_loss(logits: Mapping[str, Tensor], codes: Tensor) -> Tensor:
    """Cross-entropy of ``Judge``'s logits with what ``codes`` say, summed, nats."""
    right = labels(codes) | bodies(codes)
    losses = [F.cross_entropy(logits[name], right[name]) for name in right]
    return torch.stack(losses).sum()


@torch.no_grad()
def half_reconstructed(images: Tensor, reconstruct: Reconstruct) -> Tensor:
    """A copy of a images in which every second picture is a reconstruction.

    Done once: in every step anew, it would take longer than the step itself.
    """
    mixed = images.clone()
    for start in range(0, len(images), 512):
        rows = slice(start, start + 512, 2)
        with torch.autocast(images.device.type, torch.bfloat16, images.is_cuda):
            soft = reconstruct(to_unit(images[rows]))
        mixed[rows] = to_bytes(soft.float())
    return mixed


def train_judge(
    codes: Tensor,
    images: Tensor,
    budget: Budget,
    reconstruct: Reconstruct | None = None,
    batch: int = BATCH,
) -> Judge:
    """Train a judge.

    Args:
        codes: (n, 20), what the images show.
        images: (n, 3, 128, 128) uint8 on the device to train on.
        budget: time and learning rate.
        reconstruct: the autoencoder's round trip; half of the images go through it.
        batch: images of a step.
    """
    device = images.device
    judge, codes = Judge().to(device), codes.to(device)
    ids = torch.arange(batch, device=device)
    if reconstruct is not None:
        images = half_reconstructed(images, reconstruct)
    if device.type == "cuda":
        judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        judge.compile(dynamic=False)

    def loss_of(step: int) -> Tensor:
        rows = integers(key("judge", step), ids, len(images))
        x, shown = augment(to_unit(images[rows]), codes[rows], step)
        x = x.contiguous(memory_format=torch.channels_last)
        return judge_loss(judge(x), shown)

    follow(fit(judge, loss_of, budget), "judge")
    return judge


def measure_judge(
    judge: Judge, n: int = 1024, reconstruct: Reconstruct | None = None
) -> list[dict[str, Any]]:
    """Share of right answers on ``n`` held-out scenes: one row a kind of pictures.

    Returns:
        ``pictures`` ("rendered", and with ``reconstruct`` also "reconstructed"),
        ``samples``, and each share of ``readings.agreement``.
    """
    device = judge.places.device
    codes = quality.held_out(n).before
    truth = torch.cat([render_codes(part.to(device)) for part in codes.split(128)])
    kinds = {"rendered": truth}
    if reconstruct is not None:
        kinds["reconstructed"] = reconstruct(truth)
    return [
        {"pictures": kind, "samples": n, **agreement(judge.read(pictures), codes)}
        for kind, pictures in kinds.items()
    ]


def load_round_trip(models: Path, device: torch.device) -> Reconstruct:
    """The round trip through the miniature's autoencoder, frozen, on ``device``."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(models / "miniature-sd" / "vae")
    vae = vae.to(device, memory_format=torch.channels_last).requires_grad_(False)
    return partial(quality.reconstruct, vae, batch=256)


def sample_codes(n: int) -> Tensor:
    """Codes of ``n`` scenes and of one edit of each, (2n, 20)."""
    scenes = [sample_scene(seed) for seed in range(n)]
    edits = [sample_edit(scene, seed) for seed, scene in enumerate(scenes)]
    return encode([*scenes, *(edit.target for edit in edits)])


def run_train(args: argparse.Namespace, device: torch.device) -> None:
    """Draw scenes, render them and train a judge on them, saved in ``--out``."""
    codes, reconstruct = sample_codes(args.scenes), load_round_trip(args.out, device)
    images = render_bytes(codes, device)
    budget = replace(BUDGET, seconds=args.seconds)
    judge = train_judge(codes, images, budget, reconstruct, args.batch)
    save_judge(judge, args.out / "miniature-judge")


def run_measure(args: argparse.Namespace, device: torch.device) -> None:
    """Measure the judge in ``--out`` on held-out scenes and write the figures down."""
    began, reconstruct = time.monotonic(), load_round_trip(args.out, device)
    judge = load_judge(args.out / "miniature-judge", device)
    rows = measure_judge(judge, args.samples, reconstruct)
    print(*rows, sep="\n", flush=True)
    seconds = round(time.monotonic() - began, 1)
    path = args.results / "miniature-judge.json"
    write_results(path, rows, seed=0, seconds=seconds, device=device)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The miniature's judge.")
    parser.add_argument("stages", nargs="+", choices=["train", "measure"])
    parser.add_argument("--out", type=Path, default=MODELS, help="of all networks")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--scenes", type=int, default=150_000, help="two images each")
    parser.add_argument("--seconds", type=float, default=BUDGET.seconds)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--samples", type=int, default=4096, help="to be measured on")
    return parser.parse_args()


def main() -> None:
    """Run the stages named on the command line."""
    args, device = _arguments(), pick_device()
    if "train" in args.stages:
        run_train(args, device)
    if "measure" in args.stages:
        run_measure(args, device)


if __name__ == "__main__":
    main()
