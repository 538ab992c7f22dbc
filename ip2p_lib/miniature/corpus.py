"""Scenes, captions and edits in bulk, as the training stages read them."""

from __future__ import annotations

import multiprocessing
import os
import random
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from ip2p_lib.miniature.render import encode
from ip2p_lib.miniature.world import caption, sample_edit, sample_scene
from ip2p_lib.triplets import Triplet, is_unchanged

_CHINESE = 0.2  # share of captions in Chinese


@dataclass(frozen=True)
class Corpus:
    """``n`` edits: two coded scenes each, with captions and an instruction."""

    before: Tensor  # (n, 20) codes
    after: Tensor  # (n, 20)
    captions: list[str]
    edited_captions: list[str]
    instructions: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def _one(seed: int, wording: str) -> tuple:
    scene = sample_scene(seed)
    edit = sample_edit(scene, seed, wording=wording)
    language = "zh" if random.Random(f"language {seed}").random() < _CHINESE else "en"
    texts = (caption(scene, seed, language), caption(edit.target, seed, language))
    codes = encode([scene, edit.target])
    return codes[0], codes[1], *texts, edit.instruction


def _chunk(seeds: range, wording: str) -> tuple[Tensor, Tensor, list, list, list]:
    # One thread per worker: the pool already uses every core.
    torch.set_num_threads(1)
    before, after, captions, edited, instructions = zip(
        *(_one(seed, wording) for seed in seeds), strict=True
    )
    pair = torch.stack(before).short(), torch.stack(after).short()
    return *pair, list(captions), list(edited), list(instructions)


def build_corpus(
    first_seed: int, n: int, wording: str = "train", processes: int = 1
) -> Corpus:
    """Draw ``n`` scenes with one edit each.

    Args:
        first_seed: seeds ``first_seed`` to ``first_seed + n - 1`` are used.
        n: number of edits.
        wording: phrasings of the instructions, as in ``world.sample_edit``.
        processes: worker processes; the result does not depend on it.
    """
    size = 2000
    ends = range(first_seed, first_seed + n, size)
    chunks = [range(start, min(start + size, first_seed + n)) for start in ends]
    work = partial(_chunk, wording=wording)
    if processes == 1:
        parts = [work(chunk) for chunk in chunks]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = pool.map(work, chunks)
    before, after, captions, edited, instructions = zip(*parts, strict=True)
    return Corpus(
        torch.cat([codes.long() for codes in before]),
        torch.cat([codes.long() for codes in after]),
        list(chain.from_iterable(captions)),
        list(chain.from_iterable(edited)),
        list(chain.from_iterable(instructions)),
    )


def grammar_triplets(first_seed: int, n: int, wording: str = "train") -> list[Triplet]:
    """Triplets of the world's grammar, from ``n`` scenes with one edit each.

    Captions of half of the Chinese edits are Chinese too. An edit that its captions do
    not show (they may leave out "in clear weather") is passed over.
    """
    found = []
    for seed in range(first_seed, first_seed + n):
        scene = sample_scene(seed)
        edit = sample_edit(scene, seed, wording=wording)
        chinese = edit.language == "zh" and random.Random(f"zh {seed}").random() < 0.5
        language = "zh" if chinese else "en"
        before = caption(scene, seed, language)
        after = caption(edit.target, seed, language)
        if not is_unchanged(before, after):
            found.append(Triplet(before, edit.instruction, after, edit.language))
    return found


def grammar_in_parallel(n: int) -> list[Triplet]:
    """``grammar_triplets(0, n)``, by all cores."""
    size = 5000
    chunks = [(start, min(size, n - start)) for start in range(0, n, size)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        return list(chain.from_iterable(pool.starmap(grammar_triplets, chunks)))
