"""How many examples a second training takes, beside diffusers' own step.

python -m benchmarks.training.speed                  the miniature, on this machine
python -m benchmarks.training.speed --size sd15      SD 1.5's size, random, on a GPU

Three ways to take optimiser steps on the same U-Net and the same pairs, in turns:

- ours    ``training.train`` from stored latents; on a GPU compiled, in bfloat16
- tuned   diffusers' train_instruct_pix2pix.py at its best: batches like ours,
          bfloat16, nothing checkpointed, with its average of the weights
- readme  the same as its README runs it: checkpointed, 4 times 4 examples, no average

Clipping, AdamW and the loader count; storing the latents, once a run, does not. The
script's images are on the device, decoded and cropped, which spares it the time of
its own loader. Before anything is timed, loss and gradients of both are compared in a
step of the same draws, on a GPU by their distance from those in float32. The floor is
the U-Net's arithmetic at the speed of matrix products.
Writes data/results/training-<size>-<device>.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clock import age
from benchmarks.training.of_diffusers import Drawn, Script
from benchmarks.training.of_library import Case, Ours, networks, prepare
from ip2p_lib.config import RESULTS
from ip2p_lib.device import pick_autocast, pick_device
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.results import ReadmeRow, write_results
from ip2p_lib.rng import integers, key, normal, uniform
from ip2p_lib.training.compiled import MODES
from ip2p_lib.training.latents import sample_ids_of_step

DROP = 0.25  # when comparing: few examples, each case among them
ROUNDING = 5e-3  # what stored latents, in half precision, may change in a gradient
CASES = {
    "sd15": Case(256, 256, 256, 128, 64, "blocks", host=True),
    "miniature on cuda": Case(128, 4096, 3072, 3072, 1536, "whole"),
    "miniature on cpu": Case(128, 64, 16, 16, 16, "none"),
    "tiny": Case(64, 8, 8, 4, 2, "none", host=True),
}


def gradients(unet: nn.Module, losses: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The sum of losses, and the gradient of every weight; the weights keep none."""
    total = torch.zeros((), device=next(unet.parameters()).device)
    for loss in losses:
        loss.backward()
        total += loss.detach()
    found = [weight.grad for weight in unet.parameters() if weight.grad is not None]
    unet.zero_grad()
    return total, *found


