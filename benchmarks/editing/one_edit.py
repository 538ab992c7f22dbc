"""How long one edit takes on this machine, and that it equals the stock pipeline's.

python -m benchmarks.editing.one_edit      writes data/results/editing-<device>.json

The stock pipeline of diffusers makes the same edit with the same weights, in turns with
ours. Both get the same noise, and the difference of the images is a result too.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL.Image import Image

from ip2p_lib.config import RESULTS
from ip2p_lib.editing.editor import Editor, load_editor
from ip2p_lib.images import to_pil
from ip2p_lib.miniature.render import render
from ip2p_lib.miniature.world import sample_scene
from ip2p_lib.results import ReadmeRow, write_results
from tests.support.pipelines import stock_pipeline

INSTRUCTION, RUNS = "make it night", 7


def edit_ours(editor: Editor, image: Image) -> tuple[float, Image]:
    """Seconds, and the edit by noise in the order in which the pipeline draws it."""
    generator = torch.Generator().manual_seed(5)

    def noise(step: int, seeds: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn((len(seeds), *shape), generator=generator).to(seeds.device)

    start = time.monotonic()
    edited = replace(editor, noise=noise).edit(image, INSTRUCTION)
    return time.monotonic() - start, edited


def edit_stock(pipeline: Any, editor: Editor, image: Image) -> tuple[float, Image]:
    """Seconds, and diffusers' edit."""
    settings, start = editor.settings, time.monotonic()
    edited = pipeline(
        INSTRUCTION,
        image,
        num_inference_steps=settings.steps,
        guidance_scale=settings.text_scale,
        image_guidance_scale=settings.image_scale,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    return time.monotonic() - start, edited


def main() -> None:
    """Edit one held-out scene in turns; the first turn is a warm-up."""
    began, editor = time.monotonic(), load_editor("miniature")
    (image,) = to_pil(render([sample_scene(10**9)]))
    kind = StableDiffusionInstructPix2PixPipeline
    pipeline = stock_pipeline(editor.backbone, kind, "euler_ancestral")
    turns = [
        (edit_ours(editor, image), edit_stock(pipeline, editor, image))
        for _ in range(RUNS + 1)
    ]
    ours, theirs = zip(*turns[1:], strict=True)
    levels = [np.asarray(edits[0][1], float) for edits in (ours, theirs)]
    row = {
        "steps": editor.settings.steps,
        "seconds_median": round(statistics.median(s for s, _ in ours), 3),
        "seconds_worst": round(max(s for s, _ in ours), 3),
        "seconds_stock_pipeline": round(statistics.median(s for s, _ in theirs), 3),
        "mean_difference_of_255": round(float(np.abs(levels[0] - levels[1]).mean()), 4),
        "threads": torch.get_num_threads(),
    }
    device = editor.backbone.device.type
    claim = f"One edit of {row['steps']} steps on {row['threads']} CPU cores"
    median = f"{row['seconds_median']:.1f} s"
    readme = [ReadmeRow(claim, median, "1.5 s", RUNS)] if device == "cpu" else []
    path, seconds = RESULTS / f"editing-{device}.json", time.monotonic() - began
    write_results(path, [row], seed=5, seconds=round(seconds, 1), readme=readme)
    print(path, row)


if __name__ == "__main__":
    main()
