"""Measures the miniature's networks on held-out scenes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ip2p_lib.config import HELD_OUT
from ip2p_lib.device import pick_device
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.miniature.corpus import Corpus, build_corpus
from ip2p_lib.miniature.render import render_codes
from jobs.miniature.saving import parts

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from ip2p_lib.diffusion.clip import ClipScorer


def held_out(n: int) -> Corpus:
    """The first ``n`` held-out edits, instructions in held-out phrasings."""
    return build_corpus(HELD_OUT, n, wording="held-out")


@torch.no_grad()
def retrieval(clip: ClipScorer, images: Tensor, captions: list[str]) -> float:
    """Share of pictures whose own caption is the nearest of all captions.

    Args:
        clip: the judge.
        images: (n, 3, H, W) in [-1, 1].
        captions: n captions.
    """
    seen = torch.cat([clip.embed_images(part) for part in images.split(256)])
    read = torch.cat(
        [clip.embed_texts(captions[i : i + 256]) for i in range(0, len(captions), 256)]
    )
    nearest = (seen @ read.T).argmax(1)
    own = torch.arange(len(nearest), device=nearest.device)
    return float((nearest == own).float().mean())


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor, batch: int = 64) -> Tensor:
    """Encode (mode) and decode: (n, 3, H, W) in [-1, 1] to the same."""
    seen = [
        vae.decode(vae.encode(part).latent_dist.mode()).sample
        for part in images.split(batch)
    ]
    return torch.cat(seen).clamp(-1, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean peak signal-to-noise ratio of pictures in [-1, 1], decibels."""
    error = ((a - b) / 2).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * error.log10()).mean())


def measure(stage: str, out: Path, n: int) -> dict[str, Any]:
    """Measure a saved stage on ``n`` held-out scenes.

    Returns:
        ``clip``: share of renders whose caption is found first among ``n``; ``vae``
        and ``decoder``: decibels; ``unet``: share of captions whose picture CLIP finds
        first.
    """
    from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion
    from ip2p_lib.rendering.render import generate_images

    device, paths = pick_device(), parts(out)
    corpus = held_out(n)
    truth = torch.cat([render_codes(c.to(device)) for c in corpus.before.split(128)])
    if stage in ("vae", "decoder"):
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(paths["vae"]).to(device)
        seen = reconstruct(vae, truth)
        return {"psnr_db": psnr(truth, seen), "samples": n}
    clip = load_clip(paths["clip"], device=device, dtype=torch.float32)
    if stage == "clip":
        return {"top1": retrieval(clip, truth, corpus.captions), "samples": n}
    backbone = load_stable_diffusion(out / "miniature-sd", device=str(device))
    steps, cfg_scale = 25, 3.0
    made = generate_images(
        backbone,
        corpus.captions,
        range(n),
        steps=steps,
        cfg_scale=cfg_scale,
        batch_size=128,
    )
    share = retrieval(clip, torch.cat(list(made)), corpus.captions)
    return {"top1": share, "samples": n, "steps": steps, "cfg_scale": cfg_scale}
