"""The miniature's own pairs: its LM writes, its U-Net generates, its CLIP filters.

    python -m jobs.miniature.make_pairs write generate

This is section 3.1 end to end. ``write`` leaves triplets in ``--work``; ``generate``
turns them into filtered pairs, stored as latents, from which ``train_editor`` trains,
and a sample of images for readers. Several GPUs work side by side, each with another
``--part``. Every pair is stored mirrored as well; training leaves those out whose
instruction names left or right.
"""

import argparse
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p_lib import checkpoint
from ip2p_lib.config import DATA, Rendering, Scale, preset
from ip2p_lib.dataset.dataset import write_shards
from ip2p_lib.dataset.generate import to_pair
from ip2p_lib.dataset.pairs import Pair
from ip2p_lib.diffusion.clip import ClipScorer, load_clip
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.filtering.clip_filter import Scores, keep_best, score_generated
from ip2p_lib.miniature.parsing import find_difference, read_caption
from ip2p_lib.miniature.world import caption, sample_scene
from ip2p_lib.rendering import GeneratedPair, generate_pairs
from ip2p_lib.rendering.candidates import (
    Candidate,
    add_cross_attention_edit,
    draw_candidates,
)
from ip2p_lib.results import write_results
from ip2p_lib.training.compiled import compile_unet
from ip2p_lib.training.latents import encode_pairs
from ip2p_lib.triplets.generation import generate_triplets
from ip2p_lib.triplets.loading import load_language_model
from ip2p_lib.triplets.record import Triplet, count_outcomes, read_jsonl, write_jsonl
from jobs.miniature.data import to_bytes, to_unit
from jobs.training_plan import above_zero, non_negative, positive

SAMPLE = 256  # pairs shipped for readers
# Unlike the paper's, all candidates also inject cross-attention, and self-attention is
# shared for a middle part of the steps: of those that pass the filter more are good,
# see ``results/filter-calibration-cross-attention.json``.
P_MIN, P_MAX = 0.3, 0.7
# Candidates of a triplet, by what changes. Two thirds of the new colours pass the
# filter, but one third of the new objects (the same file). Of equally many candidates
# few pairs would show what is hardest to learn: 132 objects, each in four art sets.
CANDIDATES = {
    "name": 6,
    "medium": 4,
    "place": 2,
    "time": 2,
    "weather": 2,
    "finish": 1,
    "accessory": 2,
}


@dataclass
class FilteredPairs:
    """Pairs that passed the filter, in memory, and the count of all candidates."""

    candidates: list[Candidate] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)  # (n, 2, 3, H, W) uint8 parts
    scores: list[Tensor] = field(default_factory=list)  # (n, 4) image, 0, 1, direction
    generated: int = 0

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.candidates)

    def add(self, clip: ClipScorer, batch: Sequence[GeneratedPair], rule: Any) -> None:
        """Add the best pairs of a batch; a triplet that spans two counts in both.

        Args:
            clip: scores them.
            batch: candidates.
            rule: ``config.Filtering``.
        """
        scores = score_generated(clip, batch)
        rows = keep_best(scores, [pair.candidate.triplet for pair in batch], rule)
        self.generated += len(batch)
        if not rows:
            return
        best = [batch[row] for row in rows]
        columns = [scores.image, scores.before, scores.after, scores.direction]
        self.candidates += [pair.candidate for pair in best]
        images = [torch.stack([pair.before, pair.after]) for pair in best]
        self.images.append(to_bytes(torch.stack(images)))
        self.scores.append(torch.stack(columns, 1)[rows])

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(before, after) in [-1, 1], as ``latents.encode_pairs`` reads them."""
        for part in self.images:
            before, after = to_unit(part).unbind(1)
            yield before, after

    def pairs(self, rows: Sequence[int], steps: int) -> Iterator[Pair]:
        """Some of the pairs as records for a data set."""
        images, scores = torch.cat(self.images), torch.cat(self.scores).cpu()
        for row in rows:
            pair = GeneratedPair(self.candidates[row], *to_unit(images[row]))
            yield to_pair(f"{row:07d}", pair, Scores(*scores.T), row, steps)


def world_captions(first_seed: int, n: int) -> list[str]:
    """Captions of ``n`` scenes, a fifth of them in Chinese.

    Each names its art set, or an object that comes in place of another would be drawn
    in any.
    """
    languages = [random.Random(f"caption {i}").random() for i in range(n)]
    return [
        caption(sample_scene(seed), seed, "zh" if u < 0.2 else "en", art=True)
        for seed, u in zip(range(first_seed, first_seed + n), languages, strict=True)
    ]


def readable(sd: StableDiffusion, triplets: Sequence[Triplet]) -> list[Triplet]:
    """The triplets whose three texts the text encoder reads whole."""
    texts = [(t.caption, t.instruction, t.edited_caption) for t in triplets]
    fits = sd.fits_context([*itertools.chain.from_iterable(texts)])
    return [t for i, t in enumerate(triplets) if all(fits[3 * i : 3 * i + 3])]


def draw_by_change(triplets: Sequence[Triplet], settings: Rendering) -> list[Candidate]:
    """Draw each triplet's candidates, in a random order of the triplets."""
    groups: list[list[Candidate]] = []
    counts = [count_candidates(triplet) for triplet in triplets]
    for n in sorted(set(CANDIDATES.values())):
        chosen = [t for t, count in zip(triplets, counts, strict=True) if count == n]
        drawn = draw_candidates(chosen, n, 0, settings)
        groups += (drawn[i : i + n] for i in range(0, len(drawn), n))
    random.Random(0).shuffle(groups)  # the time may be up before all were generated
    return list(itertools.chain.from_iterable(groups))


