"""Do different releases of diffusers and transformers read the shipped files alike?

    python -m benchmarks.releases generate OUT.safetensors   in each environment
    python -m benchmarks.releases compare A B ...            writes the result

Every environment generates one image by the stock pipeline and edits it, from the same
noise; ``compare`` writes the largest difference of any pixel to the first file
into ``data/results/releases.json``. Before transformers 5 the stock pipeline reads
Chinese as it should only where ftfy is installed; the library does without.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ip2p_lib.config import MODELS, RESULTS
from ip2p_lib.results import ReadmeRow, write_results
from ip2p_lib.rng import key, normal

PACKAGES = ("diffusers", "transformers", "tokenizers", "huggingface_hub", "torch")


def generate() -> dict[str, torch.Tensor]:
    """Generate an image of a caption and an edit of it, (1, 3, 128, 128) in [0, 1]."""
    from diffusers import (
        DDIMScheduler,
        StableDiffusionInstructPix2PixPipeline,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    folder = MODELS / "miniature-sd"
    safe = {"safety_checker": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline.from_pretrained(folder, **safe)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    noise = normal(key("releases"), torch.zeros(1, dtype=torch.int64), (4, 32, 32))
    common = {"num_inference_steps": 10, "output_type": "pt", "latents": noise}
    image = pipe("a sunflower in a meadow, 草地上的猫", **common).images
    unet = UNet2DConditionModel.from_pretrained(MODELS / "miniature-ip2p" / "unet")
    editor = StableDiffusionInstructPix2PixPipeline(
        **{**pipe.components, "unet": unet}, requires_safety_checker=False
    )
    editor.set_progress_bar_config(disable=True)
    edited = editor("make it night", image=2 * image - 1, **common).images
    return {"image": image, "edited": edited}


def compare(paths: list[Path]) -> None:
    """Compare every file with the first and write the result."""
    start, rows = time.monotonic(), []
    first = load_file(paths[0])
    for path in paths:
        with safe_open(path, "pt") as file:
            releases = json.loads(file.metadata()["releases"])
        other = load_file(path)
        gaps = {k: float((first[k] - other[k]).abs().max()) for k in sorted(first)}
        rows.append({"releases": releases, "largest_difference": gaps})
        print(releases, gaps)
    worst = max(gap for row in rows for gap in row["largest_difference"].values())
    claim = (
        f"Largest pixel difference between {len(rows)} releases of diffusers and "
        "transformers"
    )
    readme = [ReadmeRow(claim, f"{worst:.1f}", "0", samples=None)]
    seconds = round(time.monotonic() - start, 1)
    path = RESULTS / "releases.json"
    write_results(path, rows, seed=0, seconds=seconds, readme=readme)


def main() -> None:
    """Run the part named on the command line."""
    part, *names = sys.argv[1:]
    if part == "compare":
        compare([Path(name) for name in names])
    else:
        images = {name: x.contiguous() for name, x in generate().items()}
        releases = {name: version(name) for name in PACKAGES}
        save_file(images, names[0], metadata={"releases": json.dumps(releases)})


if __name__ == "__main__":
    main()
