"""How long one edit takes on this machine, and that it is the stock pipeline's picture.

python -m benchmarks.editing.one_edit      writes data/results/editing-<device>.json

The stock pipeline of diffusers makes the same edit with the same weights, in turns with
ours. Both are given the same noise, and the difference of the pictures is a result too.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
)
from PIL.Image import Image

from ip2p_lib.config import RESULTS, preset
from ip2p_lib.editing.editor import Editor, load_editor
from ip2p_lib.images import to_pil
from ip2p_lib.miniature.render import render
from ip2p_lib.miniature.world import sample_scene
from ip2p_lib.results import write_results

INSTRUCTION, STEPS, RUNS = "make it night", 20, 7


def stock_pipeline(editor: Editor) -> StableDiffusionInstructPix2PixPipeline:
    """The same networks in diffusers' pipeline."""
    folder, parts = preset("miniature").backbone.path_or_id, editor.backbone
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=EulerAncestralDiscreteScheduler.from_pretrained(
            folder, subfolder="scheduler"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def edit_ours(editor: Editor, image: Image) -> tuple[float, Image]:
    """Seconds, and the edit by noise in the order in which the pipeline draws it."""
    generator = torch.Generator().manual_seed(5)

    def noise(step: int, seeds: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn((len(seeds), *shape), generator=generator).to(seeds.device)

    start = time.monotonic()
    edited = replace(editor, noise=noise).edit(image, INSTRUCTION, steps=STEPS)
    return time.monotonic() - start, edited


def edit_stock(pipeline: Any, editor: Editor, image: Image) -> tuple[float, Image]:
    """Seconds, and diffusers' edit."""
    settings, start = editor.settings, time.monotonic()
    edited = pipeline(
        INSTRUCTION,
        image,
        num_inference_steps=STEPS,
        guidance_scale=settings.text_scale,
        image_guidance_scale=settings.image_scale,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    return time.monotonic() - start, edited


def main() -> None:
    """Edit one held-out scene in turns; the first turn is a warm-up."""
    began, editor = time.monotonic(), load_editor("miniature")
    image, pipeline = to_pil(render([sample_scene(10**9)]))[0], stock_pipeline(editor)
    turns = [
        (edit_ours(editor, image), edit_stock(pipeline, editor, image))
        for _ in range(RUNS + 1)
    ]
    ours, theirs = zip(*turns[1:], strict=True)
    levels = [np.asarray(kind[0][1], float) for kind in (ours, theirs)]
    row = {
        "steps": STEPS,
        "seconds_median": round(statistics.median(s for s, _ in ours), 3),
        "seconds_worst": round(max(s for s, _ in ours), 3),
        "seconds_stock_pipeline": round(statistics.median(s for s, _ in theirs), 3),
        "mean_difference_of_255": round(float(np.abs(levels[0] - levels[1]).mean()), 4),
        "threads": torch.get_num_threads(),
    }
    path = RESULTS / f"editing-{editor.backbone.device.type}.json"
    seconds = round(time.monotonic() - began, 1)
    print(write_results(path, [row], seed=5, seconds=seconds), row)


if __name__ == "__main__":
    main()
