"""Measures an editor on held-out scenes and phrasings (4.1)."""

from __future__ import annotations

from typing import Any

import torch

from ip2p_lib.config import HELD_OUT
from ip2p_lib.diffusion.clip import ClipScorer
from ip2p_lib.editing.editor import Editor
from ip2p_lib.evaluation.metrics import Examples, measure, summarise
from ip2p_lib.miniature.render import render_codes
from ip2p_lib.miniature.world import sample_edit, sample_scene
from jobs.miniature.measure import held_out


def held_out_examples(n: int, device: torch.device) -> tuple[Examples, list[str]]:
    """``n`` held-out scenes and edits in held-out phrasings, with the exact answers.

    Returns:
        The examples, and the kind of each edit.
    """
    seeds = range(HELD_OUT, HELD_OUT + n)
    corpus = held_out(n)
    pictures = [
        torch.cat([render_codes(part.to(device)) for part in codes.split(128)])
        for codes in (corpus.before, corpus.after)
    ]
    texts = (corpus.instructions, corpus.captions, corpus.edited_captions)
    kinds = [sample_edit(sample_scene(s), s, wording="held-out").kind for s in seeds]
    return Examples(pictures[0], *texts, pictures[1]), kinds


def measure_scale(
    editor: Editor,
    clip: ClipScorer,
    examples: Examples,
    kinds: list[str],
    text_scale: float,
    image_scale: float,
) -> list[dict[str, Any]]:
    """One row for all held-out edits at these scales, and one for each kind of edit."""
    after = editor.edit_tensors(
        examples.before,
        examples.instructions,
        text_scale=text_scale,
        image_scale=image_scale,
        seed=list(range(len(examples))),
    )
    columns = measure(clip, examples, after)
    scales = {"text_scale": text_scale, "image_scale": image_scale}
    rows = [{"kind": "all", **scales, **summarise(columns)}]
    for kind in sorted(set(kinds)):
        own = torch.tensor([name == kind for name in kinds])
        chosen = {name: column[own] for name, column in columns.items()}
        rows.append({"kind": kind, **scales, **summarise(chosen)})
    return rows
