"""Train the judge of the miniature world and measure it on held-out scenes.

    python -m jobs.miniature.train_judge

What it will judge is generated: softer than a rendering, a little noisy, a few pixels
off. So half of the images it learns from went through the autoencoder, and of all of
them many are mirrored, moved, softened or lit differently.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from ip2p_lib.config import MODELS, RESULTS
from ip2p_lib.device import pick_device
from ip2p_lib.miniature.backdrop import RESOLUTION
from ip2p_lib.miniature.judge.model import WIDTHS, Judge, load_judge, save_judge
from ip2p_lib.miniature.judge.readings import ANSWERS, OBJECT, SCENE, SLOTS, labels
from ip2p_lib.miniature.judge.scores import read_answers
from ip2p_lib.miniature.render import split_codes
from ip2p_lib.miniature.vocabulary import COLOURLESS
from ip2p_lib.results import ReadmeRow, write_results
from ip2p_lib.rng import integers, key, normal, uniform
from jobs.miniature import measure as quality
from jobs.miniature.data import render_bytes, sample_corpus, to_bytes, to_unit
from jobs.miniature.loop import Budget, fit, follow
from jobs.training_plan import above_zero, positive

BUDGET = Budget(seconds=150, learning_rate=2e-3, warmup=200, weight_decay=0.05)
BATCH = 512
_double = partial(F.interpolate, scale_factor=2.0, mode="bilinear")
Reconstruct = Callable[[Tensor], Tensor]  # (B, 3, 128, 128) in [-1, 1] to the same


def object_positions(codes: Tensor) -> dict[str, Tensor]:
    """Where each object of a scene is, as a distribution over the judge's cells.

    Without this target its attention takes long to settle on the objects.

    Args:
        codes: (B, 20).

    Returns:
        (B, 64) for ``left.where`` and ``right.where``; zeros where there is no object.
    """
    side = RESOLUTION >> len(WIDTHS)
    cell = RESOLUTION / side
    axis = (torch.arange(side, device=codes.device) + 0.5) * cell
    found = {}
    for slot, obj in zip(SLOTS, split_codes(codes)[1:], strict=True):
        name, x, base, size = obj[:, :4, None, None].unbind(1)
        across, down = axis[None, None, :] - x, axis[None, :, None] - (base - size / 2)
        near = -(across.square() + down.square()) / (2 * cell**2)
        found[f"{slot}.where"] = near.flatten(1).softmax(1) * (name[:, 0] >= 0)
    return found


def judge_loss(logits: Mapping[str, Tensor], codes: Tensor) -> Tensor:
    """Cross-entropy of ``Judge``'s logits with what ``codes`` say, summed, nats."""
    right = labels(codes) | object_positions(codes)
    losses = [F.cross_entropy(logits[name], right[name]) for name in right]
    return torch.stack(losses).sum()


def mirror_codes(codes: Tensor) -> Tensor:
    """Codes of the scenes that the mirror images show, (B, 20).

    Left and right change places, in the scene and in every thing; a lone thing stays in
    the first slot.
    """
    scene, *objects = split_codes(codes)
    first, second = map(_mirror_object, objects)
    lone = second[:, :1] < 0
    swapped = torch.where(lone, first, second), torch.where(lone, second, first)
    return torch.cat([scene, *swapped], dim=1)


def _mirror_object(thing: Tensor) -> Tensor:
    name, x, base, size, turned, *rest = thing.unbind(1)
    shown = name >= 0
    x, turned = torch.where(shown, RESOLUTION - x, x), torch.where(shown, 1 - turned, 0)
    return torch.stack([name, x, base, size, turned, *rest], dim=1)


