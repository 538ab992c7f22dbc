"""Scenes, captions and edits in bulk, as the training stages read them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ip2p_lib.miniature.parsing import find_difference, read_caption
from ip2p_lib.miniature.render import encode
from ip2p_lib.miniature.scenes import Scene
from ip2p_lib.miniature.world import caption, sample_edit, sample_scene
from ip2p_lib.triplets.record import Triplet, is_unchanged

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


def build_corpus(first_seed: int, n: int, wording: str = "train") -> Corpus:
    """Draw ``n`` scenes with one edit each.

    One process draws thousands a second: others would take longer to start.

    Args:
        first_seed: seeds ``first_seed`` to ``first_seed + n - 1`` are used.
        n: number of edits.
        wording: phrasings of the instructions, as in ``world.sample_edit``.
    """
    scenes, texts = list[Scene](), list[tuple[str, str, str]]()
    for seed in range(first_seed, first_seed + n):
        scene = sample_scene(seed)
        edit = sample_edit(scene, seed, wording=wording)
        chinese = random.Random(f"language {seed}").random() < _CHINESE
        language = "zh" if chinese else "en"
        captions = caption(scene, seed, language), caption(edit.target, seed, language)
        scenes += [scene, edit.target]
        texts.append((*captions, edit.instruction))
    codes = encode(scenes).view(n, 2, -1)
    return Corpus(codes[:, 0], codes[:, 1], *map(list, zip(*texts, strict=True)))


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


def fewer_whole(triplets: Sequence[Triplet], share: float) -> list[Triplet]:
    """Leave out some of the edits of a whole scene: its medium, place, time or weather.

    Args:
        triplets: the same ones are left out whenever they come in the same order.
        share: of these edits that stays, from 0 to 1.
    """

    def stays(place: int, triplet: Triplet) -> bool:
        said = read_caption(triplet.caption), read_caption(triplet.edited_caption)
        found = find_difference(*said)
        # What a caption says of the scene has names of its own, not those of a thing.
        whole = found is not None and found.attribute in vars(said[0])
        return not whole or random.Random(f"whole {place}").random() < share

    return [t for place, t in enumerate(triplets) if stays(place, t)]
