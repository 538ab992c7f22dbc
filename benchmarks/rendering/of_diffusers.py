"""Two ways to render a candidate with diffusers' pipeline, timed beside the library's.

The released code forms the attention maps of both pictures and copies their scores;
attention processors that share queries and keys do the same without the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor

from ip2p_lib import rng
from ip2p_lib.diffusion.stable_diffusion import Backbone
from ip2p_lib.rendering.render import Candidate, RenderedPair, noise_key
from ip2p_lib.rendering.shared_attention import (
    SELF_ATTENTION,
    installed,
    is_active,
    source_rows,
)


class FormedMaps:
    """Self-attention as the released code shares it: the scores, copied."""

    source: Tensor | None = None

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """(rows, tokens, C) to the same shape."""
        q, k, v = (
            attn.head_to_batch_dim(to(hidden_states))
            for to in (attn.to_q, attn.to_k, attn.to_v)
        )
        scores = (q @ k.transpose(1, 2) * attn.scale).unflatten(0, (-1, attn.heads))
        if self.source is not None:
            scores = scores[self.source]
        out = attn.batch_to_head_dim(scores.softmax(-1).flatten(0, 1) @ v)
        return attn.to_out[1](attn.to_out[0](out))


@contextmanager
def formed_maps(unet: Any) -> Iterator[FormedMaps]:
    """Self-attention layers that form their maps, inside a ``with`` block."""
    maps = FormedMaps()
    with installed(unet, SELF_ATTENTION, maps):
        yield maps


def one_by_one(
    pipeline: Any, backbone: Backbone, sharer: Any, steps: int, candidates: Sequence
) -> Iterator[list[RenderedPair]]:
    """Candidates through diffusers' pipeline, two captions or four rows at once."""
    with sharer(backbone.unet) as state:
        for candidate in candidates:
            p = torch.tensor([candidate.p])
            rows = [source_rows(is_active(p, i, steps)) for i in range(steps)]
            rows = [row.to(backbone.device) for row in rows]
            state.source = rows[0]

            def share(_: Any, i: int, __: Any, given: dict, rows=rows) -> dict:
                state.source = rows[min(i + 1, steps - 1)]  # of the step that follows
                return given

            yield [_through(pipeline, backbone, candidate, steps, share)]


def _through(
    pipeline: Any, backbone: Backbone, candidate: Candidate, steps: int, share: Callable
) -> RenderedPair:
    ids = torch.tensor([candidate.seed])
    noise = rng.normal(noise_key(-1), ids, backbone.latent_shape)
    triplet = candidate.triplet
    images = pipeline(
        [triplet.caption, triplet.edited_caption],
        latents=noise.repeat(2, 1, 1, 1).to(backbone.device, backbone.dtype),
        num_inference_steps=steps,
        guidance_scale=candidate.cfg_scale,
        output_type="pt",
        callback_on_step_end=share,
    ).images
    return RenderedPair(candidate, *(images.float() * 2 - 1))


def stock_pipeline(backbone: Backbone) -> Any:
    """The networks in diffusers' text-to-image pipeline."""
    pipeline = StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
