"""Builds the sprite atlas ``data/emoji/*.png`` from four emoji sets.

Run once by a maintainer; readers get the result with the repository::

    npm install @iconify-json/{noto,twemoji,fluent-emoji,fluent-emoji-flat}
    pip install resvg-py
    python -m jobs.miniature.build_sprites node_modules/@iconify-json

Each atlas is one row-major grid of 64 px RGBA sprites in the order of
``vocabulary.SPRITES``. The licences of the four sets stand in ``ATTRIBUTION.md``
beside the images.
"""

import io
import json
import sys
from pathlib import Path

from PIL import Image

from ip2p_lib.config import DATA
from ip2p_lib.miniature.render import COLUMNS, SIZE
from ip2p_lib.miniature.vocabulary import ART_SETS, SPRITES


def icon_svg(icons: dict, name: str) -> str:
    """One icon (or alias) of a parsed ``icons.json`` as an SVG document."""
    parent = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"][parent]
    box = [
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    view = " ".join(str(value) for value in box)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view}">{icon["body"]}</svg>'
    )


def rasterise(svg: str, size: int = SIZE) -> Image.Image:
    """Draw an SVG as a ``size`` x ``size`` RGBA image."""
    import resvg_py

    # Four times the size, then an area average: finer than resvg's own coverage.
    png = resvg_py.svg_to_bytes(svg_string=svg, width=4 * size, height=4 * size)
    large = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return large.resize((size, size), Image.Resampling.BOX)


def build(collection: Path, out: Path) -> None:
    """Write the atlas of one emoji set.

    Args:
        collection: folder of an ``@iconify-json`` package.
        out: the PNG to write.
    """
    icons = json.loads((collection / "icons.json").read_text("utf-8"))
    rows = -(-len(SPRITES) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIZE, rows * SIZE))
    for index, sprite in enumerate(SPRITES):
        row, column = divmod(index, COLUMNS)
        image = rasterise(icon_svg(icons, sprite))
        sheet.paste(image, (column * SIZE, row * SIZE))
    sheet.save(out, optimize=True)


def main() -> None:
    """Build all four atlases from the folder named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m jobs.miniature.build_sprites ICONIFY_FOLDER")
    (DATA / "emoji").mkdir(parents=True, exist_ok=True)
    for name in ART_SETS:
        build(Path(sys.argv[1]) / name, DATA / "emoji" / f"{name}.png")


if __name__ == "__main__":
    main()
