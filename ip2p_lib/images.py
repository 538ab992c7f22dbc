"""Read images, resize them, and convert between PIL and tensors in [-1, 1].

The one place where value ranges and sizes are decided: everything after it sees float32
tensors (B, 3, H, W) in [-1, 1], as Stable Diffusion's autoencoder does.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes; + is BigTIFF
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


class ImageError(ValueError):
    """An image that cannot be read, or has a size that cannot be used."""


def load(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Open an image as people see it: upright, RGB, transparency on white.

    ``source`` is the path or the bytes of a file of one of ``FORMATS``, or a PIL image;
    of an animation, the first frame is read.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: not one of ``FORMATS``, damaged, or so many pixels (PIL's own
            limit, about 90 million) that reading it could exhaust the memory.
    """
    name = str(source) if isinstance(source, str | Path) else "The image"
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(file, Image.Image):
                return _to_rgb(file)
            with Image.open(file, formats=FORMATS) as opened:
                return _to_rgb(opened)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no image at {name}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has too many pixels; make it smaller.") from error
    except UnidentifiedImageError as error:
        reason = f"is not an image of a known format; use {', '.join(FORMATS)}."
        with file if isinstance(file, io.BytesIO) else Path(name).open("rb") as start:
            start.seek(0)
            if start.read(9).startswith(_TIFF):
                reason = "is a damaged TIFF, or of a rare kind; save it as 8-bit RGB."
        raise ImageError(f"{name} {reason}") from error
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except Exception as error:  # decoders raise errors of any kind for damaged data
        raise ImageError(f"{name} cannot be read ({error}); save it again.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    with suppress(TypeError):  # some programs write a text as the orientation
        image = ImageOps.exif_transpose(image)
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if signed or image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image, tags, signed)  # PIL would clip these to white
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _to_eight_bits(
    image: Image.Image, tags: Mapping[int, Any], signed: bool
) -> Image.Image:
    """Scale one channel of integers or floats by the range that it is stored in.

    ``tags`` give the range of up to 16 bits; without them it is that of 16 bits in
    PIL's 16-bit modes, else the smallest usual one that holds every value. Values up to
    a tenth above it are clipped; floats all below a twentieth of it are not of it.
    """
    bits, inverted = tags.get(_BITS_PER_SAMPLE, (None,))[0], tags.get(_PHOTOMETRIC) == 0
    stored = np.asarray(image)
    if bits == 8:  # PIL takes all 8-bit numbers for unsigned and all of 32 for signed
        stored = stored.view(np.int8)
    elif bits == 32 and image.mode == "I" and not signed:
        stored = stored.view(np.uint32)
    values = stored.astype(np.float64)
    most = values.max()
    if not np.isfinite(values).all() or values.min() < 0:
        raise ImageError("it has values that are negative, infinite or no numbers")
    ranges = [1.0] if image.mode == "F" else []
    ranges += [2.0**n - 1 for n in (8, 12, 16, 31, 32)]
    if bits in (8, 12, 16) or image.mode.startswith("I;16"):
        ranges = [2.0 ** ((bits or 16) - signed) - 1]
    elif image.mode == "F":
        ranges = [top for top in ranges if most >= top / 20 or not most]
    top = next((top for top in ranges if most <= 1.1 * top), None)
    if top is None:
        raise ImageError(f"its values reach {most:g}, which is no usual range")
    if isinstance(hole := image.info.get("transparency"), int):
        values[values == hole] = 0 if inverted else top
    grey = (values * (255 / top)).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(255 - grey if inverted else grey)


def to_tensor(images: Image.Image | Sequence[Image.Image]) -> Tensor:
    """Convert images to a (B, 3, H, W) float32 tensor in [-1, 1].

    Raises ImageError for no image, or images of different sizes.
    """
    batch = [images] if isinstance(images, Image.Image) else list(images)
    sizes = {image.size for image in batch}
    if len(sizes) != 1:
        raise ImageError(
            f"A batch needs images of one size, not {sorted(sizes)}; use fit first."
        )
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in batch])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1.0


