"""How fast the world renders, and how far a GPU's pictures are from the CPU's.

python benchmarks/world.py        writes data/results/world-<device>.json
"""

from __future__ import annotations

import time

import torch

from ip2p_lib.config import RESULTS
from ip2p_lib.miniature.render import encode, load_sprites, render_codes
from ip2p_lib.miniature.world import sample_scene
from ip2p_lib.results import write_results


def pictures_per_second(code: torch.Tensor, seconds: float = 5.0) -> float:
    """Render the same batch again and again, after one warm-up."""
    sprites = load_sprites().to(code.device)
    render_codes(code, sprites)
    start, done = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        render_codes(code, sprites).sum().item()
        done += len(code)
    return done / (time.monotonic() - start)


@torch.no_grad()
def main() -> None:
    """Measure the device at hand, on one thread if it is a CPU."""
    torch.set_num_threads(1)
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = 1024 if device.type == "cuda" else 64
    code = encode([sample_scene(seed) for seed in range(batch)])
    row = {"pictures_per_second": round(pictures_per_second(code.to(device)), 1)}
    if device.type == "cuda":
        there = render_codes(code[:256].to(device)).cpu()
        row["largest_difference_to_cpu"] = float(
            (there - render_codes(code[:256])).abs().max()
        )
    path = RESULTS / f"world-{device.type}.json"
    seconds = round(time.monotonic() - began, 1)
    print(write_results(path, [row], seed=0, seconds=seconds, device=device), row)


if __name__ == "__main__":
    main()
