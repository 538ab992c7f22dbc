"""Samples scenes, edits and captions in bulk, as the training stages read them."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ip2p_lib.miniature.render import encode
from ip2p_lib.miniature.scenes import Edit, Scene
from ip2p_lib.miniature.world import caption, sample_edit, sample_scene
from ip2p_lib.triplets.record import Triplet, is_unchanged

# The language of a sample's captions, from its seed and its edit.
CaptionLanguage = Callable[[int, Edit], str]


@dataclass(frozen=True)
class SceneEdit:
    """A scene, one edit of it, and the captions of the scene and of its target."""

    scene: Scene
    edit: Edit
    triplet: Triplet

    @property
    def is_in_captions(self) -> bool:
        """Whether the captions differ: they may leave out "in clear weather"."""
        return not is_unchanged(self.triplet.caption, self.triplet.edited_caption)


def sample_edits(
    seeds: Iterable[int],
    wording: str = "train",
    language: CaptionLanguage = lambda seed, edit: "en",
) -> Iterator[SceneEdit]:
    """Draw one scene with one edit for each seed, and describe both in a language.

    Seeds from ``config.HELD_OUT`` on are never trained on, nor are instructions of the
    ``wording`` "held-out".
    """
    for seed in seeds:
        scene = sample_scene(seed)
        edit = sample_edit(scene, seed, wording=wording)
        caption_language = language(seed, edit)
        before, after = (
            caption(s, seed, caption_language) for s in (scene, edit.target)
        )
        triplet = Triplet(before, edit.instruction, after, edit.language)
        yield SceneEdit(scene, edit, triplet)


class Corpus(NamedTuple):
    """``n`` edits: two coded scenes each, with captions and an instruction."""

    before: Tensor  # (n, 20) codes
    after: Tensor  # (n, 20)
    captions: list[str]
    edited_captions: list[str]
    instructions: list[str]
    edit_types: list[str]


def build_corpus(first_seed: int, n: int, wording: str = "train") -> Corpus:
    """Draw ``n`` scenes with one edit each; a fifth of the captions is Chinese.

    One process draws thousands a second: others would take longer to start.
    """

    def language(seed: int, edit: Edit) -> str:
        return "zh" if random.Random(f"language {seed}").random() < 0.2 else "en"

    samples = list(sample_edits(range(first_seed, first_seed + n), wording, language))
    return Corpus(
        encode([sample.scene for sample in samples]),
        encode([sample.edit.target for sample in samples]),
        [sample.triplet.caption for sample in samples],
        [sample.triplet.edited_caption for sample in samples],
        [sample.triplet.instruction for sample in samples],
        [sample.edit.kind for sample in samples],
    )


def grammar_triplets(first_seed: int, n: int, wording: str = "train") -> list[Triplet]:
    """Triplets of the world's grammar, from ``n`` scenes with one edit each.

    Captions of half of the Chinese edits are Chinese too. An edit that its captions do
    not show is left out.
    """

    def language(seed: int, edit: Edit) -> str:
        chinese = edit.language == "zh" and random.Random(f"zh {seed}").random() < 0.5
        return "zh" if chinese else "en"

    samples = sample_edits(range(first_seed, first_seed + n), wording, language)
    return [sample.triplet for sample in samples if sample.is_in_captions]
