"""Make the README's two images: edits of one scene, and the autoencoder's output.

``python -m jobs.readme.table --images`` makes both anew from the shipped weights.
"""

from __future__ import annotations

from ip2p_lib.config import ROOT, preset

EDITS = ROOT / "docs" / "edits.png"
AUTOENCODER = ROOT / "docs" / "autoencoder.png"
# Written down, with the scene and the seed 0, before any of them was drawn.
INSTRUCTIONS = (
    "replace the sunflower with a rose",
    "make it night",
    "让它下雨",
    "have the sunflower wear sunglasses",
    "把背景换成海滩",
    "turn it into a watercolour",
)


def draw_images() -> None:
    """Make both images."""
    draw_edits()
    draw_autoencoder()


def draw_edits() -> None:
    """Edit one scene by six instructions; the input comes first."""
    from PIL import Image

    from ip2p_lib.editing.editor import load_editor
    from ip2p_lib.images import to_pil
    from ip2p_lib.miniature.render import render
    from ip2p_lib.miniature.world import Scene, SceneObject
    from ip2p_lib.notebook.figures import film_strip, to_image

    sunflower = SceneObject("sunflower", x=64, base=112, size=64)
    place = ("meadow", "day", "clear", "photo")
    scene = Scene((sunflower,), *place, art="noto", variation=3)
    (image,) = to_pil(render([scene]))
    editor = load_editor("miniature", "cpu")
    edits = editor.edit_batch([image] * len(INSTRUCTIONS), INSTRUCTIONS)
    shown, labels = [image, *edits], ["input", *INSTRUCTIONS]
    rows = [to_image(film_strip(shown[i : i + 4], labels[i : i + 4])) for i in (0, 4)]
    height = sum(row.height for row in rows) + 8
    sheet = Image.new("RGB", (max(row.width for row in rows), height), "white")
    sheet.paste(rows[0], (0, 0))
    sheet.paste(rows[1], (0, rows[0].height + 8))
    sheet.save(EDITS, optimize=True)


def draw_autoencoder(n: int = 9) -> None:
    """Show held-out scenes as rendered, and after the autoencoder, in one grid."""
    from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion
    from ip2p_lib.images import to_pil
    from ip2p_lib.miniature.render import render_codes
    from ip2p_lib.notebook.figures import show_grid
    from jobs.miniature.measure import held_out, reconstruct

    vae = load_stable_diffusion(preset("miniature").backbone, device="cpu").vae
    scenes = render_codes(held_out(2 * n).before)
    both = [to_pil(scenes), to_pil(reconstruct(vae, scenes))]
    rows = [images[half] for half in (slice(n), slice(n, None)) for images in both]
    figure = show_grid(rows, ["rendered", "decoded"] * 2)
    figure.savefig(AUTOENCODER, dpi=110, bbox_inches="tight")
