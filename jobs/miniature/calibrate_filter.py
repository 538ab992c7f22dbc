"""Renders held-out triplets, filters nothing, and marks every candidate.

    python -m jobs.miniature.calibrate_filter

leaves ``results/filter-calibration.json``: of each candidate what it was drawn with,
its four CLIP scores and the judge's verdict. From this file notebook 03 draws what a
threshold keeps, and chooses thresholds; run it again when a network was trained anew.

    python -m jobs.miniature.calibrate_filter --lent 1

marks the same candidates with words lent (``candidates.add_cross_attention_edit``), as
``results/filter-calibration-lent.json``: what that is good for is the difference.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p_lib.config import HELD_OUT, RESULTS, Rendering, preset
from ip2p_lib.diffusion.clip import ClipScorer, load_clip
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.filtering.clip_filter import Scores, score_pairs
from ip2p_lib.miniature.judge.model import Judge, load_judge
from ip2p_lib.miniature.judge.verdicts import verdicts
from ip2p_lib.miniature.render import render
from ip2p_lib.miniature.scenes import Edit, Scene
from ip2p_lib.miniature.world import caption, sample_edit, sample_scene
from ip2p_lib.rendering import (
    GeneratedPair,
    add_cross_attention_edit,
    draw_candidates,
    generate_pairs,
)
from ip2p_lib.results import write_results
from ip2p_lib.triplets.record import Triplet, is_unchanged

RESULT = RESULTS / "filter-calibration.json"
LENT = RESULTS / "filter-calibration-lent.json"
FIRST = HELD_OUT + 10**6  # scenes that neither notebooks nor other measurements use


@dataclass(frozen=True)
class Task:
    """A held-out scene, its edit, and both in words."""

    scene: Scene
    edit: Edit
    triplet: Triplet


def tasks(n: int, first: int = FIRST) -> list[Task]:
    """The first ``n`` held-out edits that captions show, from one scene seed on."""
    found: list[Task] = []
    while len(found) < n:
        scene = sample_scene(first)
        edit = sample_edit(scene, first)
        texts = caption(scene, first), caption(edit.target, first)
        if not is_unchanged(*texts):
            triplet = Triplet(texts[0], edit.instruction, texts[1], edit.language)
            found.append(Task(scene, edit, triplet))
        first += 1
    return found


@dataclass(frozen=True)
class Marked:
    """Candidates with what is known of them, B in all."""

    scores: Scores
    verdicts: list[str]
    p: Tensor  # (B,) share of steps with shared attention
    cfg_scale: Tensor  # (B,)
    l1: Tensor  # (B,) mean difference of the two pictures, from 0 to 1
    triplets: list[int]  # the number of each one's triplet
    kinds: list[str]  # of edit

    @property
    def good(self) -> Tensor:
        """(B,) bool."""
        return torch.tensor([verdict == "good" for verdict in self.verdicts])

    def where(self, chosen: Tensor) -> Marked:
        """Some of them, by a (B,) bool."""
        rows = chosen.nonzero().flatten().tolist()
        lists = (self.verdicts, self.triplets, self.kinds)
        said, triplets, kinds = ([column[i] for i in rows] for column in lists)
        scores = Scores(*(column[rows] for column in vars(self.scores).values()))
        p, cfg_scale, l1 = self.p[rows], self.cfg_scale[rows], self.l1[rows]
        return Marked(scores, said, p, cfg_scale, l1, triplets, kinds)


def read_marked(path: str | Path = RESULT) -> tuple[Marked, dict[str, Any]]:
    """Read what a run wrote: its candidates, and the facts about the run."""
    facts = json.loads(Path(path).read_text("utf-8"))
    rows = facts.pop("rows")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    numbers = {
        name: torch.tensor(columns[name])
        for name in ("image", "before", "after", "direction", "p", "cfg_scale", "l1")
    }
    p, cfg_scale, l1 = (numbers.pop(name) for name in ("p", "cfg_scale", "l1"))
    said, triplets, kinds = (columns[name] for name in ("verdict", "triplet", "kind"))
    return Marked(Scores(**numbers), said, p, cfg_scale, l1, triplets, kinds), facts


@dataclass(frozen=True)
class Marker:
    """The networks that mark a pair."""

    clip: ClipScorer
    judge: Judge

    def rows(
        self, pairs: Sequence[GeneratedPair], of: dict[Triplet, tuple[int, Task]]
    ) -> Iterator[dict[str, Any]]:
        """What the result file says of each pair; ``of`` finds its task."""
        found = [of[pair.candidate.triplet] for pair in pairs]
        before = torch.stack([pair.before for pair in pairs])
        after = torch.stack([pair.after for pair in pairs])
        triplets = [task.triplet for _, task in found]
        texts = [t.caption for t in triplets], [t.edited_caption for t in triplets]
        scores = vars(score_pairs(self.clip, before, after, *texts))
        scenes = [t.scene for _, t in found], [t.edit.target for _, t in found]
        said = verdicts(self.judge, before, after, *scenes)
        for i, (pair, (number, task)) in enumerate(zip(pairs, found, strict=True)):
            yield {
                "triplet": number,
                "kind": task.edit.kind,
                "p": round(pair.candidate.p, 4),
                "cfg_scale": round(pair.candidate.cfg_scale, 4),
                "lent": pair.candidate.word_edit is not None,
                "l1": round(float((after[i] - before[i]).abs().mean()) / 2, 4),
                **{name: round(float(score[i]), 4) for name, score in scores.items()},
                "verdict": said[i],
            }


def mark_candidates(
    backbone: StableDiffusion,
    marker: Marker,
    todo: Sequence[Task],
    settings: Rendering,
    run_seed: int,
    lent: float = 0,
) -> list[dict[str, Any]]:
    """Render ``settings.candidates`` pairs of each task and mark them.

    ``lent`` is the share of them that lend words; without any they are the paper's.
    """
    triplets = [task.triplet for task in todo]
    candidates = draw_candidates(triplets, settings.candidates, run_seed, settings)
    candidates = add_cross_attention_edit(candidates, lent, run_seed)
    of = {task.triplet: (i, task) for i, task in enumerate(todo)}
    rows: list[dict[str, Any]] = []
    batches = generate_pairs(
        backbone,
        candidates,
        steps=settings.steps,
        batch_size=settings.batch_size,
        sampler=settings.sampler,
    )
    for pairs in batches:
        rows += marker.rows(pairs, of)
        print(f"{len(rows)} of {len(candidates)} candidates", flush=True)
    return sorted(rows, key=lambda row: (row["triplet"], row["p"]))


def ceiling(judge: Judge, todo: Sequence[Task]) -> float:
    """Share of exactly drawn pairs that the judge calls good: a perfect filter's."""
    scenes, targets = [t.scene for t in todo], [t.edit.target for t in todo]
    said = verdicts(judge, render(scenes), render(targets), scenes, targets)
    return said.count("good") / len(said)


