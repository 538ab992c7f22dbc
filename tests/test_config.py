"""The presets."""

import pytest

from ip2p_lib.config import MODELS, SCALES, preset


def test_the_paper_preset_holds_the_papers_numbers() -> None:
    paper = preset("paper")
    assert (paper.rendering.p_min, paper.rendering.p_max) == (0.1, 0.9)
    assert (paper.rendering.steps, paper.rendering.candidates) == (100, 100)
    assert (paper.filtering.image, paper.filtering.direction) == (0.75, 0.2)
    assert (paper.training.steps, paper.training.batch_size) == (10_000, 1024)
    assert paper.training.learning_rate == 1e-4 and paper.training.drop == 0.05
    assert (paper.editing.text_scale, paper.editing.image_scale) == (7.5, 1.5)
    assert paper.triplets == 454_445


def test_only_the_small_writer_is_asked_more_than_once() -> None:
    attempts = {name: scale.language_samples for name, scale in SCALES.items()}
    assert attempts == {"smoke": 2, "miniature": 2, "sd15": 1, "paper": 1}


def test_hub_models_are_pinned_and_local_ones_are_here() -> None:
    for scale in SCALES.values():
        for source in (scale.backbone, scale.clip, scale.editor):
            if source.path_or_id.startswith(str(MODELS)):
                assert source.revision is None
            else:
                assert source.revision and len(source.revision) == 40


@pytest.mark.parametrize(
    ("typo", "meant"), [("minature", "miniature"), ("sd1.5", "sd15"), ("", "smoke")]
)
def test_a_misspelt_scale_is_answered_with_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(ValueError, match="Choose one of smoke, miniature") as error:
        preset(typo)
    assert typo == "" or meant in str(error.value)
