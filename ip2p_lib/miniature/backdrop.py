"""Sky, land, light and weather of the miniature world, batched over scenes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ip2p_lib.miniature import vocabulary as words

RESOLUTION = 128
_TAU = 2 * math.pi

# A place is four layers from back to front: shape, height of its top edge (0 = top of
# the image), amplitude, repeats across the image, colour in clear daylight.
_LAND: dict[str, tuple[tuple[str, float, float, float, tuple], ...]] = {
    "meadow": (
        ("hills", 0.52, 0.05, 1.5, (0.62, 0.80, 0.52)),
        ("hills", 0.60, 0.04, 1.0, (0.50, 0.74, 0.38)),
        ("hills", 0.68, 0.03, 2.0, (0.42, 0.68, 0.30)),
        ("flat", 0.86, 0.0, 1.0, (0.36, 0.60, 0.25)),
    ),
    "beach": (
        ("flat", 0.46, 0.0, 1.0, (0.22, 0.58, 0.78)),
        ("hills", 0.62, 0.01, 3.0, (0.55, 0.82, 0.88)),
        ("hills", 0.66, 0.02, 1.0, (0.95, 0.86, 0.62)),
        ("hills", 0.85, 0.02, 1.0, (0.90, 0.78, 0.52)),
    ),
    "desert": (
        ("hills", 0.50, 0.06, 1.0, (0.96, 0.78, 0.48)),
        ("hills", 0.60, 0.06, 1.5, (0.93, 0.70, 0.38)),
        ("hills", 0.70, 0.05, 1.0, (0.88, 0.62, 0.30)),
        ("hills", 0.86, 0.03, 1.5, (0.82, 0.55, 0.25)),
    ),
    "mountains": (
        ("peaks", 0.20, 0.22, 1.5, (0.66, 0.70, 0.80)),
        ("peaks", 0.38, 0.18, 2.0, (0.48, 0.52, 0.64)),
        ("hills", 0.68, 0.03, 1.5, (0.44, 0.56, 0.44)),
        ("flat", 0.84, 0.0, 1.0, (0.38, 0.50, 0.38)),
    ),
    "city": (
        ("blocks", 0.22, 0.20, 5.0, (0.68, 0.72, 0.80)),
        ("blocks", 0.38, 0.18, 4.0, (0.50, 0.54, 0.64)),
        ("flat", 0.72, 0.0, 1.0, (0.62, 0.62, 0.62)),
        ("flat", 0.80, 0.0, 1.0, (0.40, 0.40, 0.43)),
    ),
    "forest": (
        ("trees", 0.16, 0.24, 5.0, (0.38, 0.58, 0.46)),
        ("trees", 0.30, 0.26, 4.0, (0.22, 0.46, 0.32)),
        ("hills", 0.70, 0.02, 1.0, (0.32, 0.48, 0.24)),
        ("flat", 0.85, 0.0, 1.0, (0.28, 0.40, 0.20)),
    ),
    "lake": (
        ("hills", 0.36, 0.08, 1.5, (0.44, 0.62, 0.50)),
        ("flat", 0.50, 0.0, 1.0, (0.36, 0.62, 0.82)),
        ("hills", 0.60, 0.01, 1.0, (0.46, 0.70, 0.86)),
        ("hills", 0.74, 0.03, 1.0, (0.48, 0.66, 0.34)),
    ),
    "village": (
        ("hills", 0.48, 0.05, 1.0, (0.60, 0.76, 0.52)),
        ("houses", 0.38, 0.14, 4.0, (0.80, 0.42, 0.34)),
        ("flat", 0.66, 0.0, 1.0, (0.76, 0.70, 0.56)),
        ("flat", 0.82, 0.0, 1.0, (0.66, 0.58, 0.44)),
    ),
    "canyon": (
        ("blocks", 0.20, 0.24, 2.0, (0.86, 0.56, 0.42)),
        ("blocks", 0.42, 0.20, 2.5, (0.74, 0.40, 0.28)),
        ("hills", 0.70, 0.03, 1.0, (0.84, 0.54, 0.36)),
        ("flat", 0.86, 0.0, 1.0, (0.74, 0.44, 0.28)),
    ),
    "farm": (
        ("hills", 0.54, 0.03, 1.0, (0.72, 0.82, 0.46)),
        ("houses", 0.34, 0.20, 1.0, (0.72, 0.16, 0.14)),
        ("flat", 0.66, 0.0, 1.0, (0.86, 0.76, 0.40)),
        ("furrows", 0.80, 0.02, 8.0, (0.62, 0.50, 0.28)),
    ),
}
_SHAPES = ("flat", "hills", "peaks", "blocks", "trees", "houses", "furrows")
# Time of day: sky at the top, sky at the horizon, light on land, light on objects.
_SKY = (
    ((0.36, 0.64, 0.94), (0.80, 0.91, 0.98), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ((0.45, 0.30, 0.56), (1.0, 0.66, 0.36), (1.0, 0.74, 0.58), (1.0, 0.88, 0.78)),
    ((0.03, 0.05, 0.18), (0.14, 0.20, 0.42), (0.34, 0.40, 0.62), (0.66, 0.70, 0.88)),
)
# Weather: tint of the land, its share; tint of the sky, its share; brightness.
_TINT = {
    "clear": ((0.0, 0.0, 0.0), 0.0, (0.0, 0.0, 0.0), 0.0, 1.0),
    "snow": ((0.95, 0.97, 1.0), 0.78, (0.82, 0.86, 0.92), 0.55, 1.0),
    "rain": ((0.30, 0.34, 0.40), 0.35, (0.50, 0.54, 0.60), 0.75, 0.88),
    "fog": ((0.80, 0.82, 0.84), 0.55, (0.82, 0.84, 0.86), 0.85, 1.0),
    "autumn": ((0.86, 0.46, 0.12), 0.55, (0.94, 0.86, 0.70), 0.30, 1.0),
    "spring": ((0.98, 0.70, 0.80), 0.45, (0.98, 0.86, 0.92), 0.35, 1.0),
}
PATTERNS = 8  # different arrangements of flakes and stars


def rgb(values: object, device: torch.device) -> Tensor:
    """Colours or other constants as float32 on a device."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def _axis(device: torch.device) -> Tensor:
    return (torch.arange(RESOLUTION, device=device) + 0.5) / RESOLUTION


