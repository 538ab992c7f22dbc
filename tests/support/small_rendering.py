"""Tiny networks for exact comparisons, candidates for them, and sampling by hand."""

import torch

from ip2p_lib import rng
from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion
from ip2p_lib.rendering import Candidate
from ip2p_lib.triplets.record import Triplet

CAT = Triplet("a photo of the cat", "make it a dog", "a photo of the dog")
HOUSE = Triplet("house by the river", "add a horse", "horse at a house by the river")
CANDIDATES = [
    Candidate(CAT, seed=11, p=0.9, cfg_scale=7.5),
    Candidate(HOUSE, seed=2**47 + 1, p=0.3, cfg_scale=15.0),
    Candidate(CAT, seed=3, p=0.0, cfg_scale=2.0),
]


def exact_stable_diffusion(folder):
    """In float64, and with attention that matters, as it does in a trained model."""
    backbone = load_stable_diffusion(folder, device="cpu", dtype=torch.float64)
    for name, weight in backbone.unet.named_parameters():
        if "attn" in name:
            weight.data *= 3
    return backbone


def unet_inputs(rows, size=(8, 8)):
    """x, t and text of a batch."""
    ids = torch.arange(rows)
    x = rng.normal(rng.key("unet", "x"), ids, (4, *size)).double()
    text = rng.normal(rng.key("unet", "text"), ids, (77, 16)).double()
    return x, torch.tensor(500), text


@torch.no_grad()
def predict(unet, rows, size=(8, 8)):
    return unet(*unet_inputs(rows, size)).sample


def noise_of(candidate, step, size=8):
    key = rng.key("rendering", "noise", step)
    return rng.normal(key, torch.tensor([candidate.seed]), (4, size, size)).double()


@torch.no_grad()
def generate_by_hand(backbone, candidate, scheduler, unet, layers, blend=None):
    """One candidate in four rows, by diffusers' scheduler, as the released code does.

    ``layers`` are (attention layers, fraction of steps in which they are active).
    """
    triplet, size = candidate.triplet, unet.config.sample_size
    text = backbone.encode_text(["", "", triplet.caption, triplet.edited_caption])
    x = noise_of(candidate, -1, size).repeat(2, 1, 1, 1) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        for layer, fraction in layers:
            layer.active = [fraction > i / (len(scheduler.timesteps) - 1)]
        rows = scheduler.scale_model_input(x, t).repeat(2, 1, 1, 1)
        uncond, cond = unet(rows, t, text).sample.chunk(2)
        eps = uncond + candidate.cfg_scale * (cond - uncond)
        x = scheduler.step(eps, t, x).prev_sample
        if blend:
            x[1] = blend(*x)
    return backbone.decode(x)


def flat(batches):
    return [pair for batch in batches for pair in batch]


def gap(a, b):
    return (a - b).abs().max().item()


def pair_gap(pairs, others):
    """The largest difference of both images over two lists of pairs."""
    both = list(zip(pairs, others, strict=True))
    return max(
        gap(getattr(a, n), getattr(b, n)) for a, b in both for n in ("before", "after")
    )
