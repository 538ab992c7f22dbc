"""Guidance equals diffusers' formula; one batch equals asking for each prediction."""

import math
from copy import deepcopy

import pytest
import torch

from ip2p_lib import rng
from ip2p_lib.diffusion.guidance import (
    caption_denoiser,
    classifier_free,
    combine,
    drop_conditioning,
    edit_denoiser,
)
from ip2p_lib.training.surgery import widen_conv_in

IDS = torch.arange(3)
E_UNCOND, E_IMAGE, E_FULL = (
    rng.normal(rng.key("guidance", name), IDS, (4, 8, 8)).double()
    for name in ("none", "image", "full")
)
BRANCHES = (E_UNCOND, E_IMAGE, E_FULL)


def as_diffusers(text_scale, image_scale):
    """StableDiffusionInstructPix2PixPipeline, with its own names and order of terms."""
    noise_pred_text, noise_pred_image, noise_pred_uncond = E_FULL, E_IMAGE, E_UNCOND
    return (
        noise_pred_uncond
        + text_scale * (noise_pred_text - noise_pred_image)
        + image_scale * (noise_pred_image - noise_pred_uncond)
    )


def test_both_scales_one_is_the_full_prediction():
    torch.testing.assert_close(combine(*BRANCHES, 1, 1), E_FULL, rtol=0, atol=1e-14)


def test_both_scales_zero_is_the_unconditional_prediction():
    assert torch.equal(combine(*BRANCHES, 0, 0), E_UNCOND)


@pytest.mark.parametrize("image_scale", [0.3, 1.0, 1.5])
def test_text_scale_zero_is_guidance_by_the_image_alone(image_scale):
    expected = classifier_free(E_UNCOND, E_IMAGE, image_scale)
    assert torch.equal(combine(*BRANCHES, 0, image_scale), expected)


@pytest.mark.parametrize("scale", [0.4, 1.0, 7.5])
def test_equal_scales_are_guidance_by_both_at_once(scale):
    expected = classifier_free(E_UNCOND, E_FULL, scale)
    torch.testing.assert_close(combine(*BRANCHES, scale, scale), expected)


@pytest.mark.parametrize("image_scale", [0.0, 0.5, 0.99, 1.0, 1.5, 2.2])
@pytest.mark.parametrize("text_scale", [0.0, 0.5, 1.0, 7.5])
def test_the_formula_is_that_of_diffusers(text_scale, image_scale):
    torch.testing.assert_close(
        combine(*BRANCHES, text_scale, image_scale),
        as_diffusers(text_scale, image_scale),
        rtol=0,
        atol=1e-13,
    )


def test_guidance_is_continuous_through_one():
    """diffusers' pipeline drops all guidance below 1; a sweep of ours does not jump."""
    below, above = (combine(*BRANCHES, 7.5, s) for s in (1 - 1e-9, 1 + 1e-9))
    assert (below - above).abs().max() < 1e-7


def test_scales_may_differ_by_row():
    s_T, s_I = torch.tensor([7.5, 0.5, 0.0]), torch.tensor([1.5, 0.0, 2.0])
    rows = [
        combine(*(e[i : i + 1] for e in BRANCHES), s_T[i].item(), s_I[i].item())
        for i in range(3)
    ]
    assert torch.equal(combine(*BRANCHES, s_T, s_I), torch.cat(rows))


def test_a_scale_for_another_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="3 rows, but the scale has shape"):
        combine(*BRANCHES, torch.ones(2), 1.0)


N = 100_000
TEXT, IMAGE = torch.ones(N, 1, 1), torch.ones(N, 1, 1, 1)
NULL_TEXT = torch.full((1, 1, 1), -1.0)


def dropped(u, rate=0.05):
    """Masks of the examples that lost their text, and their image."""
    text, image = drop_conditioning(TEXT[: len(u)], IMAGE[: len(u)], NULL_TEXT, u, rate)
    assert set(text.unique().tolist()) <= {-1.0, 1.0}
    assert set(image.unique().tolist()) <= {0.0, 1.0}
    return text.flatten() == -1, image.flatten() == 0


def test_dropout_is_five_percent_each_within_binomial_bounds():
    no_text, no_image = dropped(rng.uniform(rng.key(0, "drop"), torch.arange(N)))
    bound = 4 * math.sqrt(0.05 * 0.95 / N)
    for case in (no_text & ~no_image, no_text & no_image, ~no_text & no_image):
        assert abs(case.double().mean().item() - 0.05) < bound


def test_one_number_decides_in_the_order_of_the_released_code():
    u = torch.tensor([0.0, 0.049, 0.05, 0.099, 0.1, 0.149, 0.15, 0.999])
    no_text, no_image = dropped(u)
    assert no_text.tolist() == [True, True, True, True, False, False, False, False]
    assert no_image.tolist() == [False, False, True, True, True, True, False, False]