def _steps(u: Tensor) -> Tensor:
    """A fixed skyline in 0..1: one height for each whole number."""
    index = u.floor()
    return torch.frac(torch.sin(index * 12.9898 + 4.1) * 43.7585).abs()


def _profiles(repeats: Tensor, phase: Tensor, device: torch.device) -> Tensor:
    """All shapes as curves over x, (B, 7, 128), from -1 (low) to 1 (high)."""
    u = _axis(device) * repeats[:, None] + phase[:, None]
    ramp = (torch.frac(u) * 2 - 1).abs()
    roof = (1.4 - 2.8 * (torch.frac(u) - 0.5).abs() - 0.2).clamp(min=-1)
    gable = torch.where((torch.frac(u) - 0.5).abs() < 0.3, roof, -torch.ones_like(u))
    return torch.stack(
        [
            torch.zeros_like(u),
            torch.sin(_TAU * u),
            (1 - 2 * ramp) * (0.6 + 0.4 * _steps(u)),
            _steps(u) * 2 - 1,
            1 - 2 * ramp,
            gable,
            torch.sin(_TAU * u).abs() * 2 - 1,
        ],
        dim=1,
    )


def _table(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes (P, 4), numbers (P, 4, 3) and colours (P, 4, 3) of all places."""
    rows = [_LAND[place] for place in words.PLACES]
    shapes = [[_SHAPES.index(layer[0]) for layer in row] for row in rows]
    numbers = [[layer[1:4] for layer in row] for row in rows]
    colours = [[layer[4] for layer in row] for row in rows]
    index = torch.tensor(shapes, device=device)
    return index, rgb(numbers, device), rgb(colours, device)


def disc(x: Tensor, y: Tensor, radius_x: Tensor, radius_y: Tensor) -> Tensor:
    """Soft-edged ellipses, (B, 128, 128); centres and radii in pixels, (B,)."""
    axis = torch.arange(RESOLUTION, device=x.device) + 0.5
    across = (axis[None, None, :] - x[:, None, None]) / radius_x[:, None, None]
    down = (axis[None, :, None] - y[:, None, None]) / radius_y[:, None, None]
    distance = (across.square() + down.square()).sqrt()
    smaller = torch.minimum(radius_x, radius_y)[:, None, None]
    return ((1 - distance) * smaller + 0.5).clamp(0, 1)


def scatter(pattern: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Place of the ``index``-th flake in each scene's pattern, pixels."""
    # The R2 low-discrepancy sequence keeps flakes apart from each other.
    step = pattern.float() * 31 + index + 1
    return torch.frac(step * 0.7548777) * 128, torch.frac(step * 0.5698403) * 128


def _lights(image: Tensor, time: Tensor, variation: Tensor) -> Tensor:
    """Sun, low sun, or moon and stars."""
    device = image.device
    x = 20 + 88 * torch.frac(variation * 0.618034)
    y = rgb((20.0, 50.0, 22.0), device)[time]
    radius = rgb((8.0, 13.0, 9.0), device)[time]
    colour = rgb(((1.0, 0.93, 0.55), (1.0, 0.82, 0.38), (0.95, 0.95, 0.85)), device)
    body = disc(x, y, radius, radius)[:, None]
    image = torch.lerp(image, colour[time][..., None, None], body)
    night = (time == 2).float()[:, None, None, None]
    for index in range(7):
        sx, sy = scatter(variation % PATTERNS, index)
        size = torch.full_like(sx, 1.8)
        star = disc(sx, sy * 0.4, size, size)[:, None] * night
        image = torch.lerp(image, torch.ones_like(image), star)
    return image


def _windows(image: Tensor, mask: Tensor, code: Tensor) -> Tensor:
    """Light the windows of the city's nearer houses; others have none."""
    place, time = code[:, 0], code[:, 1]
    axis = torch.arange(RESOLUTION, device=code.device) % 16
    column, row = (axis >= 4) & (axis < 11), (axis >= 5) & (axis < 12)
    city = (place == list(words.PLACES).index("city")).float()[:, None, None]
    panes = (row[:, None] & column[None, :]) * mask * city
    # The pavement begins at 0.72: nothing is lit below it.
    panes = panes * (torch.arange(RESOLUTION, device=code.device) < 88)[:, None]
    lit = rgb(((0.78, 0.88, 0.96), (1.0, 0.84, 0.55), (0.98, 0.82, 0.40)), code.device)
    return torch.lerp(image, lit[time][..., None, None], 0.8 * panes[:, None])


def land(code: Tensor) -> tuple[Tensor, Tensor]:
    """Sky and land of encoded scenes.

    Args:
        code: (B, 20) from ``render.encode``.

    Returns:
        The backdrop, (B, 3, 128, 128) in [0, 1], and the light that falls on objects,
        (B, 3, 1, 1).
    """
    place, time, weather, _, _, seed = code[:, :6].unbind(1)
    device, variation = code.device, seed.float()
    ground, on_objects = rgb(_SKY, device)[time][:, 2:].unbind(1)
    tint, shares = _veils(weather, device)
    image = _sky(time, weather, variation)
    shapes, numbers, colours = (table[place] for table in _table(device))
    for layer in range(4):
        height, amplitude, repeats = numbers[:, layer].unbind(1)
        phase = torch.frac(variation * 0.381966 + 0.37 * layer)
        curves = _profiles(repeats, phase, device)
        curve = curves[torch.arange(len(code), device=device), shapes[:, layer]]
        edge = height[:, None] - amplitude[:, None] * curve  # (B, 128) over x
        below = _axis(device)[None, :, None] - edge[:, None, :]
        mask = (below * RESOLUTION + 0.5).clamp(0, 1)
        # Far layers take more of the weather than near ones.
        share = (shares[:, :1] * (1.15 - 0.1 * layer)).clamp(max=1)
        colour = torch.lerp(colours[:, layer], tint[:, 0], share) * ground
        image = torch.lerp(image, colour[..., None, None], mask[:, None])
        if layer == 1:
            image = _windows(image, mask, code)
    bright = shares[:, 2, None, None, None]
    return image * bright, (on_objects[..., None, None] * bright)


def _veils(weather: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tints (B, 2, 3) of land and sky; (B, 3) their shares and the brightness."""
    rows = [_TINT[name] for name in words.WEATHERS]
    tints = rgb([(row[0], row[2]) for row in rows], device)
    shares = rgb([(row[1], row[3], row[4]) for row in rows], device)
    return tints[weather], shares[weather]


def _sky(time: Tensor, weather: Tensor, variation: Tensor) -> Tensor:
    """The sky behind everything, (B, 3, 128, 128) in [0, 1]."""
    device = time.device
    top, horizon, ground, _ = rgb(_SKY, device)[time].unbind(1)
    tint, shares = _veils(weather, device)
    fade = (_axis(device) / 0.6).clamp(0, 1)[None, None, :, None]
    sky = torch.lerp(top[..., None, None], horizon[..., None, None], fade)
    # Veils of weather are lit too, or a snowy night would be as bright as day.
    veil = (tint[:, 1] * ground)[..., None, None]
    share = shares[:, 1, None, None, None]
    image = torch.lerp(sky, veil, share).expand(-1, -1, -1, RESOLUTION)
    lit = 1 - share.clamp(min=0.4) + 0.4
    return torch.lerp(image, _lights(image, time, variation), lit)


# What falls: number, radius in pixels (x, y), colour, opacity.
_FALLING = {
    "snow": (22, (2.6, 2.6), (1.0, 1.0, 1.0), 0.95),
    "rain": (20, (0.9, 6.5), (0.72, 0.82, 0.95), 0.75),
    "autumn": (12, (3.6, 2.4), (0.88, 0.34, 0.08), 0.95),
    "spring": (14, (3.0, 2.2), (1.0, 0.56, 0.72), 0.95),
}


def weather_layers(image: Tensor, code: Tensor) -> Tensor:
    """Add what falls in front of everything, and the fog's veil.

    Args:
        image: (B, 3, 128, 128) in [0, 1].
        code: (B, 20) from ``render.encode``.
    """
    time, weather, seed = code[:, 1], code[:, 2], code[:, 5]
    glow = rgb((1.0, 0.95, 0.75), image.device)[time][:, None, None, None]
    fog = (weather == list(words.WEATHERS).index("fog")).float()[:, None, None, None]
    image = torch.lerp(image, 0.82 * glow.expand_as(image), 0.3 * fog)
    for name, (count, radii, tone, opacity) in _FALLING.items():
        chosen = (weather == list(words.WEATHERS).index(name)).nonzero()[:, 0]
        pattern, part = seed[chosen] % PATTERNS, image[chosen]
        colour = rgb(tone, image.device)[:, None, None] * glow[chosen]
        for index in range(count):
            x, y = scatter(pattern, index)
            wide, tall = torch.full_like(x, radii[0]), torch.full_like(x, radii[1])
            flake = disc(x, y, wide, tall)[:, None] * opacity
            part = torch.lerp(part, colour.expand_as(part), flake)
        image = image.index_copy(0, chosen, part)
    return image
