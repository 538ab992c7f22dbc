"""How many candidates a second are rendered, beside two other ways to do the same.

python benchmarks/rendering.py                  the miniature, on this machine
python benchmarks/rendering.py --size sd15      SD 1.5's size, random weights, on a GPU

Four ways, each given the same candidates, in turns:

- released    as the released code: one candidate in four rows, attention maps formed
- pipeline    diffusers' pipeline in a loop, with attention processors that share
- batched     ``rendering.render``
- trees       ``slots.render_in_slots``; candidates of a seed differ in p alone

Before anything is timed, each way's pictures are compared with those of the pipeline.
Writes data/results/rendering-<size>-<device>.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ip2p_lib import draws
from ip2p_lib.backbone import Backbone, load_backbone
from ip2p_lib.config import HELD_OUT, RESULTS, Rendering, preset
from ip2p_lib.diffusion import Schedule
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.prompt_to_prompt import is_active, sharing, source_rows
from ip2p_lib.rendering import Candidate, RenderedPair, render
from ip2p_lib.results import write_results
from ip2p_lib.slots import render_in_slots
from ip2p_lib.trees import draw_trees, noise_key

SAMPLER, THRESHOLDS = "dpm_solver_pp", 4


def full_size(tokenizer: Any, device: str) -> Backbone:
    """Networks of SD 1.5's size with random weights, and the miniature's tokenizer."""
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=512,
    )
    config = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    parts = (CLIPTextModel(config), vae, unet)
    half = torch.bfloat16 if device == "cuda" else torch.float32
    text, vae, unet = (part.to(device, half).eval() for part in parts)
    unet.to(memory_format=torch.channels_last)
    return Backbone(tokenizer, text, vae, unet, Schedule.scaled_linear())


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
    old, maps = dict(unet.attn_processors), FormedMaps()
    unet.set_attn_processor({n: maps if "attn1" in n else p for n, p in old.items()})
    try:
        yield maps
    finally:
        unet.set_attn_processor(old)


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
    noise = draws.normal(noise_key(-1), ids, backbone.latent_shape)
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


def timed(way: Callable, candidates: list[Candidate]) -> tuple[float, list]:
    """Seconds, and the pairs in the order of the candidates."""
    start = time.monotonic()
    pairs = [pair for batch in way(candidates) for pair in batch]
    _ = float(pairs[-1].after.sum())  # waits for a GPU
    seconds = time.monotonic() - start
    place = {id(candidate): i for i, candidate in enumerate(candidates)}
    return seconds, sorted(pairs, key=lambda pair: place[id(pair.candidate)])


def difference(pairs: Sequence[RenderedPair], others: Sequence[RenderedPair]) -> float:
    """Mean absolute difference of pictures, in levels of 255."""
    gaps = [
        (getattr(a, n) - getattr(b, n)).abs().mean() * 127.5
        for a, b in zip(pairs, others, strict=True)
        for n in ("before", "after")
    ]
    return float(torch.stack(gaps).mean())


def ways(backbone: Backbone, steps: int, batch: int) -> dict[str, Callable]:
    """The four ways, by name."""
    loop = partial(one_by_one, stock_pipeline(backbone), backbone)
    options = {"steps": steps, "sampler": SAMPLER}
    return {
        "released": partial(loop, formed_maps, steps),
        "pipeline": partial(loop, sharing, steps),
        "batched": partial(render, backbone, batch_size=batch, **options),
        "trees": partial(render_in_slots, backbone, slots=2 * batch, **options),
    }


def main() -> None:
    """Compare, then time in turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=["miniature", "sd15"], default="miniature")
    parser.add_argument("--seeds", type=int, default=8, help="of four candidates each")
    parser.add_argument("--batch", type=int, default=8, help="candidates at once")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    began, settings = time.monotonic(), preset("miniature").rendering
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = load_backbone(preset("miniature").backbone, device=device)
    if args.size == "sd15":
        settings, backbone = Rendering(), full_size(backbone.tokenizer, device)
    triplets = [t for t in grammar_triplets(HELD_OUT, 32) if t.language == "en"]
    each = max(args.seeds // 8, 1)
    candidates = draw_trees(
        triplets[: args.seeds // each], each, THRESHOLDS, 0, settings
    )
    chosen = ways(backbone, args.steps, args.batch)
    if device == "cuda":
        backbone.unet.compile(dynamic=False)
    first = {name: timed(way, candidates)[1] for name, way in chosen.items()}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(args.turns):
        for name, way in chosen.items():
            seconds[name].append(timed(way, candidates)[0])
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    rows = [
        {
            "way": name,
            "candidates": len(candidates),
            "candidates_per_second": round(len(candidates) / median, 3),
            "times_the_pipeline": round(medians["pipeline"] / median, 2),
            "difference_of_255": round(difference(first[name], first["pipeline"]), 4),
            "steps": args.steps,
            "batch": args.batch,
            "threads": torch.get_num_threads(),
        }
        for name, median in medians.items()
    ]
    path = RESULTS / f"rendering-{args.size}-{device}.json"
    taken = round(time.monotonic() - began, 1)
    print(write_results(path, rows, seed=0, seconds=taken, device=device))
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
