"""The editor equals the stock pipeline, and refuses what it cannot do in words."""

import weakref
from dataclasses import replace
from shutil import copytree, rmtree

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline

from ip2p_lib.config import Source, preset
from ip2p_lib.editing import editor as module
from ip2p_lib.editing.editor import Editor, load_editor
from ip2p_lib.images import ImageError, to_tensor
from tests.support.images import smooth_image
from tests.support.pipelines import stock_pipeline
from tests.support.tiny_editor import DEFAULTS, distance, new_editor

CAT = "make it a cat"


@pytest.fixture(scope="module")
def editor(tiny_backbone):
    return new_editor(tiny_backbone)


def noise_of(generator):
    """The draws of a generator, in the order in which the stock pipeline makes them."""

    def draw(step, seeds, shape):
        return torch.randn((len(seeds), *shape), generator=generator)

    return draw


@pytest.mark.parametrize("sampler", ["euler_ancestral", "ddim"])
@pytest.mark.parametrize("scales", [(7.5, 1.5), (3.0, 1.0)])
def test_the_same_noise_gives_the_stock_pipelines_image(editor, sampler, scales):
    kind = StableDiffusionInstructPix2PixPipeline
    stock = stock_pipeline(editor.backbone, kind, sampler)(
        CAT,
        image=smooth_image(),
        num_inference_steps=6,
        guidance_scale=scales[0],
        image_guidance_scale=scales[1],
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images[0]
    settings = replace(DEFAULTS, sampler=sampler)
    noise = noise_of(torch.Generator().manual_seed(5))
    same = Editor(editor.backbone, settings, 64, noise=noise)
    options = {"text_scale": scales[0], "image_scale": scales[1], "steps": 6}
    ours = same.edit_tensors(to_tensor(smooth_image()), [CAT], **options)[0]
    assert (ours / 2 + 0.5 - stock).abs().max() < 1e-4
    assert stock.std() > 0.01, "a flat image would prove nothing"


def test_an_image_does_not_depend_on_its_batch(editor, monkeypatch):
    images = [smooth_image(64, 64, 1), smooth_image(90, 60, 2), smooth_image(64, 64, 3)]
    texts = [CAT, "turn the dog", "a horse"]
    options = {"text_scale": [7.5, 3.0, 0.0], "image_scale": [1.5, 1.0, 1.2]}
    options["seed"] = [1, 2, 2**40]
    together = editor.edit_batch(images, texts, **options)
    monkeypatch.setattr(module, "MAX_PIXELS", 1)  # one image at a time
    one_by_one = editor.edit_batch(images, texts, **options)
    for i, image in enumerate(images):
        own = {name: values[i] for name, values in options.items()}
        alone = editor.edit(image, texts[i], **own)
        assert distance(together[i], alone) < 0.02
        assert distance(one_by_one[i], alone) < 0.02


def test_seed_instruction_and_scales_matter_and_defaults_are_the_settings(editor):
    edit = editor.edit(smooth_image(), CAT, seed=1)
    same = {"text_scale": 7.5, "image_scale": 1.5, "steps": 4, "seed": 1}
    assert distance(edit, editor.edit(smooth_image(), CAT, **same)) == 0
    for changed in (
        editor.edit(smooth_image(), CAT, seed=2),
        editor.edit(smooth_image(), "turn the dog", seed=1),
        editor.edit(smooth_image(), CAT, text_scale=3.0, seed=1),
        editor.edit(smooth_image(), CAT, image_scale=3.0, seed=1),
        editor.edit(smooth_image(seed=9), CAT, seed=1),
    ):
        assert distance(edit, changed) > 0.02


def test_the_trajectory_ends_at_the_edit_and_draws_no_global_number(editor):
    before, state = to_tensor(smooth_image()), torch.get_rng_state()
    steps = list(editor.trajectory(before, [CAT], steps=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert [step.index for step in steps] == [0, 1, 2]
    assert not steps[-1].x.requires_grad
    final = editor.backbone.decode(steps[-1].x)
    assert torch.equal(final, editor.edit_tensors(before, [CAT], steps=3))


@pytest.mark.parametrize("size", [(640, 480), (30, 45)])
def test_the_aspect_is_kept(editor, size):
    edited = editor.edit(smooth_image(*size), CAT, steps=1)
    assert editor.fit(smooth_image(*size)).size == edited.size
    assert abs(edited.width / edited.height / (size[0] / size[1]) - 1) < 0.13
    assert 64 <= max(edited.size) < 80


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"instruction": "  \n"}, "instruction"),
        ({"instruction": None}, "instruction"),
        ({"instruction": "\u200b"}, "instruction"),
        ({"instruction": "\0"}, "instruction"),
        ({"text_scale": 10**400}, "text_scale must be at least 0 and at most 10000"),
        ({"instruction": "a horse " * 60}, "122 tokens"),
        ({"image": "cat.png"}, "PIL image"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"text_scale": -1.0}, "text_scale must be at least 0"),
        ({"text_scale": "3"}, "text_scale: give a list of 1"),
        ({"image_scale": float("nan")}, "image_scale"),
        ({"image_scale": True}, "image_scale must be a number"),
        ({"seed": 2**63}, "seed must be"),
        ({"seed": 0.5}, "seed must be a whole number"),
    ],
)
def test_bad_input_is_refused_in_words(editor, wrong, word):
    with pytest.raises(ValueError, match=word):
        editor.edit(**{"image": smooth_image(), "instruction": CAT, **wrong})


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"steps": 1000}, "steps must be 1 to 999"), ({"seed": 0.5}, "seed must be")],
)
def test_options_are_checked_before_an_image_is_encoded(
    editor, wrong, word, monkeypatch
):
    sizes = [smooth_image(64, 64), smooth_image(90, 60)]
    monkeypatch.setattr(editor.backbone.vae, "encode", None)
    with pytest.raises(ValueError, match=word):
        editor.edit_batch(sizes, [CAT, CAT], **wrong)
    for ways in (editor.trajectory, editor.edit_tensors):
        with pytest.raises(ValueError, match="122 tokens"):
            ways(to_tensor(sizes[0]), ["a horse " * 60])


