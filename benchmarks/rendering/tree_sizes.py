"""How many pairs the filter keeps if candidates are drawn in larger trees.

    python -m benchmarks.rendering.tree_sizes    on a GPU; on two cores in minutes:
                                   --triplets 1 --each 32 --steps 14 --batch 8

Candidates of one seed share their image before, so larger trees cost less per candidate
and show fewer scenes. Of held-out captions the same number of candidates is drawn in
trees of several sizes, generated and filtered, and the steps of all images are counted.
Steps are as many as the released code's: with few, many candidates would be equal.
Writes data/results/tree-sizes-miniature-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ip2p_lib.config import HELD_OUT, RESULTS, Scale, preset
from ip2p_lib.dataset.generate import Models
from ip2p_lib.device import pick_autocast, pick_device
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion
from ip2p_lib.filtering import Scores, keep_best, score_generated
from ip2p_lib.filtering.calibration import proportion_ci
from ip2p_lib.miniature.judge.calibration import held_out_edits
from ip2p_lib.rendering import Candidate, draw_trees, generate_batched
from ip2p_lib.rendering.shared_attention import is_active
from ip2p_lib.results import ReadmeRow, write_results
from ip2p_lib.training.compiled import compile_unet
from ip2p_lib.triplets.record import Triplet

FIRST = HELD_OUT + 2 * 10**6  # scenes on which no threshold was calibrated
SIZES = (1, 4, 16, 32)  # values of p for one seed
SHOWN = 16  # the size in the README


def keep_candidates(
    models: Models, candidates: Sequence[Candidate], scale: Scale
) -> set[Candidate]:
    """Generate and filter: the candidates that the filter keeps."""
    settings = scale.rendering
    batches = generate_batched(
        models.backbone,
        candidates,
        steps=settings.steps,
        batch_rows=2 * settings.batch_size,
        sampler=settings.sampler,
    )
    pairs, parts = [], []
    for batch in batches:
        parts.append(vars(score_generated(models.clip, batch)).values())
        pairs += [pair.candidate for pair in batch]
    scores = Scores(*map(torch.cat, zip(*parts, strict=True)))
    rows = keep_best(scores, [c.triplet for c in pairs], scale.filtering)
    return {pairs[row] for row in rows}


def trees_of(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Candidates by tree: those of one triplet and seed."""
    trees: dict[tuple[Triplet, int], list[Candidate]] = {}
    for c in candidates:
        trees.setdefault((c.triplet, c.seed), []).append(c)
    return list(trees.values())


def image_steps(tree: Sequence[Candidate], steps: int) -> int:
    """Sampling steps of all images of a tree (equation 6 of notebook 02)."""
    p = torch.tensor([c.p for c in tree], dtype=torch.float64)
    shared = sum(is_active(p, i, steps).long() for i in range(steps))
    _, *branches = sorted({int(n) for n in shared}, reverse=True)
    return 2 * steps + sum(steps - n for n in branches)


def row_of(
    models: Models, triplets: list[Triplet], each: int, n: int, scale: Scale
) -> dict[str, Any]:
    """The result of trees of n, ``each`` candidates per triplet in all."""
    drawn = draw_trees(triplets, each // n, n, 0, scale.rendering)
    kept = keep_candidates(models, drawn, scale)
    rate = proportion_ci(torch.tensor([candidate in kept for candidate in drawn]))
    steps = sum(image_steps(tree, scale.rendering.steps) for tree in trees_of(drawn))
    return {
        "of_each_tree": n,
        "candidates": len(drawn),
        "kept": len(kept),
        "kept_of_hundred": round(100 * rate.value, 3),
        "interval": [round(100 * rate.low, 3), round(100 * rate.high, 3)],
        "first_images_of_kept": len(trees_of(kept)),
        "triplets_with_kept": len({c.triplet for c in kept}),
        "steps_of_a_candidate": round(steps / len(drawn), 2),
    }


def readme_row(rows: list[dict[str, Any]]) -> ReadmeRow:
    """Kept pairs an hour: the speed at full size times the keep rates here."""
    speed = json.loads((RESULTS / "rendering-sd15-cuda.json").read_text("utf-8"))
    times = {row["way"]: row["times_released"] for row in speed["rows"]}
    kept = {row["of_each_tree"]: row["kept"] for row in rows}
    claim = (
        f"Pairs an hour that pass the filter, trees of {SHOWN} at Stable Diffusion's "
        "size, against the released code"
    )
    value = f"{times[f'trees of {SHOWN}'] * kept[SHOWN] / kept[1]:.1f} x"
    return ReadmeRow(claim, value, "15 x", rows[0]["candidates"])


def main() -> None:
    """Generate and filter the same number of candidates in trees of each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--triplets", type=int, default=100)
    parser.add_argument("--each", type=int, default=96, help="candidates of a triplet")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=512, help="candidates at once")
    args, scale, began = parser.parse_args(), preset("miniature"), time.monotonic()
    if any(args.each % n for n in SIZES):
        raise SystemExit(f"{args.each} candidates are no whole trees of {SIZES}.")
    device = pick_device()
    rendering = replace(scale.rendering, steps=args.steps, batch_size=args.batch)
    scale, dtype = replace(scale, rendering=rendering), pick_autocast(device)
    backbone = load_stable_diffusion(scale.backbone, device=device, dtype=dtype)
    compile_unet(backbone.unet, "whole" if device.type == "cuda" else "none")
    models = Models(backbone, load_clip(scale.clip, device=device))
    triplets, rows = [edit.triplet for edit in held_out_edits(args.triplets, FIRST)], []
    for n in SIZES:
        rows.append(row_of(models, triplets, args.each, n, scale))
        print(rows[-1], f"at {time.monotonic() - began:.0f} s", flush=True)
    facts: dict[str, Any] = {"triplets": args.triplets, "steps": args.steps}
    facts |= {"device": device, "readme": [readme_row(rows)]}
    path = RESULTS / f"tree-sizes-miniature-{device.type}.json"
    seconds = round(time.monotonic() - began, 1)
    print(write_results(path, rows, seed=0, seconds=seconds, **facts))


if __name__ == "__main__":
    main()
