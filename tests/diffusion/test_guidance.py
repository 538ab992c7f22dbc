"""Guidance is equation 3; one batch equals asking for each prediction."""

import pytest
import torch

from ip2p_lib.diffusion.guidance import combine, edit_denoiser
from tests.support.tiny_editor import new_editor


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
        ([7.5, 5.0], [1.5, 0.9], 3),
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
    combined = combine(e_0, e_i, e_t, s_T, s_I)
    s_T, s_I = s_T[:, None, None, None], s_I[:, None, None, None]
    expected = e_0 + s_I * (e_i - e_0) + s_T * (e_t - e_i)
    assert (ours - expected).abs().max() < 1e-12
    assert (combined - expected).abs().max() < 1e-12
    assert rows == [2 * branches]


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
