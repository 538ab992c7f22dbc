"""Two ways to generate a candidate with diffusers' pipeline, to compare with ours.

The released code forms the attention maps of both images and copies their scores;
attention processors that share queries and keys do the same without the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.rendering import Candidate, GeneratedPair
from ip2p_lib.rendering.render import latent_noise
from ip2p_lib.rendering.shared_attention import (
    SELF_ATTENTION,
    is_active,
    source_rows,
    use_attention_processor,
)


class MaterialisedMaps:
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
def materialise_maps(unet: Any) -> Iterator[MaterialisedMaps]:
    """Self-attention layers that form their maps, inside a ``with`` block."""
    maps = MaterialisedMaps()
    with use_attention_processor(unet, SELF_ATTENTION, maps):
        yield maps


def one_by_one(
    pipeline: Any,
    backbone: StableDiffusion,
    sharing: Any,
    steps: int,
    candidates: Sequence[Candidate],
) -> Iterator[list[GeneratedPair]]:
    """Candidates through diffusers' pipeline, two captions or four rows at once."""
    with sharing(backbone.unet) as state:
        for candidate in candidates:
            p = torch.tensor([candidate.p])
            rows = [source_rows(is_active(p, i, steps)) for i in range(steps)]
            rows = [row.to(backbone.device) for row in rows]
            state.source = rows[0]

            def next_step(
                _: Any, i: int, __: Any, tensors: dict, rows: Any = rows
            ) -> dict:
                state.source = rows[min(i + 1, steps - 1)]
                return tensors

            yield [_run_pipeline(pipeline, backbone, candidate, steps, next_step)]


def _run_pipeline(
    pipeline: Any,
    backbone: StableDiffusion,
    candidate: Candidate,
    steps: int,
    callback: Callable,
) -> GeneratedPair:
    noise, triplet = latent_noise(backbone, [candidate.seed], 2), candidate.triplet
    images = pipeline(
        [triplet.caption, triplet.edited_caption],
        latents=noise(-1).to(backbone.dtype),
        num_inference_steps=steps,
        guidance_scale=candidate.cfg_scale,
        output_type="pt",
        callback_on_step_end=callback,
    ).images
    return GeneratedPair(candidate, *(images.float() * 2 - 1))
