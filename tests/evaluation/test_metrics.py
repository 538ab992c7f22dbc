"""The measurements say what their names say."""

from dataclasses import replace

import pytest
import torch

from ip2p_lib.evaluation.metrics import Examples, measure, summarise, sweep
from ip2p_lib.filtering.clip_filter import score_pairs
from ip2p_lib.images import ImageError
from tests.support.tiny_editor import new_editor

PICTURES = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
EXAMPLES = Examples(
    before=PICTURES[:3],
    instructions=["make it a dog", "turn the horse", "a house"],
    captions=["a photo of a cat", "the horse", "a tree"],
    edited_captions=["a photo of a dog", "a horse in the river", "a house"],
    truth=PICTURES[3:6],
)
PARTS = [
    Examples(*(getattr(EXAMPLES, name)[rows] for name in vars(EXAMPLES)))
    for rows in (slice(0, 2), slice(2, 3))
]


def test_the_similarities_are_those_of_the_filter(clip):
    edits = PICTURES[6:9]
    columns = measure(clip, EXAMPLES, edits)
    scores = score_pairs(
        clip, EXAMPLES.before, edits, EXAMPLES.captions, EXAMPLES.edited_captions
    )
    assert torch.allclose(columns["image_similarity"], scores.image)
    assert torch.allclose(columns["directional_similarity"], scores.direction)
    assert torch.allclose(columns["target_similarity"], scores.after)
    embedded = (clip.embed_images(edits), clip.embed_texts(EXAMPLES.captions))
    to_source = (embedded[0] * embedded[1]).sum(1)
    assert torch.allclose(columns["source_similarity"], to_source, atol=1e-6)
    nearer = scores.after > to_source
    assert columns["nearer_target"].tolist() == nearer.float().tolist()


def test_distances_are_fractions_of_the_range_and_a_row_holds_the_means(clip):
    black, white = -torch.ones(3, 3, 64, 64), torch.ones(3, 3, 64, 64)
    white[2] = 0
    examples = replace(EXAMPLES, before=black, truth=white)
    columns = measure(clip, examples, torch.zeros_like(black))
    assert columns["l1_source"].tolist() == [0.5, 0.5, 0.5]
    assert columns["l1_truth"].tolist() == [0.5, 0.5, 0.0]
    assert columns["l1_untouched"].tolist() == [1.0, 1.0, 0.5]
    row = summarise(columns)
    assert row["samples"] == 3
    for name, column in columns.items():
        assert row[name] == pytest.approx(sum(column.tolist()) / 3, abs=1e-6)
    blind = measure(clip, replace(examples, truth=None), white)
    assert not {"l1_truth", "l1_untouched"} & blind.keys()


def test_a_sweep_edits_at_every_setting_whatever_the_batches(clip, tiny_backbone):
    editor = new_editor(tiny_backbone)

    def edit(x, seeds, image_scale):
        options = {"image_scale": image_scale, "seed": seeds}
        return editor.edit_tensors(x.before, x.instructions, **options)

    settings = [{"image_scale": 1.0}, {"image_scale": 2.0}]
    rows = sweep(edit, settings, clip, [EXAMPLES], method="ours", seed=4)
    parts = sweep(edit, settings, clip, iter(PARTS), method="ours", seed=4)
    assert [row["image_scale"] for row in rows] == [1.0, 2.0]
    for row, part in zip(rows, parts, strict=True):
        assert part.pop("method") == row.pop("method") == "ours"
        assert row == pytest.approx(part, abs=1e-3)
    after = edit(EXAMPLES, [4, 5, 6], 2.0)
    expected = summarise(measure(clip, EXAMPLES, after))
    assert rows[1] == pytest.approx({"image_scale": 2.0, **expected}, abs=1e-6)


def test_without_captions_their_similarities_are_blank_and_not_zero(clip):
    some = replace(EXAMPLES, captions=["", "the horse", " "])
    full, part = (summarise(measure(clip, x, PICTURES[6:9])) for x in (EXAMPLES, some))
    one = measure(clip, EXAMPLES, PICTURES[6:9])["directional_similarity"][1]
    assert part["directional_similarity"] == pytest.approx(float(one))
    assert part["image_similarity"] == full["image_similarity"]
    none = summarise(measure(clip, replace(some, captions=[""] * 3), PICTURES[6:9]))
    blank = {"directional_similarity", "target_similarity"}
    assert full.keys() - none.keys() == blank | {"source_similarity", "nearer_target"}


def test_images_of_other_sizes_are_refused_by_name(clip):
    with pytest.raises(ImageError, match="those of before"):
        measure(clip, EXAMPLES, PICTURES[6:9, :, :32])
    with pytest.raises(ImageError, match="those of truth"):
        measure(clip, replace(EXAMPLES, truth=PICTURES[:2]), PICTURES[6:9])