def test_an_edit_keeps_no_step_but_the_last(editor, monkeypatch):
    alive, most, sample = weakref.WeakSet(), [], module.sample_edits

    def watched(*arguments):
        for step in sample(*arguments):
            alive.add(step.x0)
            most.append(len(alive))
            yield step

    monkeypatch.setattr(module, "sample_edits", watched)
    editor.edit(smooth_image(), CAT, steps=6)
    assert len(most) == 6 and max(most) <= 3


def test_numbers_of_numpy_and_torch_are_numbers(editor):
    ours = editor.edit(smooth_image(), CAT, text_scale=2, steps=2, seed=3)
    theirs = editor.edit(
        smooth_image(),
        CAT,
        text_scale=np.float32(2),
        image_scale=torch.tensor(DEFAULTS.image_scale, dtype=torch.float64),
        steps=np.int64(2),
        seed=torch.tensor(3),
    )
    assert distance(ours, theirs) == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: x[0], "shape"),
        (lambda x: x.numpy(), "one tensor, not ndarray"),
        (lambda x: [x[0]], "one tensor, not list"),
        (lambda x: x.to_sparse(), "one tensor"),
        (lambda x: x[:, :1], "shape"),
        (lambda x: x[..., :-1], "multiples of"),
        (lambda x: (x * 127).to(torch.uint8), "uint8"),
        (lambda x: x * 255, "lie in"),
        (lambda x: x * float("nan"), "lie in"),
    ],
)
def test_tensors_that_are_no_images_are_refused(editor, change, word):
    with pytest.raises(ImageError, match=word):
        editor.edit_tensors(change(to_tensor(smooth_image())), [CAT])


def test_a_batch_needs_one_of_each(editor):
    images = [smooth_image(), smooth_image()]
    for instructions, options, word in (
        (CAT, {}, "instructions"),
        ([CAT], {}, "instructions"),
        ([CAT] * 2, {"seed": [1, 2, 3]}, "seed"),
    ):
        with pytest.raises(ValueError, match=f"{word}: give a list of 2"):
            editor.edit_batch(images, instructions, **options)
    with pytest.raises(TypeError, match="edit has no option 'text_guidance_scale'"):
        editor.edit_batch(images, [CAT] * 2, text_guidance_scale=3.0)
    assert editor.edit_batch([], []) == []


def test_a_text_to_image_u_net_is_no_editor(tiny_backbone):
    with pytest.raises(ValueError, match="8 channels, not 4"):
        Editor(tiny_backbone, DEFAULTS, 64)


def test_an_editor_is_loaded_from_a_folder(tmp_path):
    """A U-Net's own folder, the one around it, or a whole pipeline; any path."""
    models, editor = tmp_path / "out", load_editor("miniature", device="cpu")
    edit = editor.edit(smooth_image(), CAT, steps=1)
    editor.backbone.unet.save_pretrained(models / "editor" / "unet")
    whole = copytree(preset("miniature").backbone.path_or_id, models / "pipeline")
    rmtree(whole / "unet")
    editor.backbone.unet.save_pretrained(whole / "unet")
    for folder in (str(models / "editor"), models / "editor" / "unet", whole):
        loaded = load_editor(folder, device="cpu")
        assert loaded.settings == editor.settings
        assert distance(edit, loaded.edit(smooth_image(), CAT, steps=1)) < 0.01
    scale = preset("miniature")
    moved = replace(scale, editor=Source(str(models / "editor" / "unet")))
    assert distance(edit, load_editor(moved).edit(smooth_image(), CAT, steps=1)) < 0.01
    with pytest.raises(FileNotFoundError, match="train one"):
        load_editor(replace(scale, editor=Source(str(tmp_path))))
    for folder in (models, str(models), tmp_path / "none", "none/here"):
        with pytest.raises(FileNotFoundError, match="holds no editor"):
            load_editor(folder)
    for odd in (None, 5, preset("miniature").clip.path_or_id):
        with pytest.raises(ValueError, match=r"not|another network"):
            load_editor(odd)


def test_an_editor_of_another_pipeline_is_refused_by_name(editor):
    with pytest.raises(ValueError, match="another pipeline"):
        unet = load_editor("miniature", "cpu").backbone.unet
        Editor(replace(editor.backbone, unet=unet), DEFAULTS, 64)


def test_what_cannot_be_loaded_says_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'miniature'"):
        load_editor("minature")

    def unreachable(*args, **options):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(DDIMScheduler, "load_config", unreachable)
    with pytest.raises(FileNotFoundError, match=r"connect.*SCALE='miniature'"):
        load_editor("sd15")
