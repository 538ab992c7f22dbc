"""Measure the miniature's networks on held-out scenes and held-out wordings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ip2p_lib.config import HELD_OUT
from ip2p_lib.device import pick_device
from ip2p_lib.diffusion.clip import ClipScorer, load_clip
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.editing.editor import Editor
from ip2p_lib.miniature.corpus import Corpus, build_corpus
from ip2p_lib.miniature.judge import calibration
from ip2p_lib.miniature.judge.model import Judge, load_judge
from ip2p_lib.miniature.judge.readings import ANSWERS, SLOTS, labels
from ip2p_lib.miniature.judge.scores import read_answers, score_edits
from ip2p_lib.miniature.parsing import read_caption
from ip2p_lib.miniature.render import render_codes
from ip2p_lib.rendering import generate_images
from ip2p_lib.results import bootstrap_interval
from jobs.miniature.saving import parts

VALIDATION = calibration.FIRST  # scenes from here on are for choosing settings
_EDITS = 128  # at once
_ORDER = re.compile("left|right|[左右]")
_STEPS, _CFG_SCALE = 25, 3.0  # of text to image


def held_out(n: int, first_seed: int = HELD_OUT) -> Corpus:
    """``n`` held-out edits, instructions in held-out phrasings."""
    return build_corpus(first_seed, n, wording="held-out")


@torch.no_grad()
def render(codes: Tensor, device: torch.device) -> Tensor:
    """Render codes in parts, (n, 3, 128, 128) in [-1, 1]."""
    return torch.cat([render_codes(part.to(device)) for part in codes.split(128)])


@torch.no_grad()
def retrieval(clip: ClipScorer, images: Tensor, captions: list[str]) -> float:
    """Share of images whose own caption is the nearest of all captions.

    Args:
        clip: embeds both.
        images: (n, 3, H, W) in [-1, 1].
        captions: n captions.
    """
    shown = torch.cat([clip.embed_images(part) for part in images.split(256)])
    parts = [captions[i : i + 256] for i in range(0, len(captions), 256)]
    texts = torch.cat([clip.embed_texts(part) for part in parts])
    nearest = (shown @ texts.T).argmax(1)
    own = torch.arange(len(nearest), device=nearest.device)
    return float((nearest == own).float().mean())


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor, batch: int = 64) -> Tensor:
    """Encode (mode) and decode: (n, 3, H, W) in [-1, 1] to the same."""
    decoded = [
        vae.decode(vae.encode(part).latent_dist.mode()).sample
        for part in images.split(batch)
    ]
    return torch.cat(decoded).clamp(-1, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean peak signal-to-noise ratio of images in [-1, 1], decibels."""
    error = ((a - b) / 2).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * error.log10()).mean())


def attributes_right(
    judge: Judge, images: Tensor, corpus: Corpus, reference: Tensor
) -> float:
    """Share of images in which all that the caption says is read rightly.

    The art set counts only where the caption names it, and the order of two objects
    where it names left or right. As in ``judge.scores``, an attribute counts only where
    the judge reads it in the ``reference``, the rendered scenes after the autoencoder.
    """
    right = labels(corpus.before.cpu())
    answers, readable = read_answers(judge, images), read_answers(judge, reference)
    artless = torch.tensor([read_caption(c).art is None for c in corpus.captions])
    unordered = torch.tensor([not _ORDER.search(c) for c in corpus.captions])

    def agree(slots: tuple[str, ...]) -> Tensor:
        """(n,) bool, if the objects on left and right are looked for in ``slots``."""
        agrees = torch.ones(len(images), dtype=torch.bool)
        for name in ANSWERS:
            slot, _, part = name.partition(".")
            seen = f"{slots[SLOTS.index(slot)]}.{part}" if part else name
            is_right = (answers[seen] == right[name]) | (readable[name] != right[name])
            agrees &= is_right | (artless if name == "art" else False)
        return agrees

    either = agree(SLOTS) | (agree(SLOTS[::-1]) & unordered)
    return float(either.float().mean())


def measure(stage: str, out: Path, n: int) -> dict[str, Any]:
    """Measure a saved network on ``n`` held-out scenes.

    Returns:
        ``vae``: ``psnr_db``. ``clip``: ``top1``, the share of renders whose caption is
        found first among ``n``. ``unet``: the same of generated images, and
        ``attributes_right``.
    """
    device, paths, corpus = pick_device(), parts(out), held_out(n)
    truth = render(corpus.before, device)
    if stage == "clip":
        clip = load_clip(paths["clip"], device=device, dtype=torch.float32)
        return {"top1": retrieval(clip, truth, corpus.captions), "samples": n}
    vae = AutoencoderKL.from_pretrained(paths["vae"]).to(device)
    decoded = reconstruct(vae, truth)
    if stage == "vae":
        return {"psnr_db": psnr(truth, decoded), "samples": n}
    return _measure_unet(out, corpus, decoded, device) | {"samples": n}


