"""Images survive the conversions, and files that are none are named."""

import io
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from ip2p_lib import rng
from ip2p_lib.images import ImageError, fit, load, to_pil, to_tensor

FORMATS = ["png", "jpeg", "webp", "bmp", "tiff", "gif"]


def picture(width=6, height=4):
    """Every pixel of its own colour, top left dark."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x // max(width - 1, 1), 255 * y // max(height - 1, 1), x + y]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_allowed_format_is_read_and_no_other(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.new("RGB", (40, 30), (200, 30, 60)).save(path)
    for source in (path, str(path), path.read_bytes()):
        image = load(source)
        assert image.mode == "RGB" and image.size == (40, 30)
        assert np.abs(pixels(image) - (200, 30, 60)).max() <= 4
    image.save(tmp_path / "picture.ppm")
    with pytest.raises(ImageError, match=r"picture.ppm is not an image of a known"):
        load(tmp_path / "picture.ppm")
    image.save(tmp_path / "floats.tiff", tiffinfo={339: (3, 3, 3)})  # PIL knows none
    with pytest.raises(ImageError, match="of a rare kind; save it as 8-bit RGB"):
        load(tmp_path / "floats.tiff")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(orientation):
    """The tag's meaning as in the EXIF standard: where row 0 and column 0 are."""
    turn, upright = Image.Transpose, picture()
    undo = [turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE]
    undo += [turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270]
    stored = upright.transpose(undo[orientation - 2]) if orientation > 1 else upright
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    stored.save(file, "PNG", exif=exif)
    assert np.array_equal(load(file.getvalue()), upright)


def test_transparency_is_shown_on_white(tmp_path):
    image = picture().convert("RGBA")
    image.putalpha(0)
    assert (pixels(load(image)) == 255).all()
    image.putalpha(255)
    assert np.array_equal(load(image), picture())
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.gif", transparency=0)
    assert (pixels(load(tmp_path / "palette.gif")) == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "1", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (4, 4), "white").convert(mode)
    assert load(image).mode == "RGB" and (pixels(load(image)) == 255).all()


def test_sixteen_bits_become_eight_and_not_white(tmp_path):
    grey = np.array([[0, 257 * 100, 257 * 200 - 1, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert pixels(load(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 100, 200, 255]


@pytest.mark.parametrize(
    ("kind", "top"),
    [
        *(("f4", top) for top in (1.0, 255.0, 4095.0, 65535.0)),
        *(("i4", top) for top in (255, 4095, 65535, 2**31 - 1)),
        ("u2", 65535),
    ],
)
def test_scientific_images_are_scaled_by_their_range(tmp_path, kind, top):
    """PIL alone would show them black or white."""
    shares, path = np.array([[0, 0.25, 0.5, 1]]), tmp_path / "deep.tiff"
    Image.fromarray((shares * top).astype(kind)).save(path)
    grey = pixels(load(path))[0, :, 0].astype(int)
    assert np.abs(grey - [0, 64, 128, 255]).max() <= 1


def test_a_tiff_of_twelve_bits_is_not_dark(tmp_path):
    """Four values in six bytes, which PIL writes as six values of eight bits."""
    path = tmp_path / "twelve.tiff"
    packed = np.array([[0x00, 0x04, 0x00, 0x80, 0x0F, 0xFF]], "u1")
    Image.fromarray(packed).save(path)
    data = bytearray(path.read_bytes())
    for tag, old, new in ((256, 6, 4), (258, 8, 12)):  # width, bits per sample
        for kind, letter in ((3, "H"), (4, "L")):
            entry = struct.pack(f"<HHI{letter}", tag, kind, 1, old)
            data = data.replace(entry, struct.pack(f"<HHI{letter}", tag, kind, 1, new))
    path.write_bytes(data)
    grey = pixels(load(path))[0, :, 0].tolist()
    assert grey == [0, 64, 128, 255]


def test_a_little_more_than_the_range_is_clipped_and_not_another_range(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1.02]], "f4")).save(tmp_path / "deep.tiff")
    assert pixels(load(tmp_path / "deep.tiff"))[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0, 2.0]], "f4")).save(tmp_path / "odd.tiff")
    with pytest.raises(ImageError, match="no usual range"):
        load(tmp_path / "odd.tiff")


@pytest.mark.parametrize(("kind", "top"), [("u1", 255), ("u2", 65535), ("f4", 1.0)])
def test_where_zero_is_white_black_stays_black(tmp_path, kind, top):
    path = tmp_path / "white.tiff"
    Image.fromarray((np.array([[0, 0.25, 1]]) * top).astype(kind)).save(path)
    data = bytearray(path.read_bytes())
    entry = struct.pack("<HHIH", 262, 3, 1, 1)
    assert data.count(entry) == 1
    path.write_bytes(data.replace(entry, struct.pack("<HHIH", 262, 3, 1, 0)))
    grey = pixels(load(path))[0, :, 0]
    assert np.abs(grey - [255, 191, 0]).max() <= 1


def test_a_transparent_grey_of_sixteen_bits_is_white(tmp_path):
    grey = Image.fromarray(np.array([[0, 30000]], "u2"))
    grey.save(tmp_path / "hole.png", transparency=0)
    assert pixels(load(tmp_path / "hole.png"))[0, :, 0].tolist() == [255, 117]


