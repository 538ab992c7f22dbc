"""How many good pairs early rejection loses, and what it saves.

    python benchmarks/rejection.py    on two cores; --triplets 100 --each 100 on a GPU

As the paper does, each of some held-out captions is rendered many times, here in trees
of four or ``--tree``, and the filter keeps the few best. All are walked in full, one by
one, and what is predicted at some steps is scored too: so it is known what a
``Preview`` would have stopped. Floors are fitted to half of the triplets and measured
on the other half, both ways round; a contest has nothing to fit. Of the settings that
lose at most one kept pair in twenty, that with most kept pairs an hour (relative to no
rejection; of walking as trees, decoding and scoring) is chosen, and used in
``slots.render_in_slots`` for a quarter of the triplets, beside none.
Writes data/results/rejection-miniature-<device>.json.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from rejection_trees import enter, first_pictures, shown, walked
from torch import Tensor

from ip2p_lib import rng
from ip2p_lib.config import HELD_OUT, RESULTS, Filtering, Rendering, Scale, preset
from ip2p_lib.dataset.generate import Makers
from ip2p_lib.device import pick_device
from ip2p_lib.diffusion.denoising import caption_denoiser
from ip2p_lib.diffusion.sampler_steps import step_table
from ip2p_lib.diffusion.stable_diffusion import Backbone, load_backbone
from ip2p_lib.filtering import early_rejection as rejection
from ip2p_lib.filtering.clip_filter import Scores, keep_best, load_clip
from ip2p_lib.rendering.continuous_batching import render_by
from ip2p_lib.rendering.paired_sampling import sample_pairs
from ip2p_lib.rendering.render import Candidate, RenderedPair, noise_key
from ip2p_lib.rendering.trees import draw_trees
from ip2p_lib.results import write_results
from jobs.miniature.calibrate_filter import tasks

FIRST = HELD_OUT + 2 * 10**6  # scenes on which no threshold was calibrated
RECALL = 0.95  # at least, of the pairs that are kept without rejection
LOOKS = (2, 3, 4, 5, 6)  # twelfths of the way
NAMES = ("image", "text", "direction")
# Names of floors, their slack and their margin; no floor at all comes first.
FLOORS = [((), 0.0, 0.0)] + [
    (names, slack, margin)
    for names in (NAMES[:1], NAMES[:2], NAMES)
    for slack, margin in ((0.0, 0.05), (0.0, 0.0), (0.01, 0.0), (0.02, 0.0))
]
PLACES = (None, 4, 5, 6, 8, 10, 12, 16)
Candidates = Sequence[Candidate]


def walk(backbone: Backbone, batch: Candidates, settings: Rendering) -> list[Tensor]:
    """(2N, C, h, w) clean latents as each step predicts them, the last as finished.

    As ``rendering.render`` walks; a preview in slots is shown the same predictions.
    """
    ids = torch.tensor([c.seed for c in batch], device=backbone.device)
    p = torch.tensor([c.p for c in batch], dtype=torch.float64)
    scale = torch.tensor([c.cfg_scale for c in batch]).repeat(2).to(backbone.device)
    captions = [c.triplet.caption for c in batch]
    text = backbone.encode_text([*captions, *(c.triplet.edited_caption for c in batch)])
    guided = caption_denoiser(backbone.unet, text, backbone.null_text, scale)
    way = backbone.schedule, settings.steps, settings.sampler
    table, clean = step_table(*way), list[Tensor]()

    def told(x: Tensor, t: Tensor) -> Tensor:
        """Predict, and note the clean latents; called once a step, in order."""
        eps, (h, s) = guided(x, t), table[len(clean), 1:3].tolist()
        clean.append(h * x - s * eps)
        return eps

    noise = rng.normal(noise_key(-1), ids, backbone.latent_shape).float()
    noise = noise.repeat(2, 1, 1, 1)  # the miniature's sampler adds none
    end = sample_pairs(backbone.unet, told, lambda _: noise, *way, p)
    return [*clean[:-1], end]


def score(networks: Makers, pairs: Sequence[RenderedPair]) -> Tensor:
    """(4, N) scores, on the CPU."""
    scores = rejection.score_rendered(networks.clip, pairs)
    return torch.stack([*vars(scores).values()]).cpu()


def look_at_all(
    networks: Makers, candidates: Candidates, settings: Rendering
) -> tuple[dict[int, Scores], float, float]:
    """Scores by steps done, at last finished; seconds to walk, and to look once."""
    size, steps, walking, looking = settings.batch_size, settings.steps, 0.0, 0.0
    looks = sorted({max(1, steps * part // 12) for part in LOOKS} | {steps})
    seen: dict[int, list[Tensor]] = {look: [] for look in looks}
    for batch in (candidates[i : i + size] for i in range(0, len(candidates), size)):
        start = time.monotonic()
        latents = walk(networks.backbone, batch, settings)
        _ = float(latents[-1].sum())  # waits for a GPU
        middle = time.monotonic()
        for look in looks:
            pictures = networks.backbone.decode(latents[look - 1]).chunk(2)
            pairs = [*map(RenderedPair, batch, *pictures)]
            seen[look].append(score(networks, pairs))
        walking += middle - start
        looking += (time.monotonic() - middle) / len(looks)
    scores = {look: Scores(*torch.cat(parts, 1)) for look, parts in seen.items()}
    return scores, walking, looking


def measure(
    scores: dict[int, Scores], candidates: Candidates, limits: Filtering, *cost: float
) -> Iterator[dict[str, Any]]:
    """Every setting of the grid, on triplets that its floors were not fitted to.

    Those of one step and number of places follow each other. ``cost`` is of a step of
    one picture, and of a look at a pair, in seconds.
    """
    *looks, steps = scores
    groups = [c.triplet for c in candidates]
    kept = keep_best(scores[steps], groups, limits)
    trees = (first_pictures(candidates), -1)
    p = torch.tensor([c.p for c in candidates]).unflatten(0, trees)
    every = torch.ones_like(p, dtype=torch.bool)
    without = cost[0] * walked(p, every, 0, steps) + cost[1] * p.numel()
    grid = itertools.product(looks, PLACES, FLOORS)
    for look, places, (names, slack, margin) in grid:
        given, care = (scores[look], kept, limits), {"slack": slack, "margin": margin}
        reach = rejection.finish_by_halves(*given, groups, names=names, **care)
        place = shown(candidates, look, steps)
        finish = enter(reach, scores[look], groups, place, rejection.Contest(places))
        told = rejection.outcome(finish, scores[steps], groups, limits)
        floors = vars(rejection.fit_floors(*given, names=names, **care))
        rows = walked(p, finish.view_as(every), look, steps)
        looked = len(set(place)) + int(finish.sum())  # what is finished, once more
        spent = cost[0] * rows + cost[1] * looked
        numbers = {
            "recall": told.recall.value,
            "recall_at_least": told.recall.low,
            "rejected": told.rejected.value,
            "steps_saved": 1 - rows / walked(p, every, 0, steps),
            "kept_pairs_an_hour": told.kept / len(kept) * without / spent,
        }
        yield {
            "step": look,
            "places": places,
            **care,
            "floors": {name: round(floors[name], 4) for name in NAMES},
            **{name: round(number, 4) for name, number in numbers.items()},
        }


def best_of(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The row with most kept pairs an hour; if all lose too many, the most recall."""

    def worth(row: dict[str, Any]) -> tuple[bool, float]:
        enough = row["recall"] >= RECALL
        return enough, row["kept_pairs_an_hour" if enough else "recall"]

    return max(rows, key=worth)


