"""Renders scenes as 128 x 128 images, batched, the same on CPU and GPU.

A scene becomes a row of integers (``encode``); everything after that is tensor
arithmetic over the whole batch: sky and land, sprites, light, weather, medium. No pixel
depends on the rest of the batch. Detail is coarse enough for latents of few cells:
flakes, stars and streaks are few and large.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ip2p_lib.config import DATA
from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.backdrop import RESOLUTION, land, weather_layers
from ip2p_lib.miniature.media import apply_media
from ip2p_lib.miniature.scenes import Scene

SIZE = 64  # pixels of a sprite's side
COLUMNS = 16  # sprites in one row of an atlas
_OBJECTS = list(words.OBJECTS)
_MATERIALS_AND_COLOURS = list(words.MATERIALS_AND_COLOURS)
_ACCESSORIES = list(words.ACCESSORIES)
# Colour of a finish in its shadows, middle tones and lights (RGB, 0..1).
_GRADIENTS = {
    "gold": ((0.35, 0.2, 0.02), (0.85, 0.62, 0.1), (1.0, 0.95, 0.55)),
    "wood": ((0.25, 0.13, 0.05), (0.58, 0.36, 0.18), (0.85, 0.65, 0.42)),
    "stone": ((0.2, 0.2, 0.2), (0.5, 0.5, 0.48), (0.82, 0.82, 0.78)),
    "ice": ((0.25, 0.55, 0.75), (0.62, 0.86, 0.95), (0.95, 1.0, 1.0)),
    "red": ((0.3, 0.0, 0.0), (0.85, 0.1, 0.1), (1.0, 0.65, 0.6)),
    "blue": ((0.0, 0.05, 0.3), (0.12, 0.32, 0.9), (0.65, 0.8, 1.0)),
    "green": ((0.0, 0.2, 0.03), (0.12, 0.65, 0.2), (0.7, 1.0, 0.65)),
    "purple": ((0.18, 0.0, 0.28), (0.55, 0.18, 0.75), (0.9, 0.7, 1.0)),
}
# Where an accessory sits: share of the sprite's height below its top, width, anchor.
_WORN = {
    "top hat": (0.06, 0.52, 0.85),
    "crown": (0.06, 0.5, 0.8),
    "sunglasses": (0.3, 0.55, 0.5),
    "bow": (0.62, 0.5, 0.5),
}


def encode(scenes: Sequence[Scene]) -> Tensor:
    """Write scenes as integer codes, (B, 20); -1 stands for "none"."""
    rows = [_code(scene) for scene in scenes]
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), -1)


def _code(scene: Scene) -> list[int]:
    code = [list(t).index(getattr(scene, name)) for name, t in words.SCENE.items()]
    code += [words.ART_SETS.index(scene.art), scene.variation]
    for obj in scene.things:
        finish = _MATERIALS_AND_COLOURS.index(obj.finish) if obj.finish else -1
        accessory = _ACCESSORIES.index(obj.accessory) if obj.accessory else -1
        place = (obj.x, obj.base, obj.size, int(obj.mirrored))
        code += [_OBJECTS.index(obj.name), *place, finish, accessory]
    empty = [-1, 0, 0, 1, 0, -1, -1]
    return code + empty * (2 - len(scene.things))


def split_codes(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of (B, 20) codes: of the scene (B, 6), of each object (B, 7).

    A scene is place, time, weather, medium, art set and variation; an object is name,
    x, base, size, mirrored, finish and accessory.
    """
    scene, left, right = codes.split((6, 7, 7), dim=1)
    return scene, left, right


@lru_cache(maxsize=4)
def load_sprites(folder: Path = DATA / "emoji") -> Tensor:
    """Read the four atlases: (4, sprites, 4, 64, 64) in [0, 1], alpha premultiplied.

    Raises:
        FileNotFoundError: an atlas is missing.
    """
    sheets = []
    for name in words.ART_SETS:
        path = folder / f"{name}.png"
        if not path.is_file():
            raise FileNotFoundError(
                f"The sprite atlas {path} is missing. It comes with the repository; "
                "restore it with git, or build it with jobs.miniature.build_sprites."
            )
        sheets.append(np.array(Image.open(path).convert("RGBA")))
    pixels = torch.from_numpy(np.stack(sheets)).float() / 255  # (4, rows*64, 16*64, 4)
    grid = pixels.unflatten(1, (-1, SIZE)).unflatten(3, (COLUMNS, SIZE))
    cells = grid.permute(0, 1, 3, 5, 2, 4).flatten(1, 2)[:, : len(words.SPRITES)]
    return torch.cat([cells[:, :, :3] * cells[:, :, 3:], cells[:, :, 3:]], dim=2)