def test_kept_rows_are_untouched_and_the_null_values_are_the_given_ones():
    text, image = torch.rand(2, 5, 3), torch.rand(2, 4, 6, 6)
    null = torch.rand(1, 5, 3)
    new_text, new_image = drop_conditioning(
        text, image, null, torch.tensor([0.07, 0.5])
    )
    assert torch.equal(new_text[0], null[0]) and torch.equal(new_text[1], text[1])
    assert not new_image[0].any() and torch.equal(new_image[1], image[1])


def test_rate_zero_drops_nothing():
    no_text, no_image = dropped(torch.zeros(4), rate=0.0)
    assert not no_text.any() and not no_image.any()


@pytest.mark.parametrize("rate", [-0.1, 0.34])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1/3\]"):
        drop_conditioning(TEXT[:2], IMAGE[:2], NULL_TEXT, torch.zeros(2), rate)


def test_a_missing_number_is_refused():
    with pytest.raises(ValueError, match="one number per example"):
        drop_conditioning(TEXT[:3], IMAGE[:3], NULL_TEXT, torch.zeros(2))


@pytest.fixture(scope="module")
def unet(tiny_backbone):
    """An 8-channel U-Net in float64 whose new weights are not zero."""
    unet = widen_conv_in(tiny_backbone.unet).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        new = unet.conv_in.weight[:, 4:]
        new.copy_(torch.randn(new.shape, generator=generator, dtype=torch.float64))
    return unet


class Counting:
    """A U-Net that remembers how many rows it was asked for."""

    def __init__(self, unet):
        self.unet, self.rows = unet, 0

    def __call__(self, sample, t, **options):
        self.rows = len(sample)
        return self.unet(sample, t, **options)


def normal(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


X, C, CAPTIONS, NULL = (
    normal(2, 4, 8, 8),
    normal(2, 4, 8, 8) * 3,
    normal(2, 77, 16),
    normal(1, 77, 16),
)
T = torch.tensor([500.0, 20.0], dtype=torch.float64)


def predict(unet, image, text):
    with torch.no_grad():
        return unet(torch.cat([X, image], 1), T, encoder_hidden_states=text).sample


@pytest.mark.parametrize(
    ("text_scale", "image_scale", "branches"),
    [
        ([7.5, 5.0], [1.5, 1.2], 3),
        ([7.5, 7.5], [1.0, 1.0], 2),
        ([2.0, 3.0], [2.0, 3.0], 2),
        ([0.0, 0.0], [1.5, 1.5], 2),
        ([1.0, 1.0], [1.0, 1.0], 1),
        ([0.0, 0.0], [1.0, 1.0], 1),
        ([0.0, 0.0], [0.0, 0.0], 1),
        ([2.0, 3.0], [0.0, 0.5], 3),
        ([7.5, 7.5], [1.0, 1.5], 3),
    ],
)
def test_equation_3_with_no_branch_too_many(unet, text_scale, image_scale, branches):
    s_T, s_I = (torch.tensor(s, dtype=torch.float64) for s in (text_scale, image_scale))
    counting = Counting(unet)
    ours = edit_denoiser(counting, C, CAPTIONS, NULL, s_T, s_I)(X, T)
    null = NULL.expand(2, -1, -1)
    e_0, e_i = predict(unet, torch.zeros_like(C), null), predict(unet, C, null)
    e_t = predict(unet, C, CAPTIONS)
    s_T, s_I = s_T[:, None, None, None], s_I[:, None, None, None]
    expected = e_0 + s_I * (e_i - e_0) + s_T * (e_t - e_i)
    assert (ours - expected).abs().max() < 1e-12
    assert counting.rows == 2 * branches


def test_equation_2(tiny_backbone):
    unet = deepcopy(tiny_backbone.unet).double()
    ours = caption_denoiser(unet, CAPTIONS, NULL, 7.5)(X, T)
    with torch.no_grad():
        e_0 = unet(X, T, encoder_hidden_states=NULL.expand(2, -1, -1)).sample
        e_t = unet(X, T, encoder_hidden_states=CAPTIONS).sample
    assert (ours - (e_0 + 7.5 * (e_t - e_0))).abs().max() < 1e-12
    assert not ours.requires_grad


def test_the_sampler_keeps_its_precision_when_the_u_net_is_in_half():
    def half_unet(sample, t, encoder_hidden_states, return_dict):
        assert sample.dtype == encoder_hidden_states.dtype == torch.bfloat16
        return (sample[:, :4],)

    half = {"dtype": torch.bfloat16}
    scales = (torch.tensor([7.5, 5.0]), torch.tensor([1.5, 1.5]))
    denoise = edit_denoiser(
        half_unet, C.to(**half), CAPTIONS.to(**half), NULL.to(**half), *scales
    )
    assert denoise(X.float(), T.float()).dtype == torch.float32
