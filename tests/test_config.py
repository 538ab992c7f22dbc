"""The presets."""

from ip2p_lib.config import MODELS, SCALES, preset


def test_the_paper_preset_holds_the_papers_numbers():
    paper = preset("paper")
    assert (paper.rendering.p_min, paper.rendering.p_max) == (0.1, 0.9)
    assert (paper.rendering.steps, paper.rendering.candidates) == (100, 100)
    assert (paper.filtering.image, paper.filtering.direction) == (0.75, 0.2)
    assert (paper.training.steps, paper.training.batch_size) == (10_000, 1024)
    assert paper.training.learning_rate == 1e-4 and paper.training.drop == 0.05
    assert (paper.editing.text_scale, paper.editing.image_scale) == (7.5, 1.5)
    assert paper.triplets == 454_445


def test_hub_models_are_pinned_to_a_commit():
    for scale in SCALES.values():
        for source in (scale.backbone, scale.clip, scale.editor):
            local = source.path_or_id.startswith(str(MODELS))
            assert len(source.revision or "") == (0 if local else 40)