def _measure_unet(
    out: Path, corpus: Corpus, reference: Tensor, device: torch.device
) -> dict[str, Any]:
    clip = load_clip(parts(out)["clip"], device=device, dtype=torch.float32)
    judge = load_judge(out / "miniature-judge", device)
    sd = load_stable_diffusion(out / "miniature-sd", device=str(device))
    seeds = range(len(corpus.captions))
    batches = generate_images(
        sd, corpus.captions, seeds, steps=_STEPS, cfg_scale=_CFG_SCALE, batch_size=128
    )
    images = torch.cat(list(batches))
    return {
        "top1": retrieval(clip, images, corpus.captions),
        "attributes_right": attributes_right(judge, images, corpus, reference),
        "steps": _STEPS,
        "cfg_scale": _CFG_SCALE,
    }


@dataclass(frozen=True)
class HeldOutEdits:
    """``n`` held-out edits, rendered."""

    corpus: Corpus
    before: Tensor  # (n, 3, 128, 128) in [-1, 1]
    truth: Tensor
    reconstructed: Tensor  # the ground truth after the autoencoder

    @classmethod
    @torch.no_grad()
    def sample(
        cls, n: int, sd: StableDiffusion, first_seed: int = HELD_OUT
    ) -> HeldOutEdits:
        """Those from ``first_seed`` on; ``sd`` has the autoencoder."""
        corpus = held_out(n, first_seed)
        before, truth = (render(c, sd.device) for c in (corpus.before, corpus.after))
        decoded = reconstruct(sd.vae, truth.to(sd.dtype)).float()
        return cls(corpus, before, truth, decoded)

    def groups(self) -> dict[str, Tensor]:
        """(n,) bool of each group that has a row of its own in a result file."""
        types = self.corpus.edit_types
        named = {name: torch.tensor([t == name for t in types]) for name in types}
        texts = self.corpus.instructions
        chinese = torch.tensor([not text.isascii() for text in texts])
        two = self.corpus.before[:, 13] >= 0
        extra = {"Chinese": chinese, "English": ~chinese, "two objects": two}
        return {"all": torch.ones_like(two), **dict(sorted(named.items())), **extra}


def measure_editor(
    editor: Editor, judge: Judge, edits: HeldOutEdits, **options: Any
) -> list[dict[str, Any]]:
    """One row for all held-out edits with these options, and one for each group.

    Returns:
        ``group``, ``samples``, the options, and of every score its mean and
        ``<score>_interval``, 95 % by the bootstrap. ``l1`` is the mean distance of edit
        and ground truth, ``l1_input`` that of input and ground truth, in [0, 1].
    """
    batches = []
    for start in range(0, len(edits.before), _EDITS):
        before = edits.before[start : start + _EDITS]
        texts = edits.corpus.instructions[start : start + _EDITS]
        seeds = list(range(start, start + len(before)))
        batches.append(editor.edit_tensors(before, texts, seed=seeds, **options))
    after = torch.cat(batches)
    codes = edits.corpus.before, edits.corpus.after
    scores = score_edits(
        judge, after, edits.before, edits.truth, codes, edits.reconstructed
    )
    columns = scores.columns()
    columns["l1"] = _distance(after, edits.truth)
    columns["l1_input"] = _distance(edits.before, edits.truth)
    rows = []
    for group, mask in edits.groups().items():
        row = {"group": group, "samples": int(mask.sum()), **options}
        for name, column in columns.items():
            row |= _mean_and_interval(name, column[mask])
        rows.append(row)
    return rows


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute distance of each image, (n,) in [0, 1] on the CPU."""
    return ((a - b.to(a)).abs().mean((1, 2, 3)) / 2).float().cpu()


def _mean_and_interval(name: str, values: Tensor) -> dict[str, Any]:
    """Both without the NaN values; empty if there are no others."""
    if values.isnan().all():
        return {}
    interval = [round(bound, 4) for bound in bootstrap_interval(values)]
    return {name: round(float(values.nanmean()), 5), f"{name}_interval": interval}
