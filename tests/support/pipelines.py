"""diffusers' schedulers and pipelines, as Stable Diffusion 1.5 sets them."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
)

from tests.support.models import BETAS


def scheduler_of(sampler: str) -> Any:
    """The scheduler that one of our samplers equals."""
    options = {"steps_offset": 1, **BETAS}
    if sampler == "euler_ancestral":
        return EulerAncestralDiscreteScheduler(timestep_spacing="linspace", **options)
    if sampler == "dpm_solver_pp":
        return DPMSolverMultistepScheduler(**options)
    return DDIMScheduler(set_alpha_to_one=False, clip_sample=False, **options)


def stock_pipeline(backbone: Any, kind: type, sampler: str = "ddim") -> Any:
    """A pipeline of a class of diffusers, made of the parts of one of our models."""
    pipe = kind(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=scheduler_of(sampler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