def count_candidates(triplet: Triplet) -> int:
    """Look up how many; none unless its captions differ in exactly one attribute."""
    texts = triplet.caption, triplet.edited_caption
    difference = find_difference(*map(read_caption, texts))
    return CANDIDATES[difference.attribute] if difference else 0


def generate_filtered(
    sd: StableDiffusion,
    clip: ClipScorer,
    triplets: Sequence[Triplet],
    scale: Scale,
    batch_size: int,
    seconds: float,
) -> FilteredPairs:
    """Generate candidates of every triplet and keep the best, until the time is up.

    Args:
        sd: the text-to-image model.
        clip: the filter's scorer.
        triplets: written by the language model.
        scale: its rendering and filtering settings are used.
        batch_size: candidates at once.
        seconds: stop after this long.
    """
    start, pairs, settings = time.monotonic(), FilteredPairs(), scale.rendering
    batches = generate_pairs(
        sd,
        add_cross_attention_edit(draw_by_change(triplets, settings), 1, 0),
        steps=settings.steps,
        batch_size=batch_size,
        sampler=settings.sampler,
    )
    for batch in batches:
        pairs.add(clip, batch, scale.filtering)
        if time.monotonic() - start > seconds:
            break
    return pairs


def run_write(args: argparse.Namespace) -> None:
    """Let the language model write a triplet for each caption of this part."""
    folder = args.out / "models" / "miniature-lm"
    writer = load_language_model(folder, folder / "adapter")
    began, n = time.monotonic(), args.captions
    captions = world_captions(args.part * n, n)
    # One sample: the likelier of two is the more usual edit, and an editor needs all.
    replies = list(
        generate_triplets(writer, captions, max_tokens=96, batch_size=args.batch)
    )
    triplets = dict.fromkeys(reply.triplet for reply in replies if reply.triplet)
    write_jsonl(args.work / f"triplets-{args.part}.jsonl", triplets)
    seconds, outcomes = round(time.monotonic() - began, 1), count_outcomes(replies)
    run: dict[str, Any] = {"captions": n, "distinct": len(triplets)}
    path = args.work / f"write-{args.part}.json"
    write_results(path, [outcomes], seed=0, seconds=seconds, **run)
    print(run, outcomes, f"{seconds} s", flush=True)


def run_generate(args: argparse.Namespace, scale: Scale) -> None:
    """Generate and filter this part's triplets; store the pairs as latents."""
    models = args.out / "models"
    clip = load_clip(models / "miniature-clip")
    sd = load_stable_diffusion(models / "miniature-sd")
    if sd.device.type == "cuda":  # on a CPU it takes longer than it saves
        compile_unet(sd.unet, "blocks")
    triplets = readable(sd, read_jsonl(args.work / f"triplets-{args.part}.jsonl"))
    began, size = time.monotonic(), args.batch
    pairs = generate_filtered(sd, clip, triplets, scale, size, args.seconds)
    seconds = round(time.monotonic() - began, 1)
    counts = {"generated": pairs.generated, "kept": len(pairs)}
    print(counts, f"in {seconds:.0f} s", flush=True)
    run: dict[str, Any] = {**counts, "seconds": seconds}
    if args.part == 0:
        every = max(1, len(pairs) // SAMPLE)
        rows = range(0, len(pairs), every)[:SAMPLE]
        sample = pairs.pairs(rows, scale.rendering.steps)
        write_shards(sample, args.out / "pairs" / "sample", **run)
    texts = [candidate.triplet.instruction for candidate in pairs.candidates]
    latents = encode_pairs(sd, pairs.batches())
    checkpoint.save(
        args.work / f"part-{args.part}", latents, {**run, "instructions": texts}
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("stages", nargs="+", choices=["write", "generate"])
    add("--out", type=Path, default=DATA)
    add("--work", type=Path, default=Path("runs/editor"))
    add("--captions", type=positive, default=48_000, help="of this part")
    add("--batch", type=positive, default=512, help="replies or candidates")
    add("--seconds", type=above_zero, default=120, help="of generating")
    add("--part", type=non_negative, default=0, help="number of this process")
    return parser.parse_args()


def main() -> None:
    """Run the stages named on the command line."""
    args, scale = _arguments(), preset("miniature")
    drawn = replace(scale.rendering, p_min=P_MIN, p_max=P_MAX)
    scale = replace(scale, rendering=drawn)
    if "write" in args.stages:
        run_write(args)
    if "generate" in args.stages:
        run_generate(args, scale)


if __name__ == "__main__":
    main()
