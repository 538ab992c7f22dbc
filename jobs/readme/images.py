"""Make the images of the README and the cards: edits, failures, the autoencoder.

``python -m jobs.readme.table --images`` makes them anew from the shipped weights.
"""

from __future__ import annotations

from ip2p_lib.config import ROOT, preset

EDITS = ROOT / "docs" / "edits.png"
FAILURES = ROOT / "docs" / "failures.png"
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
    """Make all images."""
    draw_edits()
    draw_failures()
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


def draw_failures(n: int = 6) -> None:
    """Show the first ``n`` held-out edits that the judge rejects: none is picked."""
    from ip2p_lib.editing.editor import load_editor
    from ip2p_lib.miniature.judge import load_judge
    from ip2p_lib.miniature.judge.scores import score_edits
    from ip2p_lib.notebook.figures import show_grid
    from jobs.miniature.measure import HeldOutEdits

    editor = load_editor("miniature", "cpu")
    held_out = HeldOutEdits.sample(8 * n, editor.backbone)
    texts = held_out.corpus.instructions
    edited = editor.edit_tensors(held_out.before, texts, seed=[*range(len(texts))])
    images = edited, held_out.before, held_out.truth
    codes = held_out.corpus.before, held_out.corpus.after
    scores = score_edits(load_judge(), *images, codes, held_out.reconstructed)
    failed = (~scores.both).nonzero()[:n, 0]
    lost = ["not done" if not scores.done[i] else "not kept" for i in failed]
    labels = [f"{texts[i]}\n({why})" for i, why in zip(failed, lost, strict=True)]
    rows = [x[failed] for x in (held_out.before, edited, held_out.truth)]
    figure = show_grid(rows, ["input", "edit", "ground truth"], labels)
    figure.savefig(FAILURES, dpi=110, bbox_inches="tight")


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
