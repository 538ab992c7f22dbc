"""How many pairs the filter keeps if candidates are drawn in larger trees.

    python benchmarks/tree_sizes.py    on a GPU; on two cores in minutes:
                                       --triplets 1 --each 32 --steps 14 --batch 8

Candidates of one seed share their first picture, so a tree of many costs less for each,
and shows fewer scenes. Of held-out captions the same number of candidates is drawn in
trees of several sizes, rendered and filtered: what is kept of them tells what a larger
tree is worth. The steps that a candidate takes, of one picture, are counted beside it.
Steps are as many as the released code's: with few, many candidates would be one.
Writes data/results/tree-sizes-miniature-<device>.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from rejection import FIRST, in_slots
from rejection_trees import first_pictures, walked

from ip2p_lib.config import RESULTS, Scale, preset
from ip2p_lib.dataset.generate import Makers
from ip2p_lib.device import choose_precision, pick_device
from ip2p_lib.diffusion.stable_diffusion import load_backbone
from ip2p_lib.filtering.calibration import share
from ip2p_lib.filtering.clip_filter import load_clip
from ip2p_lib.rendering.trees import draw_trees
from ip2p_lib.results import write_results
from ip2p_lib.training.compiled.compile import compile_unet
from ip2p_lib.triplets.record import Triplet
from jobs.miniature.calibrate_filter import tasks

SIZES = (1, 4, 16, 32)  # of p, for one seed


def row_of(
    networks: Makers, triplets: list[Triplet], each: int, n: int, scale: Scale
) -> dict[str, Any]:
    """What is kept of trees of n, ``each`` candidates of a triplet in all."""
    drawn = draw_trees(triplets, each // n, n, 0, scale.rendering)
    kept, _ = in_slots(networks, drawn, scale, None)
    told = share(torch.tensor([candidate in kept for candidate in drawn]))
    p = torch.tensor([c.p for c in drawn], dtype=torch.float64).unflatten(0, (-1, n))
    steps = walked(p, torch.ones_like(p, dtype=torch.bool), 0, scale.rendering.steps)
    return {
        "of_each_tree": n,
        "candidates": len(drawn),
        "kept": len(kept),
        "kept_of_hundred": round(100 * told.value, 3),
        "interval": [round(100 * told.low, 3), round(100 * told.high, 3)],
        "first_pictures_of_kept": first_pictures(kept),
        "triplets_with_kept": len({c.triplet for c in kept}),
        "steps_of_a_candidate": round(steps / len(drawn), 2),
    }


def main() -> None:
    """Render and filter the same number of candidates in trees of each size."""
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
    scale, half = replace(scale, rendering=rendering), choose_precision(device).autocast
    backbone = load_backbone(scale.backbone, device=device, dtype=half)
    compile_unet(backbone.unet, "whole" if device.type == "cuda" else "none")
    networks = Makers(backbone, load_clip(scale.clip, device=device))
    triplets, rows = [task.triplet for task in tasks(args.triplets, FIRST)], []
    for n in SIZES:
        rows.append(row_of(networks, triplets, args.each, n, scale))
        print(rows[-1], f"at {time.monotonic() - began:.0f} s", flush=True)
    facts = {"triplets": args.triplets, "steps": args.steps}
    path = RESULTS / f"tree-sizes-miniature-{device.type}.json"
    taken = round(time.monotonic() - began, 1)
    print(write_results(path, rows, seed=0, seconds=taken, device=device, **facts))


if __name__ == "__main__":
    main()
