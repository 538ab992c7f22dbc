"""Sky, land, light and weather of the miniature world, batched over scenes."""

import math

import torch
from torch import Tensor

from ip2p_lib.miniature import vocabulary as words

RESOLUTION = 128
_TAU = 2 * math.pi

# A place is four layers from back to front: shape, height of its top edge (0 = top of
# the image), amplitude, repeats across the image, colour in clear daylight.
_LAND: tuple[tuple[str, str, float, float, float, tuple], ...] = (
    ("meadow", "hills", 0.52, 0.05, 1.5, (0.62, 0.80, 0.52)),
    ("meadow", "hills", 0.60, 0.04, 1.0, (0.50, 0.74, 0.38)),
    ("meadow", "hills", 0.68, 0.03, 2.0, (0.42, 0.68, 0.30)),
    ("meadow", "flat", 0.86, 0.0, 1.0, (0.36, 0.60, 0.25)),
    ("beach", "flat", 0.46, 0.0, 1.0, (0.22, 0.58, 0.78)),
    ("beach", "hills", 0.62, 0.01, 3.0, (0.55, 0.82, 0.88)),
    ("beach", "hills", 0.66, 0.02, 1.0, (0.95, 0.86, 0.62)),
    ("beach", "hills", 0.85, 0.02, 1.0, (0.90, 0.78, 0.52)),
    ("desert", "hills", 0.50, 0.06, 1.0, (0.96, 0.78, 0.48)),
    ("desert", "hills", 0.60, 0.06, 1.5, (0.93, 0.70, 0.38)),
    ("desert", "hills", 0.70, 0.05, 1.0, (0.88, 0.62, 0.30)),
    ("desert", "hills", 0.86, 0.03, 1.5, (0.82, 0.55, 0.25)),
    ("mountains", "peaks", 0.20, 0.22, 1.5, (0.66, 0.70, 0.80)),
    ("mountains", "peaks", 0.38, 0.18, 2.0, (0.48, 0.52, 0.64)),
    ("mountains", "hills", 0.68, 0.03, 1.5, (0.44, 0.56, 0.44)),
    ("mountains", "flat", 0.84, 0.0, 1.0, (0.38, 0.50, 0.38)),
    ("city", "blocks", 0.22, 0.20, 5.0, (0.68, 0.72, 0.80)),
    ("city", "blocks", 0.38, 0.18, 4.0, (0.50, 0.54, 0.64)),
    ("city", "flat", 0.72, 0.0, 1.0, (0.62, 0.62, 0.62)),
    ("city", "flat", 0.80, 0.0, 1.0, (0.40, 0.40, 0.43)),
    ("forest", "trees", 0.16, 0.24, 5.0, (0.38, 0.58, 0.46)),
    ("forest", "trees", 0.30, 0.26, 4.0, (0.22, 0.46, 0.32)),
    ("forest", "hills", 0.70, 0.02, 1.0, (0.32, 0.48, 0.24)),
    ("forest", "flat", 0.85, 0.0, 1.0, (0.28, 0.40, 0.20)),
    ("lake", "hills", 0.36, 0.08, 1.5, (0.44, 0.62, 0.50)),
    ("lake", "flat", 0.50, 0.0, 1.0, (0.36, 0.62, 0.82)),
    ("lake", "hills", 0.60, 0.01, 1.0, (0.46, 0.70, 0.86)),
    ("lake", "hills", 0.74, 0.03, 1.0, (0.48, 0.66, 0.34)),
    ("village", "hills", 0.48, 0.05, 1.0, (0.60, 0.76, 0.52)),
    ("village", "houses", 0.38, 0.14, 4.0, (0.80, 0.42, 0.34)),
    ("village", "flat", 0.66, 0.0, 1.0, (0.76, 0.70, 0.56)),
    ("village", "flat", 0.82, 0.0, 1.0, (0.66, 0.58, 0.44)),
    ("canyon", "blocks", 0.20, 0.24, 2.0, (0.86, 0.56, 0.42)),
    ("canyon", "blocks", 0.42, 0.20, 2.5, (0.74, 0.40, 0.28)),
    ("canyon", "hills", 0.70, 0.03, 1.0, (0.84, 0.54, 0.36)),
    ("canyon", "flat", 0.86, 0.0, 1.0, (0.74, 0.44, 0.28)),
    ("farm", "hills", 0.54, 0.03, 1.0, (0.72, 0.82, 0.46)),
    ("farm", "houses", 0.34, 0.20, 1.0, (0.72, 0.16, 0.14)),
    ("farm", "flat", 0.66, 0.0, 1.0, (0.86, 0.76, 0.40)),
    ("farm", "furrows", 0.80, 0.02, 8.0, (0.62, 0.50, 0.28)),
)
_SHAPES = ("flat", "hills", "peaks", "blocks", "trees", "houses", "furrows")
# Of every place and layer: number of the shape, the three others, colour: (P, 4, 7).
_LAYERS = [
    [
        (_SHAPES.index(shape), *size, *rgb)
        for name, shape, *size, rgb in _LAND
        if name == place
    ]
    for place in words.PLACES
]
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
_VEILS = [(*a, b, *c, d, e) for a, b, c, d, e in map(_TINT.__getitem__, words.WEATHERS)]
PATTERNS = 8  # different arrangements of flakes and stars


def _floats(values: object, device: torch.device) -> Tensor:
    """Constants as float32 on a device."""
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


