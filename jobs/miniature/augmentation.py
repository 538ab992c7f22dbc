"""Changes of training pictures that make the judge sure of generated ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p_lib.miniature.backdrop import RESOLUTION
from ip2p_lib.miniature.render import OBJECT_COLUMNS, SCENE_COLUMNS
from ip2p_lib.rng import key, normal, uniform


def mirrored(codes: Tensor) -> Tensor:
    """Codes of the scenes that the mirror images show, (B, 20).

    Left and right change places, in the scene and in every thing; a lone thing stays in
    the first slot.
    """
    scene, first, second = codes.split((SCENE_COLUMNS, *[OBJECT_COLUMNS] * 2), dim=1)
    first, second = _facing_back(first), _facing_back(second)
    lone = second[:, :1] < 0
    swapped = torch.where(lone, first, second), torch.where(lone, second, first)
    return torch.cat([scene, *swapped], dim=1)


def _facing_back(thing: Tensor) -> Tensor:
    name, x, base, size, turned, *rest = thing.unbind(1)
    shown = name >= 0
    x, turned = torch.where(shown, RESOLUTION - x, x), torch.where(shown, 1 - turned, 0)
    return torch.stack([name, x, base, size, turned, *rest], dim=1)


def augment(images: Tensor, codes: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Change pictures as generating them might, and half of them into their mirror.

    Args:
        images: (B, 3, 128, 128) in [-1, 1].
        codes: (B, 20), what they show.
        step: number of the training step; with the row it decides all changes.

    Returns:
        The pictures, and the codes of what they show now.
    """
    ids = torch.arange(len(images), device=images.device)
    u = uniform(key("judge change", step), ids, (10,))
    grain = normal(key("judge grain", step), ids, (3, RESOLUTION // 2, RESOLUTION // 2))
    flip = u[:, 0] < 0.5
    # In bfloat16 the coordinates of a moved picture would be half a pixel off.
    with torch.autocast(images.device.type, enabled=False):
        images = _move(images, flip, u[:, 1:5])
        images = _soften(images, u[:, 5:7])
        images = _light(images, u[:, 7:9])
        images = images + 0.08 * _half_of_the_time(u[:, 9]) * _double(grain)
    return images.clamp(-1, 1), torch.where(flip[:, None], mirrored(codes), codes)


def _half_of_the_time(u: Tensor) -> Tensor:
    """A strength in [0, 1) for each picture, (B, 1, 1, 1): 0 for half of them."""
    return (2 * u - 1).clamp(min=0)[:, None, None, None]


def _double(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2.0, mode="bilinear")


def _move(images: Tensor, flip: Tensor, u: Tensor) -> Tensor:
    """Mirror where asked; shift half by up to 5 pixels and scale them by up to 8 %."""
    moved = (u[:, 0] < 0.5).float()  # the others stay exact: resampling blurs
    scale, across, down = (moved[:, None] * (2 * u[:, 1:] - 1)).unbind(1)
    zoom, reach, none = 1 + 0.08 * scale, 10 / RESOLUTION, torch.zeros_like(scale)
    rows = [
        torch.stack([torch.where(flip, -zoom, zoom), none, reach * across], dim=1),
        torch.stack([none, zoom, reach * down], dim=1),
    ]
    theta = torch.stack(rows, dim=1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _soften(images: Tensor, u: Tensor) -> Tensor:
    """Lose detail as an autoencoder does, then blur; each half of the time."""
    coarse = _double(F.avg_pool2d(images, 2))
    images = torch.lerp(images, coarse, _half_of_the_time(u[:, 0]))
    blurred = F.avg_pool2d(F.pad(images, (1,) * 4, mode="replicate"), 3, stride=1)
    return torch.lerp(images, blurred, _half_of_the_time(u[:, 1]))


def _light(images: Tensor, u: Tensor) -> Tensor:
    """Change contrast and brightness by up to a tenth."""
    gain, offset = (0.1 * (2 * u - 1))[..., None, None, None].unbind(1)
    return images * (1 + gain) + offset