def main() -> None:
    """Mark some hundred candidates and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--triplets", type=int, default=96)
    parser.add_argument("--candidates", type=int, default=4, help="of one triplet")
    parser.add_argument("--seed", type=int, default=0, help="of the candidates")
    parser.add_argument("--lent", type=float, default=0, help="share, from 0 to 1")
    parser.add_argument("--out", type=Path, help="instead of a file in data/results")
    args, scale, began = parser.parse_args(), preset("miniature"), time.monotonic()
    settings = replace(scale.rendering, candidates=args.candidates)
    backbone, judge = load_stable_diffusion(scale.backbone), load_judge()
    marker, todo = Marker(load_clip(scale.clip), judge), tasks(args.triplets)
    rows = mark_candidates(backbone, marker, todo, settings, args.seed, args.lent)
    facts = {
        "first_scene": FIRST,
        "triplets": args.triplets,
        "candidates": args.candidates,
        "lent": args.lent,
        "steps": settings.steps,
        "sampler": settings.sampler,
        "ceiling": round(ceiling(judge, tasks(256)), 4),
    }
    seconds = round(time.monotonic() - began, 1)
    path = args.out or (LENT if args.lent else RESULT)
    write_results(path, rows, seed=args.seed, seconds=seconds, **facts)


if __name__ == "__main__":
    main()
