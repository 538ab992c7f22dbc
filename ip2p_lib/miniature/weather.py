"""What falls in front of a scene: snow, rain, leaves, petals, and the fog's veil."""

from __future__ import annotations

import torch
from torch import Tensor

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.backdrop import PATTERNS, disc, rgb, scatter

# What falls: number, radius in pixels (x, y), colour, opacity.
_FALLING = {
    "snow": (22, (2.6, 2.6), (1.0, 1.0, 1.0), 0.95),
    "rain": (20, (0.9, 6.5), (0.72, 0.82, 0.95), 0.75),
    "autumn": (12, (3.6, 2.4), (0.88, 0.34, 0.08), 0.95),
    "spring": (14, (3.0, 2.2), (1.0, 0.56, 0.72), 0.95),
}


def weather_layers(picture: Tensor, code: Tensor) -> Tensor:
    """Add what falls in front of everything, and the fog's veil.

    Args:
        picture: (B, 3, 128, 128) in [0, 1].
        code: (B, 20) from ``render.encode``.
    """
    time, weather, seed = code[:, 1], code[:, 2], code[:, 5]
    glow = rgb((1.0, 0.95, 0.75), picture.device)[time][:, None, None, None]
    fog = (weather == list(words.WEATHERS).index("fog")).float()[:, None, None, None]
    picture = torch.lerp(picture, 0.82 * glow.expand_as(picture), 0.3 * fog)
    for name, (count, radii, tone, opacity) in _FALLING.items():
        chosen = (weather == list(words.WEATHERS).index(name)).nonzero()[:, 0]
        pattern, part = seed[chosen] % PATTERNS, picture[chosen]
        colour = rgb(tone, picture.device)[:, None, None] * glow[chosen]
        for index in range(count):
            x, y = scatter(pattern, index)
            wide, tall = torch.full_like(x, radii[0]), torch.full_like(x, radii[1])
            flake = disc(x, y, wide, tall)[:, None] * opacity
            part = torch.lerp(part, colour.expand_as(part), flake)
        picture = picture.index_copy(0, chosen, part)
    return picture
