"""Which kernel computes attention changes nothing but the time it takes."""

import pytest
import torch

from ip2p_lib.diffusion.attention import attend, of_any_shape

cudnn = torch.backends.cuda.cudnn_sdp_enabled


@of_any_shape()
def seen(fails=False):
    if fails:
        raise ArithmeticError("in the middle")
    return cudnn()


def test_batches_of_any_shape_do_without_plans_and_only_they():
    before = cudnn()
    for _ in range(2):
        assert not seen()
        assert cudnn() == before


def test_an_error_leaves_torch_as_it_was():
    before = cudnn()
    with pytest.raises(ArithmeticError):
        seen(fails=True)
    assert cudnn() == before


@pytest.mark.parametrize("keys", [5, 7])
def test_attention_is_that_of_formed_maps(keys):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 4), (2, 3, keys, 4), (2, 3, keys, 4)
    q, k, v = (torch.randn(s, generator=generator).double() for s in shapes)
    maps = (q @ k.transpose(2, 3) / 2).softmax(-1)
    torch.testing.assert_close(attend(q, k, v), maps @ v, rtol=1e-12, atol=1e-12)
