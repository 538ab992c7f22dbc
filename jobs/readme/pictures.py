"""The README's pictures: edits of the running example, and the autoencoder's grid.

``python -m jobs.readme.table --picture`` draws both.
"""

from __future__ import annotations

from pathlib import Path

from ip2p_lib.config import ROOT, preset

PICTURE = ROOT / "docs" / "edits.png"
GRID = ROOT / "docs" / "autoencoder.png"
INSTRUCTIONS = (
    "replace the sunflower with a rose",
    "make it night",
    "turn it into a snowy winter",
    "have the sunflower wear sunglasses",
    "turn it into a watercolour",
    "change the background to a beach",
)


def draw_edits(path: Path = PICTURE) -> Path:
    """Edit the running example by every instruction and write the picture."""
    from ip2p_lib.editing.editor import load_editor
    from ip2p_lib.images import to_pil
    from ip2p_lib.miniature.render import render
    from ip2p_lib.miniature.world import Scene, Thing
    from ip2p_lib.notebook.figures import show_pairs

    sunflower = Thing("sunflower", x=64, base=112, size=64)
    place, settings = ("meadow", "day", "clear", "photo"), preset("miniature")
    scene = Scene((sunflower,), *place, art="noto", variation=3)
    image = to_pil(render([scene]))[0]
    editor = load_editor(settings, "cpu")
    edits = editor.edit_batch([image] * len(INSTRUCTIONS), INSTRUCTIONS)
    figure = show_pairs([image] * len(edits), INSTRUCTIONS, edits)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


def draw_autoencoder(path: Path = GRID, n: int = 9) -> Path:
    """Held-out scenes as rendered, and after the autoencoder, in one grid."""
    from ip2p_lib.diffusion.stable_diffusion import load_backbone
    from ip2p_lib.images import to_pil
    from ip2p_lib.miniature.render import render_codes
    from ip2p_lib.notebook.figures import show_grid
    from jobs.miniature.measure import held_out, reconstruct

    vae = load_backbone(preset("miniature").backbone, device="cpu").vae
    truth = render_codes(held_out(2 * n).before)
    both = [to_pil(truth), to_pil(reconstruct(vae, truth))]
    rows = [pictures[half] for half in (slice(n), slice(n, None)) for pictures in both]
    figure = show_grid(rows, ["rendered", "decoded"] * 2)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path