def in_slots(
    networks: Makers, candidates: Candidates, scale: Scale, preview: Any
) -> tuple[set[Candidate], float]:
    """What the filter keeps of candidates rendered in slots, and how many a second."""
    start = time.monotonic()
    batches = render_by(networks.backbone, candidates, scale.rendering, preview)
    found = [(score(networks, pairs), pairs) for pairs in batches]
    made = [pair.candidate for _, pairs in found for pair in pairs]
    scores = Scores(*torch.cat([part for part, _ in found], 1))
    rows = keep_best(scores, [c.triplet for c in made], scale.filtering)
    return {made[row] for row in rows}, len(rows) / (time.monotonic() - start)


def compare(networks: Makers, candidates: Candidates, scale: Scale, best: dict) -> dict:
    """The best setting at work, beside no preview."""
    step, floors = best["step"], Filtering(**best["floors"])
    preview = rejection.clip_preview(networks.clip, step, floors, best["places"])
    kept, speed = in_slots(networks, candidates, scale, None)
    still, faster = in_slots(networks, candidates, scale, preview)
    recall, gain = round(len(kept & still) / len(kept), 4), round(faster / speed, 4)
    return {"of": len(candidates), "recall": recall, "kept_pairs_an_hour": gain}


def report(
    networks: Makers, candidates: Candidates, scale: Scale
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The best row of each step and number of places, and facts: what is chosen."""
    size, limits = scale.rendering.batch_size, scale.filtering
    each = scale.rendering.candidates
    look_at_all(networks, candidates[:size], scale.rendering)  # warms up
    scores, *seconds = look_at_all(networks, candidates, scale.rendering)
    steps, n = scale.rendering.steps, len(candidates)
    cost = seconds[0] / (2 * n * steps), seconds[1] / n
    alike = itertools.groupby(
        measure(scores, candidates, limits, *cost),
        key=lambda row: (row["step"], row["places"]),
    )
    rows = [best_of(part) for _, part in alike]
    best = best_of(rows)
    best = best if best["recall"] >= RECALL else None
    some = candidates[: max(len(candidates) // each // 4, 1) * each]
    groups = [c.triplet for c in candidates]
    return rows, {
        "candidates": n,
        "of_each_triplet": each,
        "of_each_tree": n // first_pictures(candidates),
        "steps": steps,
        "kept": len(keep_best(scores[steps], groups, limits)),
        "seconds_to_walk_and_look_once": [round(part, 2) for part in seconds],
        "chosen": best,
        "it_pays": bool(best) and best["kept_pairs_an_hour"] > 1,
        "in_slots": best and compare(networks, some, scale, best),
    }


def main() -> None:
    """Measure the grid, choose, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--triplets", type=int, default=12)
    parser.add_argument("--each", type=int, default=32, help="of a triplet")
    parser.add_argument("--tree", type=int, default=4, help="candidates of a seed")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", help="another file than in data/results")
    args, scale, began = parser.parse_args(), preset("miniature"), time.monotonic()
    device = pick_device(None if args.device == "auto" else args.device)
    rendering = replace(scale.rendering, candidates=args.each)
    if device.type == "cuda":
        rendering = replace(rendering, batch_size=256)
    scale = replace(scale, rendering=rendering)
    clip = load_clip(scale.clip, device=device)
    networks = Makers(load_backbone(scale.backbone, device=device), clip)
    triplets = [task.triplet for task in tasks(args.triplets, FIRST)]
    settings = scale.rendering
    seeds = settings.candidates // args.tree
    candidates = draw_trees(triplets, seeds, args.tree, 0, settings)
    rows, facts = report(networks, candidates, scale)
    path = args.out or RESULTS / f"rejection-miniature-{device.type}.json"
    taken = round(time.monotonic() - began, 1)
    print(write_results(path, rows, seed=0, seconds=taken, device=device, **facts))
    print(facts)


if __name__ == "__main__":
    main()