def apart(found: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    """How far they differ, as a share: the losses or all gradients, the larger one."""
    gaps = torch.stack([(a - b).norm() for a, b in zip(found, right, strict=True)])
    norms = torch.stack([b.norm() for b in right])
    return max(float(gaps[0] / norms[0]), float(gaps[1:].norm() / norms[1:].norm()))


def compare(ours: Ours, script: Script) -> dict[str, float]:
    """Errors of losses and gradients, and the seconds that compiling takes.

    Raises:
        SystemExit: ours are further from those in float32 than the script's.
    """
    case, device = ours.case, ours.backbone.device
    where = ours.latents.condition.device
    sample_ids = sample_ids_of_step(0, 0, case.micro_batch, case.pairs, where)
    ids, shape = sample_ids.to(device), (4, case.pixels // 8, case.pixels // 8)
    keys = {n: key(0, n, 0) for n in ("flip", "noise", "target", "timestep", "drop")}
    drawn = Drawn(
        ids % case.pairs,
        integers(keys["flip"], ids, 2),
        normal(keys["noise"], ids, shape),
        normal(keys["target"], ids, shape),
        integers(keys["timestep"], ids, 1000),
        uniform(keys["drop"], ids),
    )
    parts = drawn.cut(case.tuned)

    def of_script(half: torch.dtype | None) -> tuple[Tensor, ...]:
        losses = (script.loss(part, half, DROP) / len(parts) for part in parts)
        return gradients(script.unet, losses)

    script.checkpoint(True)  # float32 takes room
    right = of_script(None)
    script.checkpoint(False)
    theirs = of_script(script.half)
    error, began = apart(theirs, right), time.monotonic()
    del theirs
    own = apart(gradients(ours.unet, [ours.loss(sample_ids, DROP)]), right)
    if not own <= 1.25 * error + ROUNDING:
        raise SystemExit(f"Ours is off by {own:.1e}, the script by {error:.1e}.")
    seconds = round(time.monotonic() - began, 1)
    return {"error": own, "error_of_script": error, "seconds_compiling": seconds}


def product_speed(device: torch.device, dtype: torch.dtype | None, size: int) -> float:
    """Operations a second of products of square matrices."""
    matrix = torch.ones(size, size, device=device, dtype=dtype or torch.float32)
    seconds = []
    for _ in range(6):  # the first three warm up
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[3:])


def count_flops(backbone: StableDiffusion, pixels: int) -> int:
    """Operations of the forward and backward pass of one example."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(backbone.unet.config).train()
        latent = torch.ones(1, 8, pixels // 8, pixels // 8)
        text = torch.ones(1, 77, unet.config.cross_attention_dim)
        with FlopCounterMode(display=False) as counter:
            unet(latent, torch.ones(1), text).sample.sum().backward()
    return int(counter.get_total_flops())


def floor_of(case: Case, backbone: StableDiffusion) -> float:
    """Examples a second, if the U-Net ran as fast as large products do."""
    large = 8192 if backbone.device.type == "cuda" else 1024
    speed = product_speed(backbone.device, pick_autocast(backbone.device), large)
    return speed / count_flops(backbone, case.pixels)


def seconds_of(steps: Iterator[Any], n: int, device: torch.device) -> float:
    """Take n steps; returns the seconds of one."""
    began = time.monotonic()
    for _ in range(n):
        next(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.monotonic() - began) / n


def take_turns(
    ways: dict[str, Iterator[Any]], args: argparse.Namespace, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of a step, turn by turn, for as many turns as the budget allows."""
    counts, seconds = {}, {name: [] for name in ways}
    for name, steps in ways.items():
        seconds_of(steps, 2, device)
        counts[name] = max(1, round(args.seconds / seconds_of(steps, 1, device)))
    for turn in range(args.turns):
        began = time.monotonic()
        for name, steps in ways.items():
            seconds[name].append(seconds_of(steps, counts[name], device))
        taken = time.monotonic() - began
        print(f"turn {turn + 1} took {taken:.1f} s, at {age():.0f} s", flush=True)
        if age() + taken > args.budget:
            break
    return seconds


def row_of(
    way: str, portion: tuple[int, int], seconds: dict[str, list[float]], floor: float
) -> dict[str, Any]:
    """How fast a way is, by the median of its turns; ``portion`` as in ``portions``."""
    rates = sorted(portion[0] * portion[1] / taken for taken in seconds[way])
    return {
        "way": way,
        "examples_per_second": round(statistics.median(rates), 2),
        "slowest_and_fastest_turn": [round(rates[0], 2), round(rates[-1], 2)],
        "times_the_floor": round(floor / statistics.median(rates), 2),
        "micro_batch": portion[0],
        "accumulation": portion[1],
        "turns": len(rates),
    }


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add how many times the speed of either form of the script each way has."""
    speed = {row["way"]: row["examples_per_second"] for row in rows}
    return [
        row | {f"times_{n}": round(speed[row["way"]] / speed[n], 2) for n in speed}
        for row in rows
    ]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--size", choices=["miniature", "sd15"], default="miniature")
    add("--tiny", action="store_true", help="sd15's way with the miniature's networks")
    add("--turns", type=int, default=5, help="at most")
    add("--seconds", type=float, default=2, help="of each way in a turn")
    add("--budget", type=float, default=200, help="seconds for all, compiling included")
    add("--batch", type=int, help="examples of a step, ours and tuned")
    add("--micro-batch", type=int, help="examples at once, ours")
    add("--tuned", type=int, help="examples at once, tuned")
    add("--compiled", choices=MODES, help="of our U-Net")
    add("--out", type=Path)
    return parser.parse_args()


def case_of(args: argparse.Namespace, device: torch.device) -> Case:
    """What the command line asks for."""
    name = args.size if args.size == "sd15" else f"{args.size} on {device.type}"
    asked = {
        name: getattr(args, name)
        for name in ("batch", "micro_batch", "tuned", "compiled")
        if getattr(args, name)
    }
    case = replace(CASES["tiny" if args.tiny else name], **asked)
    for whole, part in (case.batch, case.micro_batch), (case.micro_batch, case.tuned):
        if whole % part:
            raise SystemExit(f"{whole} are no multiple of {part} at once.")
    return case


def readme_row(size: str, device: str, rows: list[dict[str, Any]]) -> ReadmeRow:
    """The README's line on one size and device."""
    ours = next(row for row in rows if row["way"] == "ours")
    ratio, rate = f"{ours['times_tuned']:.1f} x", ours["examples_per_second"]
    against = "against diffusers' script tuned"
    if size == "sd15":
        claim = "Training at Stable Diffusion's size (256 px, random weights), "
        value = f"{ratio}, {rate:.0f} a second"
        return ReadmeRow(claim + against, value, "3 x, 450 a second")
    claim = "The miniature's training from stored latents, "
    if device == "cpu":
        return ReadmeRow(claim + against, ratio, "1.5 x")
    return ReadmeRow(claim + "examples a second", f"{rate:,.0f}", "20,000")


def main() -> None:
    """Compare, then time in turns."""
    args, device = arguments(), pick_device()
    if args.size == "sd15" and device.type == "cpu" and not args.tiny:
        raise SystemExit("860 million parameters want a GPU; --tiny runs without one.")
    case = case_of(args, device)
    backbone = networks("miniature" if args.tiny else args.size, device)
    floor = floor_of(case, backbone)
    pairs, latents = prepare(case, backbone)
    script, ours = Script(backbone, pairs), Ours(backbone, latents, case)
    print(f"prepared at {age():.0f} s", flush=True)
    facts = compare(ours, script)
    print(facts, f"compared at {age():.0f} s", flush=True)
    portions = {
        "ours": (case.micro_batch, case.batch // case.micro_batch),
        "tuned": (case.tuned, case.batch // case.tuned),
        "readme": (4, 4),
    }
    ways: dict[str, Iterator[Any]] = {"ours": ours.steps()}
    for way in ("tuned", "readme"):
        ways[way] = script.steps(*portions[way], readme=way == "readme")
    seconds = take_turns(ways, args, device)
    rows = with_ratios([row_of(n, portions[n], seconds, floor) for n in ways])
    for row in rows:
        print(row)
    out = args.out or RESULTS / f"training-{args.size}-{device.type}.json"
    if not args.tiny or args.out:
        facts |= {"floor": round(floor, 1), "threads": torch.get_num_threads()}
        taken = round(age(), 1)
        readme = [] if args.tiny else [readme_row(args.size, device.type, rows)]
        run = {"seed": 0, "seconds": taken, "device": device, "readme": readme}
        print(write_results(out, rows, **run, **facts))


if __name__ == "__main__":
    main()
