"""Classifier-free guidance for two conditionings, image and instruction (3.2.1).

Training drops each conditioning now and then (``training.train.drop_conditioning``),
so that one U-Net learns all three predictions below. Sampling moves along two
differences of these, with a scale for each (``combine``).

    c_I, c_T   image and text conditioning       s_I, s_T   their guidance scales
    e_uncond = e(z, 0, 0)    e_image = e(z, c_I, 0)    e_full = e(z, c_I, c_T)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ip2p_lib.diffusion.samplers import Denoiser


def _per_row(scale: float | Tensor, like: Tensor) -> float | Tensor:
    """(B,) scales shaped to multiply (B, ...); a plain number passes through."""
    if not isinstance(scale, Tensor) or scale.ndim == 0:
        return scale
    return scale.to(like).reshape(len(like), *[1] * (like.ndim - 1))


def classifier_free(e_uncond: Tensor, e_cond: Tensor, scale: float | Tensor) -> Tensor:
    """One-conditioning guidance, as the text-to-image model uses it (3.2.1, Eq. 2).

    From (B, C, H, W) noise predictions. ``scale`` is a number or (B,); 1 gives
    ``e_cond``, 0 ``e_uncond``, more extrapolates.
    """
    return e_uncond + _per_row(scale, e_uncond) * (e_cond - e_uncond)


def combine(
    e_uncond: Tensor,
    e_image: Tensor,
    e_full: Tensor,
    text_scale: float | Tensor,
    image_scale: float | Tensor,
) -> Tensor:
    """Two-scale guidance (3.2.1, Eq. 3).

    It follows from factorising P(z | c_I, c_T) as P(c_T | c_I, z) P(c_I | z) P(z): the
    image comes first, and the instruction is added to it. The formula holds for every
    real scale; ``diffusers``' pipeline switches guidance off below 1.

    Args:
        e_uncond, e_image, e_full: (B, C, H, W) predictions with neither conditioning,
            with the image alone, with image and instruction.
        text_scale: s_T, a number or (B,); the paper uses 5 to 10.
        image_scale: s_I, a number or (B,); the paper uses 1 to 1.5.
    Returns:
        (B, C, H, W) the guided prediction. s_I = s_T = 1 gives ``e_full``; s_T = 0 is
        one-conditioning guidance by the image.
    """
    s_T, s_I = _per_row(text_scale, e_full), _per_row(image_scale, e_full)
    return e_uncond + s_I * (e_image - e_uncond) + s_T * (e_full - e_image)


def caption_denoiser(
    unet: Callable[..., Any], text: Tensor, null_text: Tensor, scale: float | Tensor
) -> Denoiser:
    """Predict noise guided by a caption: two branches in one batch (3.2.1, Eq. 2).

    ``unet`` takes (4-channel sample, t, encoder_hidden_states=text); ``text`` are
    (B, L, D) captions, ``null_text`` is the empty one (1, L, D), ``scale`` as in
    ``classifier_free``.
    """
    text_rows = torch.cat([null_text.expand_as(text), text])

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        rows = x.repeat(2, 1, 1, 1)
        e_uncond, e_cond = _predict(unet, rows, t.repeat(2), text_rows).chunk(2)
        return classifier_free(e_uncond, e_cond, scale)

    return denoise


def edit_denoiser(
    unet: Callable[..., Any],
    condition: Tensor,
    text: Tensor,
    null_text: Tensor,
    text_scale: Tensor,
    image_scale: Tensor,
) -> Denoiser:
    """Predict noise guided by image and instruction, in one batch (3.2.1, Eq. 3).

    Equation 3 is a sum of three predictions with weights 1 - s_I, s_I - s_T and s_T. A
    prediction whose weight is zero in every row is not computed, which is exact.

    Args:
        unet: called as (8-channel sample, t, encoder_hidden_states=text).
        condition: (B, 4, h, w) c_I, the input's latent, unscaled.
        text, null_text: (B, L, D) c_T, and the empty instruction (1, L, D).
        text_scale, image_scale: (B,) s_T and s_I.
    """
    null, no_image = null_text.expand_as(text), torch.zeros_like(condition)
    terms = [
        (1 - image_scale, no_image, null),
        (image_scale - text_scale, condition, null),
        (text_scale, condition, text),
    ]
    used = [term for term in terms if term[0].any()]
    weights, images, texts = zip(*used, strict=True)
    image_rows, text_rows, n = torch.cat(images), torch.cat(texts), len(weights)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        rows = torch.cat([x.repeat(n, 1, 1, 1), image_rows.to(x.dtype)], dim=1)
        eps = _predict(unet, rows, t.repeat(n), text_rows).chunk(n)
        weighted = (_per_row(w, e) * e for w, e in zip(weights, eps, strict=True))
        return sum(weighted, start=torch.zeros_like(x))

    return denoise


@torch.no_grad()
def _predict(
    unet: Callable[..., Any], rows: Tensor, t: Tensor, text_rows: Tensor
) -> Tensor:
    """Call the U-Net in the precision of its text; the sampler keeps its own."""
    eps: Tensor = unet(
        rows.to(text_rows.dtype), t, encoder_hidden_states=text_rows, return_dict=False
    )[0]
    return eps.to(rows.dtype)
