"""Generate candidates of held-out triplets, filter nothing, and label every one.

    python -m benchmarks.filtering.calibration

leaves ``results/filter-calibration.json``: of each candidate what it was drawn with,
its four CLIP scores and the judge's verdict. From this file notebook 03 draws what a
threshold keeps, and chooses thresholds; run it again when a network was trained anew.

    python -m benchmarks.filtering.calibration --cross-attention 1

labels the same candidates with cross-attention injected as well, as
``results/filter-calibration-cross-attention.json``: the difference is its gain.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ip2p_lib.config import Rendering, preset
from ip2p_lib.diffusion.clip import ClipScorer, load_clip
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.filtering import score_pairs
from ip2p_lib.miniature.corpus import SceneEdit
from ip2p_lib.miniature.judge.calibration import (
    CROSS_ATTENTION,
    FIRST,
    SELF_ATTENTION,
    held_out_edits,
)
from ip2p_lib.miniature.judge.model import Judge, load_judge
from ip2p_lib.miniature.judge.verdicts import verdicts
from ip2p_lib.miniature.render import render
from ip2p_lib.rendering import (
    GeneratedPair,
    add_cross_attention_edit,
    draw_candidates,
    generate_pairs,
)
from ip2p_lib.results import write_results
from ip2p_lib.triplets.record import Triplet


@dataclass(frozen=True)
class Labeller:
    """The networks that label a pair."""

    clip: ClipScorer
    judge: Judge

    def rows(
        self,
        pairs: Sequence[GeneratedPair],
        numbered: dict[Triplet, tuple[int, SceneEdit]],
    ) -> Iterator[dict[str, Any]]:
        """The row of the result file for each pair; ``numbered`` finds its edit."""
        edits = [numbered[pair.candidate.triplet] for pair in pairs]
        before = torch.stack([pair.before for pair in pairs])
        after = torch.stack([pair.after for pair in pairs])
        triplets = [edit.triplet for _, edit in edits]
        texts = [t.caption for t in triplets], [t.edited_caption for t in triplets]
        scores = vars(score_pairs(self.clip, before, after, *texts))
        scenes = [e.scene for _, e in edits], [e.edit.target for _, e in edits]
        labels = verdicts(self.judge, before, after, *scenes)
        for i, (pair, (number, edit)) in enumerate(zip(pairs, edits, strict=True)):
            yield {
                "triplet": number,
                "edit_type": edit.edit.kind,
                "p": round(pair.candidate.p, 4),
                "cfg_scale": round(pair.candidate.cfg_scale, 4),
                "cross_attention": pair.candidate.word_edit is not None,
                "l1": round(float((after[i] - before[i]).abs().mean()) / 2, 4),
                **{name: round(float(score[i]), 4) for name, score in scores.items()},
                "verdict": labels[i],
            }


def label_candidates(
    sd: StableDiffusion,
    labeller: Labeller,
    edits: Sequence[SceneEdit],
    settings: Rendering,
    run_seed: int,
    cross_attention: float = 0,
) -> list[dict[str, Any]]:
    """Generate ``settings.candidates`` pairs of each edit and label them.

    ``cross_attention`` is the share of them that inject it; without any they are the
    paper's.
    """
    triplets = [edit.triplet for edit in edits]
    candidates = draw_candidates(triplets, settings.candidates, run_seed, settings)
    candidates = add_cross_attention_edit(candidates, cross_attention, run_seed)
    numbered = {edit.triplet: (i, edit) for i, edit in enumerate(edits)}
    rows: list[dict[str, Any]] = []
    batches = generate_pairs(
        sd,
        candidates,
        steps=settings.steps,
        batch_size=settings.batch_size,
        sampler=settings.sampler,
    )
    for pairs in batches:
        rows += labeller.rows(pairs, numbered)
        print(f"{len(rows)} of {len(candidates)} candidates", flush=True)
    return sorted(rows, key=lambda row: (row["triplet"], row["p"]))


def ceiling(judge: Judge, edits: Sequence[SceneEdit]) -> float:
    """Share of exact pairs that the judge calls good: a perfect filter's."""
    scenes, targets = [e.scene for e in edits], [e.edit.target for e in edits]
    labels = verdicts(judge, render(scenes), render(targets), scenes, targets)
    return labels.count("good") / len(labels)


def main() -> None:
    """Label some hundred candidates and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--triplets", type=int, default=96)
    add("--candidates", type=int, default=4, help="of one triplet")
    add("--seed", type=int, default=0, help="of the candidates")
    add("--cross-attention", type=float, default=0, help="share, 0 to 1")
    add("--out", type=Path, help="instead of a file in data/results")
    args, scale, began = parser.parse_args(), preset("miniature"), time.monotonic()
    settings = replace(scale.rendering, candidates=args.candidates)
    judge, edits = load_judge(), held_out_edits(args.triplets)
    sd = load_stable_diffusion(scale.backbone)
    rows = label_candidates(
        sd,
        Labeller(load_clip(scale.clip), judge),
        edits,
        settings,
        args.seed,
        args.cross_attention,
    )
    run: dict[str, Any] = {
        "first_scene": FIRST,
        "triplets": args.triplets,
        "candidates": args.candidates,
        "cross_attention": args.cross_attention,
        "steps": settings.steps,
        "sampler": settings.sampler,
        "ceiling": round(ceiling(judge, held_out_edits(256)), 4),
    }
    seconds = round(time.monotonic() - began, 1)
    path = args.out or (CROSS_ATTENTION if args.cross_attention else SELF_ATTENTION)
    write_results(path, rows, seed=args.seed, seconds=seconds, device=sd.device, **run)


if __name__ == "__main__":
    main()
