"""Two captions of a triplet as two matching images (section 3.1.2, notebook 02).

The main path: ``candidates`` (random settings), ``render`` (batches of pairs and their
sampling loop) and ``shared_attention`` (the released method).
The original Prompt-to-Prompt: ``word_edits``, ``token_alignment``, ``cross_attention``.
The same pairs, faster: ``trees``, ``continuous_batching``.
"""

from ip2p_lib.rendering.candidates import (
    Candidate,
    add_cross_attention_edit,
    draw_candidates,
)
from ip2p_lib.rendering.continuous_batching import generate_batched
from ip2p_lib.rendering.render import GeneratedPair, generate_images, generate_pairs
from ip2p_lib.rendering.trees import draw_trees
from ip2p_lib.rendering.word_edits import LocalBlend, WordEdit

__all__ = [
    "Candidate",
    "GeneratedPair",
    "LocalBlend",
    "WordEdit",
    "add_cross_attention_edit",
    "draw_candidates",
    "draw_trees",
    "generate_batched",
    "generate_images",
    "generate_pairs",
]