def augment(images: Tensor, codes: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Change images as generating them might, and half of them into their mirror.

    Args:
        images: (B, 3, 128, 128) in [-1, 1].
        codes: (B, 20), what they show.
        step: number of the training step; with the row it decides all changes.

    Returns:
        The images, and the codes of what they show now.
    """
    ids = torch.arange(len(images), device=images.device)
    u = uniform(key("judge change", step), ids, (10,))
    grain = normal(key("judge grain", step), ids, (3, RESOLUTION // 2, RESOLUTION // 2))
    flip = u[:, 0] < 0.5
    # In bfloat16 the coordinates of a moved image would be half a pixel off.
    with torch.autocast(images.device.type, enabled=False):
        images = _move(images, flip, u[:, 1:5])
        images = _soften(images, u[:, 5:7])
        images = _light(images, u[:, 7:9])
        images = images + 0.08 * _strength(u[:, 9]) * _double(grain)
    return images.clamp(-1, 1), torch.where(flip[:, None], mirror_codes(codes), codes)


def _strength(u: Tensor) -> Tensor:
    """A strength in [0, 1) for each image, (B, 1, 1, 1): 0 for half of them."""
    return (2 * u - 1).clamp(min=0)[:, None, None, None]


def _move(images: Tensor, flip: Tensor, u: Tensor) -> Tensor:
    """Mirror where ``flip``; shift half by up to 5 pixels, scale them by up to 8 %."""
    moved = (u[:, 0] < 0.5).float()  # the others stay exact: resampling blurs
    scale, across, down = (moved[:, None] * (2 * u[:, 1:] - 1)).unbind(1)
    zoom, reach, none = 1 + 0.08 * scale, 10 / RESOLUTION, torch.zeros_like(scale)
    rows = [
        torch.stack([torch.where(flip, -zoom, zoom), none, reach * across], dim=1),
        torch.stack([none, zoom, reach * down], dim=1),
    ]
    theta = torch.stack(rows, dim=1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _soften(images: Tensor, u: Tensor) -> Tensor:
    """Lose detail as an autoencoder does, then blur; each half of the time."""
    coarse = _double(F.avg_pool2d(images, 2))
    images = torch.lerp(images, coarse, _strength(u[:, 0]))
    blurred = F.avg_pool2d(F.pad(images, (1,) * 4, mode="replicate"), 3, stride=1)
    return torch.lerp(images, blurred, _strength(u[:, 1]))


def _light(images: Tensor, u: Tensor) -> Tensor:
    """Change contrast and brightness by up to a tenth."""
    gain, offset = (0.1 * (2 * u - 1))[..., None, None, None].unbind(1)
    return images * (1 + gain) + offset


@torch.no_grad()
def mix_reconstructions(images: Tensor, reconstruct: Reconstruct) -> Tensor:
    """A copy of the images in which every second one is a reconstruction.

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
        images = mix_reconstructions(images, reconstruct)
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


def agreement(answers: Mapping[str, Tensor], codes: Tensor) -> dict[str, float]:
    """Share of right answers, 0 to 1, about images of known scenes.

    Args:
        answers: from ``scores.read_answers``.
        codes: (B, 20), what the images show.

    Returns:
        ``place``, ``time``, ``weather``, ``medium``, ``art``: of all scenes;
        ``objects``: of the scenes, all names right and none too many, in any order;
        ``name``, ``finish``, ``accessory``: of the objects, each in its slot, and
        ``finish`` only where the medium shows colours. A share of nothing is left out.
    """
    right = labels(codes.cpu())
    correct = {name: answers[name] == right[name] for name in SCENE}
    names = [torch.stack([t["left.name"], t["right.name"]]) for t in (answers, right)]
    correct["objects"] = torch.eq(*(slots.sort(0).values for slots in names)).all(0)
    grey = torch.tensor([medium in COLOURLESS for medium in ANSWERS["medium"]])
    shown = names[1] > 0  # (2, B); 0 is "none"
    for name in OBJECT:
        slots = [f"{slot}.{name}" for slot in SLOTS]
        both = torch.stack([answers[slot] == right[slot] for slot in slots])
        hidden = grey[right["medium"]] & (name == "finish")
        correct[name] = both[shown & ~hidden]
    return {n: float(x.double().mean()) for n, x in correct.items() if len(x)}


def measure_judge(
    judge: Judge, n: int = 1024, reconstruct: Reconstruct | None = None
) -> list[dict[str, Any]]:
    """Share of right answers on ``n`` held-out scenes, rendered and reconstructed.

    Returns:
        ``images`` ("rendered", and with ``reconstruct`` also "reconstructed"),
        ``samples``, and each share of ``agreement``.
    """
    device = judge.places.device
    codes = quality.held_out(n).before
    kinds = {"rendered": quality.render(codes, device)}
    if reconstruct is not None:
        kinds["reconstructed"] = reconstruct(kinds["rendered"])
    return [
        {"images": kind, "samples": n, **agreement(read_answers(judge, images), codes)}
        for kind, images in kinds.items()
    ]


def load_round_trip(models: Path, device: torch.device) -> Reconstruct:
    """The round trip through the miniature's autoencoder, frozen, on ``device``."""
    vae = AutoencoderKL.from_pretrained(models / "miniature-sd" / "vae")
    vae = vae.to(device, memory_format=torch.channels_last).requires_grad_(False)
    return partial(quality.reconstruct, vae, batch=256)


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Draw scenes, render them and train a judge on them, saved in ``--out``."""
    corpus, reconstruct = (
        sample_corpus(0, args.scenes),
        load_round_trip(args.out, device),
    )
    codes = torch.cat([corpus.before, corpus.after])
    images = render_bytes(codes, device)
    budget = replace(BUDGET, seconds=args.seconds)
    judge = train_judge(codes, images, budget, reconstruct, args.batch)
    save_judge(judge, args.out / "miniature-judge")


def report(args: argparse.Namespace, device: torch.device) -> None:
    """Measure the judge in ``--out`` on held-out scenes and write the figures down."""
    began, reconstruct = time.monotonic(), load_round_trip(args.out, device)
    judge = load_judge(args.out / "miniature-judge", device)
    rows = measure_judge(judge, args.samples, reconstruct)
    print(*rows, sep="\n", flush=True)
    seconds = round(time.monotonic() - began, 1)
    path = args.results / "miniature-judge.json"
    claim = "Objects that the attribute classifier names after the autoencoder"
    row = ReadmeRow(claim, f"{rows[-1]['name']:.1%}", "97.5 %", args.samples)
    write_results(path, rows, seed=0, seconds=seconds, device=device, readme=[row])


def main() -> None:
    """Train the judge, or with ``--measure`` only measure it."""
    parser = argparse.ArgumentParser(description="The miniature's judge.")
    add = parser.add_argument
    add("--out", type=Path, default=MODELS, help="of all networks")
    add("--results", type=Path, default=RESULTS)
    add("--scenes", type=positive, default=150_000, help="two images each")
    add("--seconds", type=above_zero, default=BUDGET.seconds)
    add("--batch", type=positive, default=BATCH)
    add("--samples", type=positive, default=4096, help="to be measured on")
    add("--measure", action="store_true", help="train nothing")
    args, device = parser.parse_args(), pick_device()
    if not args.measure:
        train(args, device)
    report(args, device)


if __name__ == "__main__":
    main()
