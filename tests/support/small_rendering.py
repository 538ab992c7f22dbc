"""Tiny networks for exact comparisons, and candidates for them."""

import torch

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


def flat(batches):
    return [pair for batch in batches for pair in batch]


def gap(a, b):
    return (a - b).abs().max().item()