def _disc(x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
    """Soft-edged ellipses, (B, 1, 128, 128).

    Centres are (B,), radii across and down (2,) or (2, B), all in pixels.
    """
    axis = torch.arange(RESOLUTION, device=x.device) + 0.5
    radius_x, radius_y = radii[..., None, None]
    across = (axis[None, None, :] - x[:, None, None]) / radius_x
    down = (axis[None, :, None] - y[:, None, None]) / radius_y
    distance = (across.square() + down.square()).sqrt()
    smaller = torch.minimum(radius_x, radius_y)
    return ((1 - distance) * smaller + 0.5).clamp(0, 1)[:, None]


def _scatter(pattern: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Place of the ``index``-th flake in each scene's pattern, pixels."""
    # The R2 low-discrepancy sequence keeps flakes apart from each other.
    step = pattern.float() * 31 + index + 1
    return torch.frac(step * 0.7548777) * 128, torch.frac(step * 0.5698403) * 128


def _lights(image: Tensor, time: Tensor, variation: Tensor) -> Tensor:
    """Sun, low sun, or moon and stars."""
    device = image.device
    x = 20 + 88 * torch.frac(variation * 0.618034)
    y = _floats((20.0, 50.0, 22.0), device)[time]
    radius = _floats((8.0, 13.0, 9.0), device)[time]
    colour = _floats(((1.0, 0.93, 0.55), (1.0, 0.82, 0.38), (0.95, 0.95, 0.85)), device)
    body = _disc(x, y, torch.stack([radius, radius]))
    image = torch.lerp(image, colour[time][..., None, None], body)
    night = (time == 2).float()[:, None, None, None]
    radii = _floats((1.8, 1.8), device)
    for index in range(7):
        sx, sy = _scatter(variation % PATTERNS, index)
        star = _disc(sx, sy * 0.4, radii) * night
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
    lit = _floats(
        ((0.78, 0.88, 0.96), (1.0, 0.84, 0.55), (0.98, 0.82, 0.40)), code.device
    )
    return torch.lerp(image, lit[time][..., None, None], 0.8 * panes[:, None])


def land(code: Tensor) -> tuple[Tensor, Tensor]:
    """Sky and land of scenes, whose codes (B, 20) are from ``render.encode``.

    Returns the backdrop, (B, 3, 128, 128) in [0, 1], and the light that falls on
    objects, (B, 3, 1, 1).
    """
    place, time, weather, _, _, seed = code[:, :6].unbind(1)
    device, variation = code.device, seed.float()
    ground, on_objects = _floats(_SKY, device)[time][:, 2:].unbind(1)
    veils = _floats(_VEILS, device)[weather].split((3, 1, 3, 1, 1), dim=1)
    tint, share, sky_tint, sky_share, bright = veils
    # Veils of weather are lit too, or a snowy night would be as bright as day.
    image = _sky(time, sky_tint * ground, sky_share[..., None, None], variation)
    layers = _floats(_LAYERS, device)[place]
    for index, layer in enumerate(layers.unbind(1)):
        shape, height, amplitude, repeats = layer[:, :4].unbind(1)
        phase = torch.frac(variation * 0.381966 + 0.37 * index)
        curves = _profiles(repeats, phase, device)
        curve = curves[torch.arange(len(code), device=device), shape.long()]
        edge = height[:, None] - amplitude[:, None] * curve  # (B, 128) over x
        below = _axis(device)[None, :, None] - edge[:, None, :]
        mask = (below * RESOLUTION + 0.5).clamp(0, 1)
        # Far layers take more of the weather than near ones.
        weight = (share * (1.15 - 0.1 * index)).clamp(max=1)
        colour = torch.lerp(layer[:, 4:], tint, weight) * ground
        image = torch.lerp(image, colour[..., None, None], mask[:, None])
        if index == 1:
            image = _windows(image, mask, code)
    bright = bright[..., None, None]
    return image * bright, on_objects[..., None, None] * bright


def _sky(time: Tensor, veil: Tensor, share: Tensor, variation: Tensor) -> Tensor:
    """The sky, (B, 3, 128, 128), by a ``share`` (B, 1, 1, 1) in the weather's veil."""
    top, horizon = _floats(_SKY, time.device)[time][:, :2, :, None, None].unbind(1)
    fade = (_axis(time.device) / 0.6).clamp(0, 1)[None, None, :, None]
    sky = torch.lerp(torch.lerp(top, horizon, fade), veil[..., None, None], share)
    image = sky.expand(-1, -1, -1, RESOLUTION)
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

    To images (B, 3, 128, 128) in [0, 1], of codes (B, 20) from ``render.encode``.
    """
    time, weather, seed = code[:, 1], code[:, 2], code[:, 5]
    glow = _floats((1.0, 0.95, 0.75), image.device)[time][:, None, None, None]
    fog = (weather == list(words.WEATHERS).index("fog")).float()[:, None, None, None]
    image = torch.lerp(image, 0.82 * glow.expand_as(image), 0.3 * fog)
    for name, (count, radius, tone, opacity) in _FALLING.items():
        chosen = (weather == list(words.WEATHERS).index(name)).nonzero()[:, 0]
        pattern, part = seed[chosen] % PATTERNS, image[chosen]
        colour = _floats(tone, image.device)[:, None, None] * glow[chosen]
        radii = _floats(radius, image.device)
        for index in range(count):
            x, y = _scatter(pattern, index)
            flake = _disc(x, y, radii) * opacity
            part = torch.lerp(part, colour.expand_as(part), flake)
        image = image.index_copy(0, chosen, part)
    return image