def to_pil(x: Tensor) -> list[Image.Image]:
    """Convert a (B, 3, H, W) or (3, H, W) tensor to images; clamps to [-1, 1].

    Raises ImageError for another shape, or NaN (half precision that overflowed).
    """
    batch = x[None] if x.ndim == 3 else x
    if batch.ndim != 4 or batch.shape[1] != 3:
        raise ImageError(f"Images have shape (B, 3, H, W), not {tuple(x.shape)}.")
    values = batch.detach().cpu().float()
    if values.isnan().any():
        raise ImageError(
            "The image holds NaN, which half precision gives when it overflows; "
            "run the model in float32 or bfloat16."
        )
    pixels = (values.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return [Image.fromarray(p) for p in pixels.permute(0, 2, 3, 1).numpy()]


def check_images(x: Tensor, multiple: int = 8) -> None:
    """Raise ImageError unless ``x`` is a batch of images that an editor can take.

    (B, 3, H, W) floats in [-1, 1], the sides multiples of ``multiple`` pixels: those of
    one element of a latent.
    """
    if not isinstance(x, Tensor) or x.layout is not torch.strided:
        raise ImageError(f"Images are one tensor, not {type(x).__name__}; use edit.")
    shape = tuple(x.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise ImageError(f"Images have shape (B, 3, H, W), not {shape}.")
    if not x.is_floating_point():
        raise ImageError(f"Images are floats in [-1, 1], not {x.dtype}; use to_tensor.")
    if shape[2] % multiple or shape[3] % multiple:
        raise ImageError(
            f"Sides must be multiples of {multiple} pixels, not {shape[2]} x "
            f"{shape[3]}; use fit, or edit, which fits a PIL image."
        )
    low, high = float(x.min()), float(x.max())
    if not -1.001 <= low <= high <= 1.001:  # NaN fails too
        raise ImageError(f"Images lie in [-1, 1]; these in [{low:g}, {high:g}].")


def fit(image: Image.Image, resolution: int, multiple: int = 8) -> Image.Image:
    """Resize and crop slightly, to sides a latent can have (released ``edit_cli.py``).

    Both become multiples of ``multiple`` pixels (the released code has 64): the short
    side is rounded up and the long one, at the same scale, down; Lanczos resampling;
    what exceeds the new aspect is cut evenly. The long side will be in [resolution, 2
    resolution), up to rounding. Raises ImageError for an image without pixels, or so
    long and thin that the short side would vanish.
    """
    short, long = sorted(image.size)
    if not short:
        raise ImageError(f"An image of {image.width} x {image.height} has no pixels.")
    if short * resolution < long * multiple:
        raise ImageError(
            f"An image of {image.width} x {image.height} is too thin for {resolution} "
            f"pixels; crop it to at most {resolution // multiple} : 1."
        )
    # Whole numbers throughout: in floats 512 * (512 / 512) may fall to 511.99, and so
    # a whole multiple short.
    new_short = -(-short * resolution // (long * multiple)) * multiple
    new_long = long * new_short // (short * multiple) * multiple
    wide = image.width >= image.height
    size = (new_long, new_short) if wide else (new_short, new_long)
    return ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)


def resize_and_crop(x: Tensor, size: int) -> Tensor:
    """Bring the short side to ``size`` (bicubic, smoothed) and crop the middle.

    From (B, 3, H, W) of any range, which bicubic curves leave a little at edges, to
    (B, 3, size, size).
    """
    height, width = x.shape[-2:]
    if (height, width) == (size, size):
        return x
    short = min(height, width)
    fitted = (height * size // short, width * size // short)
    x = functional.interpolate(x, fitted, mode="bicubic", antialias=True)
    top, left = (fitted[0] - size) // 2, (fitted[1] - size) // 2
    return x[..., top : top + size, left : left + size]
