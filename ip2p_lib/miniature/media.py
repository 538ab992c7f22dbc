"""The artistic media of the miniature world, as filters over rendered images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p_lib.miniature import vocabulary as words


def _luma(x: Tensor) -> Tensor:
    weights = torch.tensor((0.299, 0.587, 0.114), device=x.device)[:, None, None]
    return (x * weights).sum(1, keepdim=True)


def _blur(x: Tensor, side: int) -> Tensor:
    padded = F.pad(x, (side // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, side, stride=1)


def _pixel_art(x: Tensor) -> Tensor:
    coarse = F.avg_pool2d(x, 4)
    vivid = ((coarse - 0.5) * 1.25 + 0.5).clamp(0, 1)
    return vivid.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def _line_drawing(x: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    edge = (across.abs() + down.abs()).amax(1, keepdim=True)
    ink = (1.4 * _blur((edge * 2.5).clamp(0, 1), 3)).clamp(0, 1)
    paper = torch.tensor((0.97, 0.95, 0.88), device=x.device)[:, None, None]
    pencil = torch.tensor((0.16, 0.16, 0.20), device=x.device)[:, None, None]
    shade = 0.12 * (1 - _luma(x))
    return torch.lerp(paper - shade, pencil.expand_as(x), ink)


def _watercolour(x: Tensor) -> Tensor:
    pale = 0.72 * _blur(x, 3) + 0.28
    side = x.shape[-1]
    axis = (torch.arange(side, device=x.device) + 0.5) / side
    wave = 0.02 * torch.sin(axis * 19) + 0.015 * torch.sin(axis * 43 + 1)
    inside = torch.minimum(axis, 1 - axis)
    rim = torch.minimum(inside[None, :] + wave[:, None], inside[:, None] + wave[None])
    painted = ((rim - 0.035) * 28).clamp(0, 1)
    return torch.lerp(torch.full_like(x, 0.98), pale, painted)


def _oil_painting(x: Tensor) -> Tensor:
    # Kuwahara: of four windows around a pixel take the mean of the calmest one. Windows
    # often tie, so all four are weighed, as Papari et al. (2007) do: else the rounding
    # of another device would choose, and the image differ.
    mean, square = _blur(x, 5), _blur(x.square(), 5)
    calm = (square - mean.square()).sum(1, keepdim=True).clamp(min=0)
    both = F.pad(torch.cat([mean, calm], 1), (2, 2, 2, 2), mode="replicate")
    size = x.shape[-1]
    windows = torch.stack(
        [
            both[..., top : top + size, left : left + size]
            for top, left in ((0, 0), (0, 4), (4, 0), (4, 4))
        ]
    )
    # Steep enough to choose wherever there is a choice, and smooth where there is none.
    weight = (windows[:, :, 3:] + 1e-3) ** -8
    best = (weight * windows[:, :, :3]).sum(0) / weight.sum(0)
    return ((best - 0.5) * 1.2 + 0.52).clamp(0, 1)


_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "pixel art": _pixel_art,
    "line drawing": _line_drawing,
    "black and white": lambda x: _luma(x).expand_as(x),
    "watercolour": _watercolour,
    "oil painting": _oil_painting,
}


def apply_media(image: Tensor, medium: Tensor) -> Tensor:
    """Show each image, (B, 3, H, W) in [0, 1], in its medium.

    That is a (B,) index into ``vocabulary.MEDIA``; a photo is left as it is.
    """
    for name, paint in _FILTERS.items():
        chosen = (medium == list(words.MEDIA).index(name)).nonzero()[:, 0]
        if len(chosen):
            image = image.index_copy(0, chosen, paint(image[chosen].clamp(0, 1)))
    return image
