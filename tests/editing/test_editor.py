"""The editor equals the stock pipeline, and refuses what it cannot do in words."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ip2p_lib.editing import editor as editing
from ip2p_lib.editing.editor import Editor
from ip2p_lib.images import to_tensor
from tests.support.tiny_editor import DEFAULTS, distance, new_editor, picture


@pytest.fixture(scope="module")
def editor(tiny_backbone):
    return new_editor(tiny_backbone)


def stock_pipeline(backbone, sampler):
    from diffusers import (
        DDIMScheduler,
        EulerAncestralDiscreteScheduler,
        StableDiffusionInstructPix2PixPipeline,
    )

    kinds = {
        "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
        "ddim": (DDIMScheduler, {"set_alpha_to_one": False, "clip_sample": False}),
    }
    kind, options = kinds[sampler]
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=kind(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            **options,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise_of(generator):
    """The draws of a generator, in the order in which the stock pipeline makes them."""

    def draw(step, seeds, shape):
        return torch.randn((len(seeds), *shape), generator=generator)

    return draw


@pytest.mark.parametrize("sampler", ["euler_ancestral", "ddim"])
@pytest.mark.parametrize("scales", [(7.5, 1.5), (3.0, 1.0), (1.5, 1.5)])
def test_the_same_noise_gives_the_stock_pipelines_picture(editor, sampler, scales):
    text_scale, image_scale = scales
    stock = stock_pipeline(editor.backbone, sampler)(
        "make it a cat",
        image=picture(),
        num_inference_steps=6,
        guidance_scale=text_scale,
        image_guidance_scale=image_scale,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images[0]
    ours = Editor(
        editor.backbone,
        replace(DEFAULTS, sampler=sampler),
        64,
        noise=noise_of(torch.Generator().manual_seed(5)),
    ).edit_tensors(
        to_tensor(picture()),
        ["make it a cat"],
        text_scale=text_scale,
        image_scale=image_scale,
        steps=6,
    )[0]
    assert (ours / 2 + 0.5 - stock).abs().max() < 1e-4
    assert stock.std() > 0.01, "a flat picture would prove nothing"


def test_a_picture_does_not_depend_on_its_batch(editor, monkeypatch):
    images = [picture(64, 64, 1), picture(90, 60, 2), picture(64, 64, 3)]
    texts = ["make it a cat", "turn the dog", "a horse"]
    knobs = {"text_scale": [7.5, 3.0, 0.0], "image_scale": [1.5, 1.0, 1.2]}
    seeds = [1, 2, 2**40]
    together = editor.edit_batch(images, texts, seed=seeds, **knobs)
    monkeypatch.setattr(editing, "MAX_PIXELS", 1)  # one image at a time
    one_by_one = editor.edit_batch(images, texts, seed=seeds, **knobs)
    for i, image in enumerate(images):
        alone = editor.edit(
            image,
            texts[i],
            seed=seeds[i],
            text_scale=knobs["text_scale"][i],
            image_scale=knobs["image_scale"][i],
        )
        assert distance(together[i], alone) < 0.02
        assert distance(one_by_one[i], alone) < 0.02


def test_seed_instruction_and_scales_matter_and_defaults_are_the_settings(editor):
    edit = editor.edit(picture(), "make it a cat", seed=1)
    same = editor.edit(
        picture(), "make it a cat", text_scale=7.5, image_scale=1.5, steps=4, seed=1
    )
    assert distance(edit, same) == 0
    for changed in (
        editor.edit(picture(), "make it a cat", seed=2),
        editor.edit(picture(), "turn the dog", seed=1),
        editor.edit(picture(), "make it a cat", text_scale=3.0, seed=1),
        editor.edit(picture(), "make it a cat", image_scale=3.0, seed=1),
        editor.edit(picture(seed=9), "make it a cat", seed=1),
    ):
        assert distance(edit, changed) > 0.02


def test_the_walk_can_be_watched_and_ends_at_the_edit(editor):
    before = to_tensor(picture())
    steps = list(editor.trajectory(before, ["make it a cat"], steps=3))
    assert [step.index for step in steps] == [0, 1, 2]
    final = editor.backbone.decode(steps[-1].x)
    assert torch.equal(final, editor.edit_tensors(before, ["make it a cat"], steps=3))


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (30, 45), (200, 101)])
def test_the_aspect_is_kept(editor, size):
    edited = editor.edit(picture(*size), "make it a cat", steps=1)
    assert abs(edited.width / edited.height / (size[0] / size[1]) - 1) < 0.13
    assert 64 <= max(edited.size) < 80


def test_no_gradient_and_no_global_random_state_is_touched(editor):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    *_, last = editor.trajectory(to_tensor(picture()), ["make it a cat"], steps=2)
    assert not last.x.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"instruction": ""}, "'make it winter'"),
        ({"instruction": "  \n"}, "Say what should change"),
        ({"instruction": None}, "instruction is None"),
        ({"instruction": "a horse " * 60}, r"122 tokens"),
        ({"image": np.zeros((4, 4, 3))}, "PIL image, not ndarray"),
        ({"image": "cat.png"}, r"images\.load"),
        ({"steps": 0}, "1 step or more, not 0"),
        ({"text_scale": -1.0}, r"text_scale must be 0 or more, not -1\.0"),
        ({"image_scale": float("nan")}, "image_scale must be 0 or more"),
    ],
)
def test_bad_input_is_refused_in_words(editor, call, words):
    arguments = {"image": picture(), "instruction": "make it a cat", **call}
    with pytest.raises(ValueError, match=words):
        editor.edit(**arguments)


def test_a_batch_needs_one_of_each(editor):
    images = [picture(), picture()]
    with pytest.raises(ValueError, match="list of 2 instructions"):
        editor.edit_batch(images, "make it a cat")
    with pytest.raises(ValueError, match="list of 2 instructions"):
        editor.edit_batch(images, ["make it a cat"])
    with pytest.raises(ValueError, match="one seed, or one for each of 2"):
        editor.edit_batch(images, ["make it a cat"] * 2, seed=[1, 2, 3])
    assert editor.edit_batch([], []) == []


def test_a_misspelt_option_is_an_error(editor):
    with pytest.raises(TypeError, match="text_guidance_scale"):
        editor.edit_batch([picture()], ["make it a cat"], text_guidance_scale=3.0)


def test_a_text_to_image_u_net_is_no_editor(tiny_backbone):
    with pytest.raises(ValueError, match=r"8 channels, not 4.*widen_conv_in"):
        Editor(tiny_backbone, DEFAULTS, 64)
