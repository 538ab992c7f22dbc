"""diffusers' own pipelines, made of the parts of one of our models."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler


def stock_pipeline(backbone, kind: type, scheduler: type = DDIMScheduler) -> Any:
    """A pipeline of a class of diffusers, with its scheduler as SD 1.5 sets it."""
    ddim = {"set_alpha_to_one": False, "clip_sample": False}
    pipe = kind(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=scheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            **(ddim if scheduler is DDIMScheduler else {}),
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