@pytest.mark.parametrize(
    ("kind", "stored", "top"),
    [("i1", "u1", 127), ("i2", "u2", 32767), ("u4", "i4", 2**32 - 1)],
)
def test_a_tiff_says_whether_its_integers_have_a_sign(tmp_path, kind, stored, top):
    """PIL does not ask, and would show these half as bright, or as negative."""
    path, has_sign = tmp_path / "deep.tiff", 2 if kind[0] == "i" else 1

    def save(*values):
        image = Image.fromarray(np.array([values]).astype(kind).view(stored))
        image.save(path, tiffinfo={339: has_sign})
        entries = (struct.pack("<HHIH", 339, 3, 1, n) for n in (2, has_sign))
        path.write_bytes(path.read_bytes().replace(*entries))

    save(0, top // 4, top // 2, top)
    for source in (path, Image.open(path)):
        assert np.abs(pixels(load(source))[0, :, 0] - [0, 64, 127, 255]).max() <= 2
    save(-1, top)
    if has_sign == 2:
        with pytest.raises(ImageError, match="negative"):
            load(path)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e20])
def test_a_range_that_is_none_is_refused(tmp_path, value):
    Image.fromarray(np.array([[0, value]], "f4")).save(tmp_path / "deep.tiff")
    with pytest.raises(ImageError, match=r"deep\.tiff: its? (has|values)"):
        load(tmp_path / "deep.tiff")


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, IndexError])
def test_every_error_of_a_decoder_is_an_image_error(tmp_path, monkeypatch, error):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def fail(self):
        raise error("odd data")

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"a\.png cannot be read"):
        load(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp", "txt"])
def test_a_damaged_or_missing_file_is_named(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    noise = rng.integers(1, torch.arange(64), 256, (64, 3)).to(torch.uint8)
    if suffix == "txt":
        path.write_text("not an image at all")
    else:
        Image.fromarray(noise.numpy()).save(path)
    for size in (path.stat().st_size // 2, 8, 0):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ImageError, match=rf"{path.name} (cannot be|is not an)"):
            load(path)
    with pytest.raises(FileNotFoundError, match=r"no image at .*nothing.png"):
        load(tmp_path / "nothing.png")


@pytest.mark.parametrize("limit", [1000, 2000])  # beyond, and far beyond, the limit
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, limit):
    Image.new("RGB", (50, 50)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=r"bomb.png has too many pixels"):
        load(tmp_path / "bomb.png")


def test_all_256_values_survive_the_round_trip():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values, values.T, 255 - values], axis=-1))
    x = to_tensor(image)
    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32
    assert x.min() == -1 and x.max() == 1
    assert np.array_equal(to_pil(x)[0], image)


def test_rows_channels_and_columns_are_where_they_belong():
    image = picture()
    x = to_tensor([image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert x.shape == (2, 3, 4, 6)
    assert x[0, 0, 0].tolist() == sorted(x[0, 0, 0].tolist())  # red grows rightward
    assert x[0, 1, :, 0].tolist() == sorted(x[0, 1, :, 0].tolist())  # green downward
    assert torch.equal(x[1], x[0].flip(-1))
    assert [i.size for i in to_pil(x)] == [(6, 4), (6, 4)]
    beyond = torch.tensor([-7.0, 7.0, 0.0])[:, None, None].expand(3, 2, 2)
    assert pixels(to_pil(beyond)[0])[0, 0].tolist() == [0, 255, 128], "clamped"


def test_what_is_no_batch_of_images_is_refused():
    with pytest.raises(ImageError, match="one size"):
        to_tensor([picture(6, 4), picture(4, 6)])
    with pytest.raises(ImageError, match="one size"):
        to_tensor([])
    with pytest.raises(ImageError, match="NaN"):
        to_pil(torch.full((1, 3, 2, 2), math.nan))
    with pytest.raises(ImageError, match="shape"):
        to_pil(torch.zeros(1, 4, 2, 2))


SIZES = [(512, 512), (480, 640), (100, 37), (4000, 3000), (513, 511), (7, 5)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resolution", "multiple"), [(512, 64), (512, 8), (128, 8)])
def test_fit_gives_the_released_codes_size(size, resolution, multiple):
    width, height = size
    factor = resolution / max(size)
    scaled = math.ceil(min(size) * factor / multiple - 1e-9) * multiple
    factor = scaled / min(size)
    expected = tuple(int(side * factor / multiple + 1e-9) * multiple for side in size)
    fitted = fit(Image.new("RGB", size), resolution, multiple)
    assert fitted.size == expected
    assert (fitted.width >= fitted.height) == (width >= height)


def test_a_square_stays_a_square_of_the_resolution():
    """In floats, some sides would lose one multiple."""
    sizes = {fit(Image.new("RGB", (n, n)), 512, 64).size for n in range(1, 700, 37)}
    assert sizes == {(512, 512)}


def test_fit_keeps_the_aspect_and_the_content():
    image = picture(300, 200)
    fitted = fit(image, 128)
    assert abs(fitted.width / fitted.height - 1.5) < 0.1
    reference = image.resize(fitted.size, Image.Resampling.LANCZOS)
    assert np.abs(pixels(fitted) - pixels(reference)).mean() < 4
    assert np.array_equal(fit(picture(128, 64), 128), picture(128, 64))


def test_a_thin_image_is_refused():
    assert fit(Image.new("RGB", (1600, 100)), 128).size == (128, 8)
    with pytest.raises(ImageError, match=r"1700 x 100 is too thin.*at most 16 : 1"):
        fit(Image.new("RGB", (1700, 100)), 128)
    with pytest.raises(ImageError, match="0 x 0 has no pixels"):
        fit(Image.new("RGB", (0, 0)), 128)
