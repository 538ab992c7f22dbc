"""What the networks of the miniature are trained on: images, latents and text states.

The drawn world renders thousands of scenes a second, and everything that stays the same
in each step is computed once: images as bytes, latents and text states in half
precision.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from ip2p_lib.miniature.backdrop import RESOLUTION
from ip2p_lib.miniature.corpus import Corpus, build_corpus, grammar_triplets
from ip2p_lib.miniature.render import load_sprites, render_codes, split_codes
from ip2p_lib.triplets.record import Triplet

_Part = TypeVar("_Part")
_OBJECT_WEIGHT = 4  # of a spatial position with an object, in the U-Net's loss


def sample_parts(
    sample: Callable[[int, int], _Part], first_seed: int, n: int
) -> list[_Part]:
    """``sample(first_seed, n)`` in parts, on all cores: words take long to sample.

    The processes are spawned: forks of one that has threads may hang.
    """
    workers = min(os.cpu_count() or 1, 1 + n // 2000)
    if workers == 1:
        return [sample(first_seed, n)]
    bounds = [first_seed + n * i // workers for i in range(workers + 1)]
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(sample, bounds[:-1], sizes))


def sample_corpus(first_seed: int, n: int) -> Corpus:
    """``corpus.build_corpus`` on all cores."""
    before, after, *texts = zip(*sample_parts(build_corpus, first_seed, n), strict=True)
    lists = (list(itertools.chain.from_iterable(column)) for column in texts)
    return Corpus(torch.cat(before), torch.cat(after), *lists)


def sample_triplets(first_seed: int, n: int) -> list[Triplet]:
    """``corpus.grammar_triplets`` on all cores."""
    parts = sample_parts(grammar_triplets, first_seed, n)
    return list(itertools.chain.from_iterable(parts))


def to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] to 0 .. 255."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_unit(x: Tensor) -> Tensor:
    """0 .. 255 to [-1, 1]."""
    return x.float() / 127.5 - 1


@torch.no_grad()
def render_bytes(codes: Tensor, device: torch.device, batch: int = 512) -> Tensor:
    """Render codes once, (n, 3, 128, 128) uint8 on ``device``."""
    sprites = load_sprites().to(device)
    shape = (len(codes), 3, RESOLUTION, RESOLUTION)
    images = torch.empty(shape, dtype=torch.uint8, device=device)
    for start in range(0, len(codes), batch):
        part = codes[start : start + batch].to(device)
        images[start : start + batch] = to_bytes(render_codes(part, sprites))
    return images


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor, batch: int = 512) -> Tensor:
    """Mode of the latent of every image, scaled: (n, 4, 32, 32) half precision.

    Args:
        vae: the autoencoder, on the device of the images.
        images: (n, 3, 128, 128) uint8.
        batch: images encoded at once.
    """
    parts = []
    for rows in images.split(batch):
        with torch.autocast(rows.device.type, torch.bfloat16, rows.is_cuda):
            moments = vae.quant_conv(vae.encoder(to_unit(rows)))
        parts.append((moments[:, :4].float() * vae.config.scaling_factor).half())
    return torch.cat(parts)


def token_ids(tokenizer: CLIPTokenizer, texts: list[str], length: int) -> Tensor:
    """Token ids of many texts, (n, length) int16, padded; fast for millions."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    pad = tokenizer.pad_token_id
    encoded = (row.ids[:length] for row in backend.encode_batch(texts))
    rows = [ids + [pad] * (length - len(ids)) for ids in encoded]
    return torch.tensor(rows, dtype=torch.int16)


@torch.no_grad()
def encode_texts(
    clip: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str], device: torch.device
) -> Tensor:
    """Last hidden states of many texts, (n, 77, D) in half precision on ``device``."""
    encoder = clip.text_model.to(device).eval()
    states = []
    for ids in token_ids(tokenizer, texts, 77).split(512):
        with torch.autocast(device.type, torch.float16, device.type == "cuda"):
            state = encoder(input_ids=ids.to(device).long()).last_hidden_state
        states.append(state.half())
    return torch.cat(states)


def object_weights(codes: Tensor, side: int) -> Tensor:
    """Weight of each spatial position of a latent: more where objects stand.

    Args:
        codes: (n, 20) from ``render.encode``.
        side: of the latent.

    Returns:
        (n, side, side) uint8: ``_OBJECT_WEIGHT`` in the square of an object, else 1.
    """
    step = RESOLUTION // side
    centre = torch.arange(side, device=codes.device) * step + step // 2  # pixels
    inside = torch.zeros(len(codes), side, side, dtype=torch.bool, device=codes.device)
    for obj in split_codes(codes)[1:]:
        name, x, base, size = obj[:, :4, None].unbind(1)
        across = (centre - x).abs() <= size / 2
        down = (centre <= base) & (centre >= base - size)
        inside |= (name >= 0)[..., None] & down[:, :, None] & across[:, None, :]
    return 1 + (_OBJECT_WEIGHT - 1) * inside.to(torch.uint8)
