"""How many candidates a second are generated, beside two other ways to do the same.

python -m benchmarks.rendering.speed                the miniature, on this machine
python -m benchmarks.rendering.speed --size sd15    SD 1.5's size, random weights, a GPU

Five ways, in turns; slow ones are given fewer of the same candidates:

- released    as the released code: one candidate in four rows, attention maps formed
- pipeline    diffusers' pipeline in a loop, with attention processors that share
- batched     ``generate_pairs``
- trees       ``generate_batched``; candidates of a seed differ in p alone, as many of
              one seed as ``--tree-sizes`` says, and once more for each further size
- filtered    the last trees, and CLIP keeps the best; only at the miniature's size

Before anything is timed, each way's images are compared with those of the pipeline, in
float32. On a GPU all but the first are then compiled, in bfloat16, and the difference
of their images from the pipeline's is reported.
Writes data/results/rendering-<size>-<device>.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.clock import age
from benchmarks.full_size import full_size
from benchmarks.rendering.ways import Way, difference, filtered, in_order, ways_of
from ip2p_lib.config import HELD_OUT, RESULTS, Rendering, preset
from ip2p_lib.device import pick_autocast, pick_device
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.rendering import Candidate, draw_trees
from ip2p_lib.results import ReadmeRow, write_results
from ip2p_lib.training.compiled import MODES, compile_unet

FEW, FEW_STEPS = 4, 4  # candidates and steps that are compared
APART = 0.05  # of 255 levels, at most, in float32


@dataclass(frozen=True)
class Case:
    """What is generated, and how many candidates each way is given."""

    steps: int
    batch: int  # candidates at once, in four rows each
    triplets: int
    candidates: int  # of each triplet
    fewer: dict[str, int]  # candidates of the ways that are not given all


CASES = {
    "sd15": Case(
        100, 8, 4, 64, {"released": 2, "pipeline": 4, "batched": 8, "trees": 64}
    ),
    "miniature on cuda": Case(
        25, 512, 64, 192, {"released": 8, "pipeline": 8, "batched": 1024}
    ),
    "miniature on cpu": Case(12, 8, 8, 4, {}),
    "tiny": Case(5, 2, 2, 4, {"released": 1, "pipeline": 2}),
}


def differences(
    backbone: StableDiffusion,
    plain: StableDiffusion,
    batch: int,
    candidates: list[Candidate],
) -> dict[str, float]:
    """How far each way is from the pipeline; this call compiles what is compiled."""
    pairs, full = {}, max(FEW, batch)
    for name, way in ways_of(backbone, plain, FEW_STEPS, batch).items():
        n = FEW if name in ("released", "pipeline") else full
        pairs[name] = in_order(way, candidates[:n])[:FEW]
    return {name: difference(pairs[name], pairs["pipeline"]) for name in pairs}


def compare(backbone: StableDiffusion, candidates: list[Candidate]) -> dict[str, float]:
    """Compare all ways in float32.

    Raises:
        SystemExit: one generates other images than the pipeline.
    """
    parts = (backbone.text_encoder, backbone.vae, backbone.unet)
    text, vae, unet = (copy.deepcopy(part).float() for part in parts)
    exact = replace(backbone, text_encoder=text, vae=vae, unet=unet)
    with torch.backends.cudnn.flags(allow_tf32=False):  # else a float has 10 bits
        gaps = differences(exact, exact, 2, candidates)
    for name, gap in gaps.items():
        if not gap <= APART:
            raise SystemExit(f"{name} is {gap:.3f} of 255 from diffusers' pipeline.")
    return gaps


def seconds_of(way: Way, candidates: Sequence[Candidate]) -> float:
    """Seconds that a way takes, including the device's."""
    began = time.monotonic()
    pair = [pair for batch in way(candidates) for pair in batch][-1]
    _ = float(pair.after.sum())
    return time.monotonic() - began


def take_turns(
    chosen: dict[str, Way],
    given: dict[str, list[Candidate]],
    args: argparse.Namespace,
) -> dict[str, list[float]]:
    """Seconds a candidate, turn by turn, for as many turns as the budget allows."""
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for turn in range(args.turns):
        began = age()
        for name, way in chosen.items():
            seconds[name].append(seconds_of(way, given[name]) / len(given[name]))
            print(f"{name} {seconds[name][-1]:.4f} s, at {age():.0f} s", flush=True)
        print(f"turn {turn + 1} took {age() - began:.1f} s", flush=True)
        if 2 * age() - began > args.budget:
            break
    return seconds


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--size", choices=["miniature", "sd15"], default="miniature")
    add("--tiny", action="store_true", help="sd15's way with the miniature's networks")
    add("--turns", type=int, default=3, help="at most")
    add("--budget", type=float, default=900, help="seconds for all, compiling included")
    add("--batch", type=int, help="candidates at once")
    add("--steps", type=int)
    add("--tree-sizes", type=int, nargs="+", default=[4], help="candidates of a seed")
    add("--compiled", choices=MODES, default="blocks", help="on a GPU")
    return parser.parse_args()


