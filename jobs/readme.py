"""Draw the README's picture and fill in its table of results.

    python -m jobs.readme              the table, from data/results/*.json
    python -m jobs.readme --picture    also the picture, edited anew

No figure of the README is typed: the table stands between two markers and is written
from files that runs left. ``tests/test_readme.py`` holds the two together.
"""

from __future__ import annotations

import json
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

from ip2p_lib.config import RESULTS, ROOT, preset
from ip2p_lib.shards import write_bytes

README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "edits.png"
GRID = ROOT / "docs" / "autoencoder.png"
BEGIN, END = "<!-- results: written by jobs/readme.py -->", "<!-- end of results -->"
INSTRUCTIONS = (
    "replace the sunflower with a rose",
    "make it night",
    "turn it into a snowy winter",
    "make the sunflower blue",
    "turn it into a watercolour",
    "change the background to a beach",
)

_WORLD = {"world-cuda": ("5,000", ""), "world-cpu": ("50", ", one core")}


def read(name: str) -> dict[str, Any]:
    """A run's results by name, such as ``"miniature-vae"``."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


def _row(name: str, value: str, aim: str, claim: str) -> str:
    device = read(name)["device"].replace("80GB HBM3", "").strip()
    return f"| {claim} | {value} | {aim} | {device} |"


def _networks() -> list[str]:
    """Rows of the pretrained networks."""
    names = ("miniature-clip", "miniature-vae", "miniature-unet")
    clip, vae, unet = (read(name)["rows"][0] for name in names)
    values = (f"{clip['top1']:.1%}", f"{vae['psnr_db']:.1f} dB", f"{unet['top1']:.1%}")
    claims = (
        f"CLIP finds the caption of a held-out scene among {clip['samples']:,}",
        "Autoencoder on held-out scenes",
        f"CLIP finds the caption of a generated picture among {unet['samples']:,}",
    )
    rows = zip(names, values, ("97 %", "29 dB", "85 %"), claims, strict=True)
    return [*(_row(*row) for row in rows), _judge()]


def _judge() -> str:
    """What the judge reads in pictures that went through the autoencoder."""
    name = "miniature-judge"
    row = next(r for r in read(name)["rows"] if r["pictures"] == "reconstructed")
    claim = "Judge names the object, after the autoencoder"
    return _row(name, f"{row['name']:.1%}", "95 %", claim)


def _language() -> list[str]:
    """Rows of the language model as it ships: adapter, and attempts at a triplet."""
    name, attempts = "miniature-lm", preset("miniature").language_attempts
    rows = [row for row in read(name)["rows"] if row["attempts"] == attempts]
    row = max(rows, key=itemgetter("written"))
    asked = f"of {row['captions']:,} held-out captions"
    surest = f"the surest of {attempts} each"
    triplets = f"Replies that are triplets, {asked}, {surest}"
    right = "Replies that change one thing, and the one asked for"
    return [
        _row(name, f"{row['parsed']:.1%}", "97 %", triplets),
        _row(name, f"{row['right']:.1%}", "95 %", right),
    ]


def _edits() -> list[str]:
    """Rows of the editor."""
    name, chosen = "miniature-editor", preset("miniature").editing
    scales = {"text_scale": chosen.text_scale, "image_scale": chosen.image_scale}
    wanted = {"kind": "all", **scales}.items()
    row = next(row for row in read(name)["rows"] if wanted <= row.items())
    nearer, distance = f"{row['nearer_target']:.1%}", f"{row['l1_truth']:.3f}"
    below = f"below the input's, {row['l1_untouched']:.3f}"
    held_out = f"{row['samples']} held-out edits"
    made = read("miniature-training")
    pairs = f"{made['kept']:,} of {made['rendered']:,}"
    claim = "Pairs the editor trained on, of all rendered"
    return [
        _row("miniature-training", pairs, "20,000 kept", claim),
        _row(name, nearer, "85 %", f"Nearer to the target caption, {held_out}"),
        _row(name, distance, below, "Mean distance (L1) to the exact answer"),
    ]


def _world() -> list[str]:
    """Rows of the renderer on a GPU and on one core."""
    claim = "Scenes the world renders a second"
    speed = {n: read(n)["rows"][0]["pictures_per_second"] for n in _WORLD}
    return [
        _row(name, f"{speed[name]:,.0f}", aim, claim + on)
        for name, (aim, on) in _WORLD.items()
    ]


def _speed() -> list[str]:
    """Rows of what is fast beside diffusers, and of LoRA on a model of 1.5 billion."""
    ways = {row["way"]: row for row in read("rendering-miniature-cpu")["rows"]}
    steps = {row["way"]: row for row in read("training-miniature-cpu")["rows"]}
    full = next(r for r in read("training-sd15-cuda")["rows"] if r["way"] == "ours")
    epoch = read("language-lora")["rows"][0]
    peer = "as fast as diffusers'"
    return [
        _row(
            "rendering-miniature-cpu",
            f"{ways['trees']['times_the_pipeline']:.1f} x",
            "2 x",
            f"Candidates rendered as trees, {peer} pipeline",
        ),
        _row(
            "training-miniature-cpu",
            f"{steps['ours']['times_tuned']:.1f} x",
            "1.5 x",
            f"Training from stored latents, {peer} script tuned",
        ),
        _row(
            "training-sd15-cuda",
            f"{full['times_tuned']:.1f} x, {full['examples_per_second']:.0f} a second",
            "3 x, 450 a second",
            "The same at Stable Diffusion's size, 256 pixels, random weights",
        ),
        _row(
            "language-lora",
            f"{epoch['seconds_an_epoch']:.0f} s, {epoch['peak_gib']:.1f} GiB",
            "one GPU",
            f"LoRA of 1.5 B random weights, {epoch['triplets']} triplets once",
        ),
    ]


def _machine() -> list[str]:
    """Rows of what a reader waits for, on two cores without a GPU."""
    edit, clone = (read(n)["rows"][0] for n in ("editing-cpu", "fresh-clone"))
    return [
        _row(
            "editing-cpu",
            f"{edit['seconds_median']:.1f} s",
            "4 s",
            f"One edit of {edit['steps']} steps, {edit['threads']} threads",
        ),
        _row(
            "fresh-clone",
            f"{clone['minutes']:.0f} min, {clone['peak_gib']:.1f} GiB",
            "25 min, 6 GB",
            f"`make run` in a fresh clone, install included, {clone['cores']} cores",
        ),
    ]


def table() -> str:
    """The table of results, in Markdown."""
    head = ["| what is measured | result | aim | on |", "|---|---|---|---|"]
    parts = (_world, _networks, _language, _edits, _speed, _machine)
    return "\n".join([*head, *(row for part in parts for row in part())])


def fill(text: str) -> str:
    """The README's text with the table written anew between its markers.

    Raises:
        ValueError: the markers are not both there.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md needs the lines {BEGIN!r} and {END!r}.")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def draw(path: Path = PICTURE) -> Path:
    """Edit the running example by every instruction and write the picture."""
    from ip2p_lib.editing import load_editor
    from ip2p_lib.figures import show_pairs
    from ip2p_lib.images import to_pil
    from ip2p_lib.miniature.render import render
    from ip2p_lib.miniature.world import Scene, Thing

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
    from ip2p_lib.backbone import load_backbone
    from ip2p_lib.figures import show_grid
    from ip2p_lib.images import to_pil
    from ip2p_lib.miniature.quality import held_out, reconstruct
    from ip2p_lib.miniature.render import render_codes

    vae = load_backbone(preset("miniature").backbone, device="cpu").vae
    truth = render_codes(held_out(2 * n).before)
    both = [to_pil(truth), to_pil(reconstruct(vae, truth))]
    rows = [pictures[half] for half in (slice(n), slice(n, None)) for pictures in both]
    figure = show_grid(rows, ["rendered", "decoded"] * 2)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


def main() -> None:
    """Write the README's table, and its pictures if asked to."""
    if "--picture" in sys.argv[1:]:
        draw()
        draw_autoencoder()
    write_bytes(README, fill(README.read_text("utf-8")).encode())


if __name__ == "__main__":
    main()
