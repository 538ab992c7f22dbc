"""Generate a data set of filtered pairs from triplets: section 3.1.2 as one long run.

A run of the paper's size takes weeks and may be killed at any moment. Triplets are
processed in blocks whose pairs depend on nothing else. Each block becomes one shard,
written atomically and then noted in ``progress.json``. Started again in its folder, a
run continues after the last noted block and ends with the bytes of an undisturbed run.
"""

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
from ip2p_lib.dataset.dataset import (
    DatasetError,
    verify_shard,
    write_manifest,
    write_shard,
)
from ip2p_lib.dataset.pairs import Pair
from ip2p_lib.diffusion.clip import ClipScorer
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.files import read_json, remove_partials, run_lock, write_json
from ip2p_lib.filtering import clip_filter
from ip2p_lib.filtering.clip_filter import Scores
from ip2p_lib.images import to_pil
from ip2p_lib.rendering import (
    GeneratedPair,
    draw_candidates,
    draw_trees,
    generate_batched,
)
from ip2p_lib.triplets.record import Triplet

PROGRESS = "progress.json"
_COUNTS = ("too_long", "rendered", "kept")  # of triplets and pairs in a block


@dataclass(frozen=True)
class Models:
    """The text-to-image model that generates pairs, and CLIP, which filters them."""

    backbone: StableDiffusion
    clip: ClipScorer


@dataclass(frozen=True)
class GenerationConfig:
    """What a run's pairs depend on, besides the models and the triplets."""

    rendering: Rendering
    filtering: Filtering
    run_seed: int = 0
    triplets_per_shard: int = 64
    tree_size: int = 1  # candidates of one seed: faster, with fewer distinct scenes

    def __post_init__(self) -> None:
        """Raise ValueError for a number below 1, or trees that do not fit."""
        numbers = self.triplets_per_shard, self.tree_size, self.rendering.candidates
        if min(numbers) < 1:
            raise ValueError(
                f"Shards, trees and candidates must be above 0: {numbers}."
            )
        if self.rendering.candidates % self.tree_size:
            raise ValueError(f"The candidates cannot form trees of {self.tree_size}.")


def generate_dataset(
    models: Models, triplets: Sequence[Triplet], config: GenerationConfig, folder: Path
) -> Iterator[dict[str, Any]]:
    """Generate, filter and store the pairs of a run; resumes one that was killed.

    Models, triplets (of the whole run) and config must be those of before the kill. A
    triplet that is listed twice is generated once: its pairs would be the same.

    Yields:
        The entry of each block in ``progress.json``, those of earlier starts too:
        ``too_long`` (triplets that exceed the text encoder's context), ``rendered``,
        ``kept``, ``dropped`` by reason, and the ``shard`` if any pair was kept.

    Raises:
        DatasetError: the folder holds another run, or a shard was changed.
        FolderInUseError: another process is generating there.
    """
    size, triplets = config.triplets_per_shard, list(dict.fromkeys(triplets))
    with run_lock(folder):
        remove_partials(folder)
        run = _fingerprint(models, triplets, config)
        blocks = _resume(folder, run)
        yield from blocks
        for start in range(len(blocks) * size, len(triplets), size):
            path = folder / f"pairs-{len(blocks):05d}.tar"
            part = triplets[start : start + size]
            blocks.append(_generate_block(models, part, config, path))
            write_json(folder / PROGRESS, {"run": run, "blocks": blocks})
            yield blocks[-1]
        shards = [block["shard"] for block in blocks if block["shard"]]
        counts = {name: sum(b[name] for b in blocks) for name in _COUNTS}
        dropped = dict(sum((Counter(b["dropped"]) for b in blocks), Counter()))
        write_manifest(folder, shards, **counts, dropped=dropped, **asdict(config))