def prepare(
    args: argparse.Namespace, device: torch.device
) -> tuple[Case, StableDiffusion, dict[int, list[Candidate]]]:
    """The networks, and their candidates by tree size, from the command line."""
    if args.size == "sd15" and device.type == "cpu" and not args.tiny:
        raise SystemExit("860 million parameters want a GPU; --tiny runs without one.")
    name = args.size if args.size == "sd15" else f"{args.size} on {device.type}"
    asked = {n: getattr(args, n) for n in ("batch", "steps") if getattr(args, n)}
    case = replace(CASES["tiny" if args.tiny else name], **asked)
    scale, half = preset("miniature"), pick_autocast(device)
    backbone = load_stable_diffusion(scale.backbone, device=device, dtype=half)
    settings = scale.rendering
    if args.size == "sd15" and not args.tiny:
        with device:  # draws the weights there, which a host does slowly
            backbone = full_size(backbone.tokenizer, device.type)
        settings = Rendering()
    every = grammar_triplets(HELD_OUT, 4 * case.triplets)
    triplets = [t for t in every if t.language == "en"][: case.triplets]
    drawn = {
        n: draw_trees(triplets, max(1, case.candidates // n), n, 0, settings)
        for n in args.tree_sizes
    }
    return case, backbone, drawn


def rows_of(
    case: Case,
    given: dict[str, list[Candidate]],
    seconds: dict[str, list[float]],
    gaps: dict[str, float],
) -> list[dict[str, Any]]:
    """The result of each way."""
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [
        {
            "way": name,
            "candidates": len(given[name]),
            "candidates_per_second": round(1 / median, 3),
            "times_the_pipeline": round(medians["pipeline"] / median, 2),
            "times_released": round(medians["released"] / median, 2),
            "turns": len(seconds[name]),
            "difference_of_255": round(gaps[name], 4) if name in gaps else None,
            "steps": case.steps,
            "batch": case.batch,
            "threads": torch.get_num_threads(),
        }
        for name, median in medians.items()
    ]


def readme_rows(size: str, device: str, rows: list[dict[str, Any]]) -> list[ReadmeRow]:
    """The lines of the README's table."""
    by_way = {row["way"]: row for row in rows}
    trees = by_way["trees"]
    if size == "sd15":
        claim = (
            f"Generation at Stable Diffusion's size (512 px, {trees['steps']} steps, "
            "random weights), trees of 4, against the released code"
        )
        seconds = 1 / trees["candidates_per_second"]
        value = f"{trees['times_released']:.1f} x, {seconds:.2f} s a candidate"
        return [ReadmeRow(claim, value, "8 x, 0.55 s", trees["candidates"])]
    if device == "cpu":
        claim = "The miniature's generation in trees of 4, against diffusers' pipeline"
        value = f"{trees['times_the_pipeline']:.1f} x"
        return [ReadmeRow(claim, value, "2 x", trees["candidates"])]
    kept = by_way["filtered"]
    claim = (
        "The miniature's candidates generated and filtered a second, "
        f"{kept['steps']} steps"
    )
    value = f"{kept['candidates_per_second']:,.0f}"
    return [ReadmeRow(claim, value, "1,000", kept["candidates"])]


def main() -> None:
    """Compare, then time in turns."""
    args, device = arguments(), pick_device()
    case, backbone, drawn = prepare(args, device)
    candidates, *larger = drawn.values()
    gaps = compare(backbone, candidates)
    print(gaps, f"compared at {age():.0f} s", flush=True)
    compiled = args.compiled if device.type == "cuda" else "none"
    plain = replace(backbone, unet=copy.deepcopy(backbone.unet))
    if compiled != "none":
        compile_unet(backbone.unet, compiled)
        gaps = differences(backbone, plain, case.batch, candidates)
        print(gaps, f"compiled at {age():.0f} s", flush=True)
    chosen = ways_of(backbone, plain, case.steps, case.batch)
    facts: dict[str, Any] = {"of_each_tree": args.tree_sizes, "compiled": compiled}
    given = {name: candidates[: case.fewer.get(name)] for name in chosen}
    for n, more in zip(args.tree_sizes[1:], larger, strict=True):
        chosen[f"trees of {n}"], given[f"trees of {n}"] = chosen["trees"], more
    if args.size == "miniature":
        chosen["filtered"] = filtered(chosen["trees"], 2 * case.batch)
        given["filtered"] = [candidates, *larger][-1]
        # To warm up; the others ran when they were compared.
        in_order(chosen["filtered"], candidates[: case.batch])
    seconds = take_turns(chosen, given, args)
    rows = rows_of(case, given, seconds, gaps)
    for row in rows:
        print(row)
    if not args.tiny:
        path = RESULTS / f"rendering-{args.size}-{device.type}.json"
        facts["readme"] = readme_rows(args.size, device.type, rows)
        facts |= {"seconds": round(age(), 1), "device": device}
        print(write_results(path, rows, seed=0, **facts))


if __name__ == "__main__":
    main()
