"""Draw the README's picture and fill in its table of results.

    python -m jobs.readme.table              the table, from data/results/*.json
    python -m jobs.readme.table --picture    also the picture, edited anew

No figure of the README is typed: the table stands between two markers and is written
from files that runs left. ``tests/test_readme.py`` holds the two together.
"""

from __future__ import annotations

import json
import sys
from operator import itemgetter
from typing import Any

from ip2p_lib.config import RESULTS, ROOT, preset
from ip2p_lib.files import write_bytes
from jobs.readme.pictures import draw_autoencoder, draw_edits

README = ROOT / "README.md"
BEGIN, END = (
    "<!-- results: written by jobs/readme/table.py -->",
    "<!-- end of results -->",
)
_SIZES = "tree-sizes-miniature-cuda"
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


def _way(name: str, way: str) -> dict[str, Any]:
    """What a benchmark found of one way to do its work."""
    found: dict[str, Any] = next(r for r in read(name)["rows"] if r["way"] == way)
    return found


def _kept_an_hour(tree: int) -> float:
    """Pairs that are kept in trees of a size, beside single ones the released way."""
    ahead: float = _way("rendering-sd15-cuda", f"trees of {tree}")["times_released"]
    kept = {row["of_each_tree"]: row["kept"] for row in read(_SIZES)["rows"]}
    return ahead * kept[tree] / kept[1]


def _rendering() -> list[str]:
    """Rows of what is rendered, beside diffusers and the released code's way."""
    small, large, filtered = (
        _way(f"rendering-{size}", way)
        for size, way in (
            ("miniature-cpu", "trees"),
            ("sd15-cuda", "trees"),
            ("miniature-cuda", "filtered"),
        )
    )
    each = 1 / large["candidates_per_second"]
    return [
        _row(
            "rendering-miniature-cpu",
            f"{small['times_the_pipeline']:.1f} x",
            "2 x",
            "Candidates rendered as trees, as fast as diffusers' pipeline",
        ),
        _row(
            "rendering-sd15-cuda",
            f"{large['times_released']:.1f} x, {each:.2f} s each",
            "8 x, 0.55 s",
            f"At Stable Diffusion's size, 512 pixels, {large['steps']} steps, random "
            "weights, in trees of 4, as fast as the released code's way",
        ),
        _row(
            _SIZES,
            f"{_kept_an_hour(16):.1f} x",
            "15 x",
            "The same in trees of 16, of pairs that the miniature's filter keeps",
        ),
        _row(
            "rendering-miniature-cuda",
            f"{filtered['candidates_per_second']:,.0f}",
            "1,000",
            "The miniature's candidates rendered and filtered a second, "
            f"{filtered['steps']} steps",
        ),
    ]


def _training() -> list[str]:
    """Rows of training: beside diffusers' script, and on a card of 15 GiB."""
    names = [f"training-{n}" for n in ("miniature-cpu", "miniature-cuda", "sd15-cuda")]
    cpu, gpu, full = (_way(name, "ours") for name in names)
    epoch = read("language-lora")["rows"][0]
    gaps = [abs(row["error_percent"]) for row in read("memory-cuda")["rows"]]
    claims = (
        "Training from stored latents, as fast as diffusers' script tuned",
        "The miniature trained from stored latents, examples a second",
        "At Stable Diffusion's size, 256 pixels, random weights",
        "Its peak memory by LoRA or 8-bit AdamW in 15 GiB, as foretold",
        f"LoRA of 1.5 B random weights, {epoch['triplets']} triplets once",
    )
    values = (
        f"{cpu['times_tuned']:.1f} x",
        f"{gpu['examples_per_second']:,.0f}",
        f"{full['times_tuned']:.1f} x, {full['examples_per_second']:.0f} a second",
        f"within {max(gaps):.1f}%",
        f"{epoch['seconds_an_epoch']:.0f} s, {epoch['peak_gib']:.1f} GiB",
    )
    aims = ("1.5 x", "20,000", "3 x, 450 a second", "10 %", "one GPU")
    files = [*names, "memory-cuda", "language-lora"]
    return [_row(*row) for row in zip(files, values, aims, claims, strict=True)]


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
    parts = (
        _world,
        _networks,
        _language,
        _edits,
        _rendering,
        _training,
        _machine,
    )
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


def main() -> None:
    """Write the README's table, and its pictures if asked to."""
    if "--picture" in sys.argv[1:]:
        draw_edits()
        draw_autoencoder()
    write_bytes(README, fill(README.read_text("utf-8")).encode())


if __name__ == "__main__":
    main()
