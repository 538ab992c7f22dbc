"""Triplets in, a data set of filtered pairs on disk: section 3.1.2 as one long run.

A run of the paper's size takes weeks, so it must not matter when it is killed. Triplets
are taken in blocks. A block's pairs depend on its triplets and the run's settings only,
are put into one shard at once, and are noted in ``progress.json``; started again on the
same folder, a run goes on with the first block that is not noted there. So all that a
kill can cost is the block under way, and the shards are byte for byte those of a run
that nobody disturbed. ``manifest.json`` is written last: see ``dataset``.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ip2p_lib.config import Filtering, Rendering
from ip2p_lib.dataset.dataset import DatasetError, write_manifest
from ip2p_lib.dataset.pairs import Pair
from ip2p_lib.dataset.shards import write_shard
from ip2p_lib.diffusion.stable_diffusion import Backbone
from ip2p_lib.files import remove_partials, sha256_of, write_bytes
from ip2p_lib.filtering.clip_filter import (
    ClipScorer,
    Scores,
    drop_reasons,
    keep_best,
)
from ip2p_lib.filtering.early_rejection import score_rendered
from ip2p_lib.images import to_pil
from ip2p_lib.rendering.continuous_batching import render_by
from ip2p_lib.rendering.render import RenderedPair, draw_candidates
from ip2p_lib.rendering.trees import draw_trees
from ip2p_lib.run_lock import run_lock
from ip2p_lib.triplets.record import Triplet

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Makers:
    """The networks that make pairs: one draws, the other judges."""

    backbone: Backbone
    clip: ClipScorer


@dataclass(frozen=True)
class Settings:
    """What a run's pairs depend on, beside the networks and the triplets."""

    rendering: Rendering
    filtering: Filtering
    run_seed: int = 0
    block: int = 64  # triplets of one shard
    tree: int = 1  # candidates that differ in p alone: faster, of fewer scenes


def make_pairs(
    makers: Makers, triplets: Sequence[Triplet], settings: Settings, folder: Path
) -> Iterator[dict[str, Any]]:
    """Render, filter and store; started again after a kill, it goes on.

    Args:
        makers: the text-to-image model and the filter.
        triplets: of the whole run, the same ones each time.
        settings: candidates a triplet, thresholds, seed and size of a block.
        folder: of the data set; one run at a time.
    Yields:
        What ``progress.json`` notes of each block, those of earlier starts too:
        triplets ``too_long`` for the text encoder, candidates ``rendered``, ``kept``
        and ``dropped`` by reason, and the ``shard`` if any was kept.
    Raises:
        DatasetError: the folder holds another run, of other networks, triplets or
            settings; or a shard has been changed.
        FolderInUseError: another process is at work there.
        ValueError: unfit settings, see ``slots.render_in_slots``; or a triplet's
            candidates are no whole trees.
    """
    _require_whole_trees(settings)
    with run_lock(folder):
        remove_partials(folder)
        mark = _mark(makers, triplets, settings)
        blocks = _resume(folder, mark)
        yield from blocks
        for start in range(len(blocks) * settings.block, len(triplets), settings.block):
            part = triplets[start : start + settings.block]
            path = folder / f"pairs-{len(blocks):05d}.tar"
            blocks.append(_make_block(makers, part, settings, path))
            _note(folder, mark, blocks)
            yield blocks[-1]
        shards = [block["shard"] for block in blocks if block["shard"]]
        numbers = ("too_long", "rendered", "kept")
        counts = {name: sum(b[name] for b in blocks) for name in numbers}
        dropped = dict(sum((Counter(b["dropped"]) for b in blocks), Counter()))
        write_manifest(folder, shards, **counts, dropped=dropped, **_facts(settings))


def _require_whole_trees(settings: Settings) -> None:
    n, tree = settings.rendering.candidates, settings.tree
    if tree < 1 or n % tree:
        raise ValueError(
            f"{n} candidates of a triplet are no whole trees of {tree}. Let tree be at "
            "least 1 and divide rendering.candidates."
        )


def _facts(settings: Settings) -> dict[str, Any]:
    """The settings as the manifest tells them."""
    return json.loads(json.dumps(asdict(settings)))


def _mark(makers: Makers, triplets: Sequence[Triplet], settings: Settings) -> str:
    """Names a run: equal for equal networks, triplets and settings."""
    digest = hashlib.blake2b(json.dumps(_facts(settings)).encode(), digest_size=16)
    for triplet in triplets:
        digest.update(json.dumps(asdict(triplet)).encode())
    networks = makers.backbone.unet, makers.backbone.vae, makers.clip.model
    for name, weight in chain.from_iterable(n.named_parameters() for n in networks):
        # Training moves every weight, so the first few of each tell networks apart.
        digest.update(f"{name} {weight.flatten()[:8].tolist()}".encode())
    return digest.hexdigest()


