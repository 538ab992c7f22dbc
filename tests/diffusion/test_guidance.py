"""Guidance equals diffusers' formula; one batch equals asking for each prediction."""

from copy import deepcopy

import pytest
import torch

from ip2p_lib import rng
from ip2p_lib.diffusion.guidance import caption_denoiser, combine, edit_denoiser
from tests.support.tiny_editor import new_editor

IDS = torch.arange(3)
E_UNCOND, E_IMAGE, E_FULL = (
    rng.normal(rng.key("guidance", name), IDS, (4, 8, 8)).double()
    for name in ("none", "image", "full")
)
BRANCHES = (E_UNCOND, E_IMAGE, E_FULL)


@pytest.mark.parametrize("image_scale", [0.0, 0.99, 1.0, 1.5])
@pytest.mark.parametrize("text_scale", [0.0, 1.0, 7.5])
def test_the_formula_is_that_of_diffusers(text_scale, image_scale):
    """With its order of terms; its pipeline drops all guidance below 1, we do not."""
    theirs = (
        E_UNCOND + text_scale * (E_FULL - E_IMAGE) + image_scale * (E_IMAGE - E_UNCOND)
    )
    ours = combine(*BRANCHES, text_scale, image_scale)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.fixture(scope="module")
def unet(tiny_backbone):
    return new_editor(tiny_backbone).backbone.unet.double()


def normal(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


X, C = normal(2, 4, 8, 8), normal(2, 4, 8, 8) * 3
CAPTIONS, NULL = normal(2, 77, 16), normal(1, 77, 16)
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
        ([0.0, 0.0], [0.0, 0.0], 1),
        ([7.5, 7.5], [1.0, 1.5], 3),
    ],
)
def test_equation_3_with_no_branch_too_many(unet, text_scale, image_scale, branches):
    s_T, s_I = (torch.tensor(s, dtype=torch.float64) for s in (text_scale, image_scale))
    rows = []

    def counted(sample, t, **options):
        rows.append(len(sample))
        return unet(sample, t, **options)

    ours = edit_denoiser(counted, C, CAPTIONS, NULL, s_T, s_I)(X, T)
    null = NULL.expand(2, -1, -1)
    e_0, e_i = predict(unet, torch.zeros_like(C), null), predict(unet, C, null)
    e_t = predict(unet, C, CAPTIONS)
    s_T, s_I = s_T[:, None, None, None], s_I[:, None, None, None]
    expected = e_0 + s_I * (e_i - e_0) + s_T * (e_t - e_i)
    assert (ours - expected).abs().max() < 1e-12
    assert rows == [2 * branches]


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
