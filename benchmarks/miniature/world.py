"""How fast the drawn world renders, and how far a GPU's images are from the CPU's.

python -m benchmarks.miniature.world      writes data/results/world-<device>.json
"""

from __future__ import annotations

import time

import torch

from ip2p_lib.config import RESULTS
from ip2p_lib.miniature.render import encode, load_sprites, render_codes
from ip2p_lib.miniature.world import sample_scene
from ip2p_lib.results import ReadmeRow, write_results


def images_per_second(codes: torch.Tensor, seconds: float = 5.0) -> tuple[float, int]:
    """Render one batch again and again after a warm-up; the rate and the images."""
    sprites = load_sprites().to(codes.device)
    render_codes(codes, sprites)
    start, images = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        render_codes(codes, sprites).sum().item()
        images += len(codes)
    return images / (time.monotonic() - start), images


@torch.no_grad()
def main() -> None:
    """Measure the device at hand, on one thread if it is a CPU."""
    torch.set_num_threads(1)
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    codes = encode([sample_scene(seed) for seed in range(1024 if on_gpu else 64)])
    rate, images = images_per_second(codes.to(device))
    row: dict[str, float] = {"images_per_second": round(rate, 1)}
    if on_gpu:
        on_device = render_codes(codes[:256].to(device)).cpu()
        difference = (on_device - render_codes(codes[:256])).abs().max()
        row["largest_difference_to_cpu"] = float(difference)
    claim = "Scenes of the drawn world rendered a second"
    claim += "" if on_gpu else ", one CPU core"
    aim = "5,000" if on_gpu else "50"
    readme = [ReadmeRow(claim, f"{rate:,.0f}", aim, samples=images)]
    path = RESULTS / f"world-{device.type}.json"
    run = {"seed": 0, "seconds": round(time.monotonic() - start, 1), "device": device}
    print(write_results(path, [row], readme=readme, **run), row)


if __name__ == "__main__":
    main()