def _resume(folder: Path, mark: str) -> list[dict[str, Any]]:
    """The blocks that earlier starts finished, their shards verified."""
    path = folder / PROGRESS
    if not path.exists():
        return []
    noted = json.loads(path.read_text("utf-8"))
    if noted["run"] != mark:
        raise DatasetError(
            f"{folder} holds pairs of another run: its networks, triplets or settings "
            "differ. Choose another folder, or give what that run was given."
        )
    for shard in filter(None, (block["shard"] for block in noted["blocks"])):
        shard_path = folder / shard["name"]
        if not shard_path.is_file() or sha256_of(shard_path) != shard["sha256"]:
            raise DatasetError(
                f"{shard_path} is missing or changed since it was written. Remove "
                f"{PROGRESS} to render all of them again."
            )
    blocks: list[dict[str, Any]] = noted["blocks"]
    return blocks


def _note(folder: Path, mark: str, blocks: list[dict[str, Any]]) -> None:
    text = json.dumps({"run": mark, "blocks": blocks}, indent=1)
    write_bytes(folder / PROGRESS, text.encode())


def _make_block(
    makers: Makers, triplets: Sequence[Triplet], settings: Settings, path: Path
) -> dict[str, Any]:
    """One block: its candidates rendered and scored, the best of them in a shard."""
    fits = makers.backbone.fits
    readable = [t for t in triplets if all(fits([t.caption, t.edited_caption]))]
    made = _render(makers.backbone, readable, settings)
    scores = _score(makers.clip, made, settings.rendering.batch_size)
    triplet_of = [pair.candidate.triplet for pair in made]
    best = keep_best(scores, triplet_of, settings.filtering)
    reasons = Counter(
        reason.split()[0] if reason else "not among the best"
        for reason in drop_reasons(scores, settings.filtering)
    )
    reasons["not among the best"] -= len(best)
    steps, block = settings.rendering.steps, path.stem[6:]
    pairs = [as_pair(f"{block}-{i:05d}", made[i], scores, i, steps) for i in best]
    return {
        "too_long": len(triplets) - len(readable),
        "rendered": len(made),
        "kept": len(best),
        "dropped": dict(+reasons),
        "shard": write_shard(pairs, path) if pairs else None,
    }


def _render(
    backbone: Backbone, triplets: Sequence[Triplet], settings: Settings
) -> list[RenderedPair]:
    """All candidates of a block in the order drawn, which is not that of finishing."""
    rendering = settings.rendering
    n, tree, seed = rendering.candidates, settings.tree, settings.run_seed
    if tree > 1:
        candidates = draw_trees(triplets, n // tree, tree, seed, rendering)
    else:
        candidates = draw_candidates(triplets, n, seed, rendering)
    batches = render_by(backbone, candidates, rendering)
    found = {id(pair.candidate): pair for batch in batches for pair in batch}
    return [found[id(candidate)] for candidate in candidates]


def _score(clip: ClipScorer, made: list[RenderedPair], size: int) -> Scores:
    """Scores of all pairs, on the CPU, computed a few at a time."""
    if not made:
        return Scores(*torch.empty(4, 0))
    parts = [
        score_rendered(clip, made[i : i + size]) for i in range(0, len(made), size)
    ]
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Scores(*(torch.cat(column).cpu() for column in columns))


def as_pair(key: str, made: RenderedPair, scores: Scores, row: int, steps: int) -> Pair:
    """The record of a rendered pair in a data set.

    Args:
        key: names it there.
        made: the pair, its pictures in [-1, 1].
        scores: of several pairs.
        row: which of them is this one's.
        steps: of its sampling.
    """
    triplet, candidate = made.candidate.triplet, made.candidate
    before, after = to_pil(torch.stack([made.before, made.after]))
    return Pair(
        key=key,
        before=before,
        after=after,
        caption=triplet.caption,
        instruction=triplet.instruction,
        edited_caption=triplet.edited_caption,
        seed=candidate.seed,
        p=candidate.p,
        cfg_scale=candidate.cfg_scale,
        steps=steps,
        words=candidate.words.facts() if candidate.words else {},
        scores={name: round(float(x[row]), 5) for name, x in vars(scores).items()},
        language=triplet.language,
    )
