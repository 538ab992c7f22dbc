"""A judge of the least width, and two scenes for it to read."""

from dataclasses import replace

import torch

from ip2p_lib.miniature.judge.model import Judge
from ip2p_lib.miniature.scenes import Scene, SceneObject

CAT = SceneObject("cat", 32, 112, 56, finish="gold")
BUS = SceneObject("bus", 96, 104, 48, mirrored=True, accessory="crown")
PAIR = Scene((CAT, BUS), "beach", "night", "rain", "photo", "noto", 3)
LONE = replace(PAIR, things=(BUS,), place="city", medium="line drawing")


def small_judge() -> Judge:
    """A judge of the least width with the same weights in every test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Judge((8, 8, 8, 8))