def _fingerprint(
    models: Models, triplets: Sequence[Triplet], config: GenerationConfig
) -> str:
    """A hash that is equal for equal models, triplets and configuration."""
    digest = hashlib.blake2b(json.dumps(asdict(config)).encode(), digest_size=16)
    for triplet in triplets:
        digest.update(json.dumps(asdict(triplet)).encode())
    backbone = models.backbone
    modules = backbone.unet, backbone.vae, backbone.text_encoder, models.clip.model
    for name, weight in chain.from_iterable(m.named_parameters() for m in modules):
        digest.update(f"{name} {weight.dtype} {[*weight.shape]}".encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _resume(folder: Path, run: str) -> list[dict[str, Any]]:
    """The blocks that earlier starts finished, after verifying their shards."""
    if not (folder / PROGRESS).exists():
        return []
    advice = f"Remove {folder / PROGRESS} to generate all anew."
    try:
        progress = read_json(folder / PROGRESS)
        blocks: list[dict[str, Any]] = progress["blocks"]
        for block in blocks:
            _check_block(block)
        same = progress["run"] == run
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{PROGRESS} is damaged. {advice}") from error
    if not same:
        reason = "pairs of another run: its models, triplets or configuration differ"
        raise DatasetError(f"{folder} holds {reason}. Choose another folder.")
    for shard in (block["shard"] for block in blocks if block["shard"]):
        try:
            verify_shard(folder, shard)
        except ValueError as error:
            raise DatasetError(f"{shard['name']}: {error}. {advice}") from error
    return blocks


def _check_block(block: dict[str, Any]) -> None:
    """Raise KeyError, TypeError or such unless it has all that is read of it."""
    shard = block["shard"] or {"name": "", "sha256": "", "pairs": 0}
    numbers = [shard["pairs"], *block["dropped"].values(), *(block[n] for n in _COUNTS)]
    texts = shard["name"], shard["sha256"]
    if {*map(type, numbers)} != {int} or {*map(type, texts)} != {str}:
        raise TypeError(f"not a block: {block}")


def _generate_block(
    models: Models, triplets: Sequence[Triplet], config: GenerationConfig, path: Path
) -> dict[str, Any]:
    """Generate and score one block's candidates, and store the best in a shard."""
    fits = models.backbone.fits_context
    usable = [t for t in triplets if all(fits([t.caption, t.edited_caption]))]
    generated = _generate(models.backbone, usable, config)
    scores = _score(models.clip, generated, config.rendering.batch_size)
    triplet_of = [pair.candidate.triplet for pair in generated]
    best = clip_filter.keep_best(scores, triplet_of, config.filtering)
    reasons = Counter(
        reason.split()[0] if reason else "not among the best"
        for reason in clip_filter.drop_reasons(scores, config.filtering)
    )
    reasons["not among the best"] -= len(best)
    steps, block = config.rendering.steps, path.stem.removeprefix("pairs-")
    pairs = [to_pair(f"{block}-{i:05d}", generated[i], scores, i, steps) for i in best]
    return {
        "too_long": len(triplets) - len(usable),
        "rendered": len(generated),
        "kept": len(best),
        "dropped": dict(+reasons),
        "shard": write_shard(pairs, path) if pairs else None,
    }


def _generate(
    backbone: StableDiffusion, triplets: Sequence[Triplet], config: GenerationConfig
) -> list[GeneratedPair]:
    """All candidates of a block, in the order drawn."""
    settings, seed, size = config.rendering, config.run_seed, config.tree_size
    n = settings.candidates
    if size > 1:
        candidates = draw_trees(triplets, n // size, size, seed, settings)
    else:
        candidates = draw_candidates(triplets, n, seed, settings)
    rows, sampler = 2 * settings.batch_size, settings.sampler
    batches = generate_batched(
        backbone, candidates, steps=settings.steps, batch_rows=rows, sampler=sampler
    )
    pair_of = {id(pair.candidate): pair for batch in batches for pair in batch}
    return [pair_of[id(candidate)] for candidate in candidates]


def _score(clip: ClipScorer, pairs: list[GeneratedPair], batch_size: int) -> Scores:
    """CLIP scores of all pairs, on the CPU."""
    if not pairs:
        return Scores(*torch.empty(4, 0))
    batches = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
    parts = [clip_filter.score_generated(clip, batch) for batch in batches]
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Scores(*(torch.cat(column).cpu() for column in columns))


def to_pair(
    key: str, generated: GeneratedPair, scores: Scores, row: int, steps: int
) -> Pair:
    """Convert a generated pair, of which ``row`` of ``scores`` is, to a ``Pair``."""
    candidate = generated.candidate
    triplet, word_edit = candidate.triplet, candidate.word_edit
    before, after = to_pil(torch.stack([generated.before, generated.after]))
    return Pair(
        *(key, before, after),
        *(triplet.caption, triplet.instruction, triplet.edited_caption),
        seed=candidate.seed,
        p=candidate.p,
        cfg_scale=candidate.cfg_scale,
        steps=steps,
        word_edit=word_edit.to_dict() if word_edit else {},
        scores={name: round(float(x[row]), 5) for name, x in vars(scores).items()},
        language=triplet.language,
    )