def _heads(sprites: Tensor) -> Tensor:
    """Top (y), height and head (x) of every sprite: (4, sprites, 3) in 0..1."""
    solid = sprites[:, :, 3] > 0.3
    rows, index = solid.any(-1).float(), torch.arange(SIZE, device=sprites.device)
    top = rows.argmax(-1)
    bottom = SIZE - 1 - rows.flip(-1).argmax(-1)
    # The head is where the topmost eighth of the sprite has its pixels.
    crown = (index >= top[..., None]) & (index < (top + (bottom - top) / 8)[..., None])
    weight = (solid & crown[..., None]).sum(-2).float()
    centre = (weight * index).sum(-1) / weight.sum(-1).clamp(min=1)
    return torch.stack([top, bottom - top, centre], dim=-1).float() / SIZE


def _draw(sprite: Tensor, left: Tensor, top: Tensor, size: Tensor) -> Tensor:
    """Place sprites on transparent canvases: (N, 4, 64, 64) -> (N, 4, 128, 128)."""
    scale = RESOLUTION / size
    shift_x = (RESOLUTION - 2 * left - size) / size
    shift_y = (RESOLUTION - 2 * top - size) / size
    zero = torch.zeros_like(scale)
    rows = [scale, zero, shift_x, zero, scale, shift_y]
    theta = torch.stack(rows, -1).unflatten(1, (2, 3))
    shape = [len(sprite), 4, RESOLUTION, RESOLUTION]
    grid = F.affine_grid(theta, shape, align_corners=False)
    return F.grid_sample(sprite, grid, align_corners=False)


def _tint(sprite: Tensor, finish: Tensor) -> Tensor:
    """Recolour premultiplied sprites by the gradient of their finish, if any."""
    table = torch.tensor(
        [_GRADIENTS[name] for name in _MATERIALS_AND_COLOURS], device=sprite.device
    )
    dark, middle, light = table[finish.clamp(min=0)].unbind(1)
    alpha = sprite[:, 3:]
    luma = sprite[:, :3].mean(1, keepdim=True) / alpha.clamp(min=1e-3)
    low, high = (2 * luma).clamp(0, 1), (2 * luma - 1).clamp(0, 1)
    shaded = torch.lerp(dark[..., None, None], middle[..., None, None], low)
    shaded = torch.lerp(shaded, light[..., None, None], high) * alpha
    tinted = torch.cat([shaded, alpha], 1)
    return torch.where((finish >= 0)[:, None, None, None], tinted, sprite)


def _object_layers(code: Tensor, obj: Tensor, sprites: Tensor) -> list[Tensor]:
    """Layers of one object and of what it wears, (B, 4, 128, 128) each."""
    name, x, base, size, mirrored, finish, accessory = obj.unbind(1)
    art, visible = code[:, 4], (name >= 0)
    chosen = sprites[art, name.clamp(min=0)]
    flip = mirrored.bool()[:, None, None, None]
    chosen = torch.where(flip, chosen.flip(-1), chosen)
    chosen = _tint(chosen, finish) * visible[:, None, None, None]
    side, left, top = size.float(), x - size / 2, base - size.float()
    body = _draw(chosen, left, top, side)

    head = _heads(sprites)[art, name.clamp(min=0)]  # (B, 3)
    across = torch.where(mirrored.bool(), 1 - head[:, 2], head[:, 2])
    fit = torch.tensor([_WORN[key] for key in _ACCESSORIES], device=code.device)
    down, width, anchor = fit[accessory.clamp(min=0)].unbind(1)
    small = F.avg_pool2d(sprites[art, len(_OBJECTS) + accessory.clamp(min=0)], 2)
    small = small * ((accessory >= 0) & visible)[:, None, None, None]
    extent = width * side
    worn_left = left + across * side - extent / 2
    worn_top = top + (head[:, 0] + down * head[:, 1]) * side - anchor * extent
    return [body, _draw(small, worn_left, worn_top, extent)]


def render_codes(code: Tensor, sprites: Tensor | None = None) -> Tensor:
    """Render encoded scenes.

    Args:
        code: (B, 20) integers from ``encode``, on the device to render on.
        sprites: (4, sprites, 4, 64, 64) in [0, 1]; the shipped atlases by default.

    Returns:
        (B, 3, 128, 128) float32 in [-1, 1].
    """
    atlas = load_sprites() if sprites is None else sprites
    atlas = atlas.to(code.device)
    image, light = land(code)
    for obj in split_codes(code)[1:]:
        for layer in _object_layers(code, obj, atlas):
            image = image * (1 - layer[:, 3:]) + layer[:, :3] * light
    image = apply_media(weather_layers(image, code), code[:, 3])
    return image.clamp(0, 1) * 2 - 1


def render(
    scenes: Sequence[Scene],
    device: str | torch.device = "cpu",
    sprites: Tensor | Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Render scenes.

    Args:
        device: where to render; the images stay there.
        sprites: other artwork, (4, sprites, 4, 64, 64) in [0, 1] with premultiplied
            alpha in the order of ``vocabulary.SPRITES``, or one such (sprites, ...)
            tensor for each art set by name.

    Returns:
        (B, 3, 128, 128) float32 in [-1, 1]. An image does not depend on its batch.
    """
    if isinstance(sprites, Mapping):
        sprites = torch.stack([sprites[name] for name in words.ART_SETS])
    with torch.no_grad():
        return render_codes(encode(scenes).to(device), sprites)
