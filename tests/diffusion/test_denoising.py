"""Guided prediction in one batch equals asking for every branch by itself."""

import pytest
import torch

from ip2p_lib.diffusion.denoising import caption_denoiser, edit_denoiser
from ip2p_lib.training.surgery import widen_conv_in


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


def draw(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


X, C, TEXT, NULL = (
    draw(2, 4, 8, 8),
    draw(2, 4, 8, 8) * 3,
    draw(2, 77, 16),
    draw(1, 77, 16),
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
    ours = edit_denoiser(counting, C, TEXT, NULL, s_T, s_I)(X, T)
    null = NULL.expand(2, -1, -1)
    e_0, e_i = predict(unet, torch.zeros_like(C), null), predict(unet, C, null)
    e_t = predict(unet, C, TEXT)
    s_T, s_I = s_T[:, None, None, None], s_I[:, None, None, None]
    expected = e_0 + s_I * (e_i - e_0) + s_T * (e_t - e_i)
    assert (ours - expected).abs().max() < 1e-12
    assert counting.rows == 2 * branches


def test_equation_2(tiny_backbone):
    from copy import deepcopy

    unet = deepcopy(tiny_backbone.unet).double()
    ours = caption_denoiser(unet, TEXT, NULL, 7.5)(X, T)
    with torch.no_grad():
        e_0 = unet(X, T, encoder_hidden_states=NULL.expand(2, -1, -1)).sample
        e_t = unet(X, T, encoder_hidden_states=TEXT).sample
    assert (ours - (e_0 + 7.5 * (e_t - e_0))).abs().max() < 1e-12
    assert not ours.requires_grad


def test_the_sampler_keeps_its_precision_when_the_u_net_is_in_half():
    def half_unet(sample, t, encoder_hidden_states, return_dict):
        assert sample.dtype == encoder_hidden_states.dtype == torch.bfloat16
        return (sample[:, :4],)

    half = {"dtype": torch.bfloat16}
    scales = (torch.tensor([7.5, 5.0]), torch.tensor([1.5, 1.5]))
    denoise = edit_denoiser(
        half_unet, C.to(**half), TEXT.to(**half), NULL.to(**half), *scales
    )
    assert denoise(X.float(), T.float()).dtype == torch.float32
