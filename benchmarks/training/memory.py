"""Whether a plan foretells what training takes of a GPU, and how long the run takes.

    python benchmarks/memory.py           writes data/results/memory-cuda.json
    python benchmarks/memory.py --tiny    the same on any machine, in small

Stable Diffusion 1.5's U-Net, with random weights (neither memory nor time depends on
them), is trained at 256 px in the two ways that fit a card of 15 GiB, such as Colab's
T4; the process may take no more of the card. Each way takes 50 steps. What the plan
said stands beside what torch's allocator then held, and the run's length as it was
judged after 20 steps beside the real one. ``full`` needs a card of 24 GiB and nothing
installed, ``8-bit`` the extra gpu.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from ip2p_lib.config import RESULTS, Training
from ip2p_lib.device import choose_precision
from ip2p_lib.diffusion.samplers import Schedule
from ip2p_lib.results import write_results
from ip2p_lib.training import train as training
from ip2p_lib.training.latents import Latents
from ip2p_lib.training.lora import add_editor_lora
from ip2p_lib.training.memory_plan import GIB, Plan, memory_of, recommend
from ip2p_lib.training.options import Economy
from ip2p_lib.training.timing import guess_seconds, product_speed, time_left

STEPS, JUDGED_AFTER, BATCH = 50, 20, 64
LARGE = {
    "sample_size": 64,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
TINY = LARGE | {
    "block_out_channels": [16, 32, 32, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
}
WAYS = {  # GiB of the card, and the economy
    "lora": (15, Economy(lora_rank=16)),
    "8-bit": (15, Economy(eight_bit=True, ema_on_cpu=True)),
    "full": (24, Economy(ema_on_cpu=True)),
}


def cap(gib: float, device: torch.device) -> int:
    """Let this process take so much of the card; returns the bytes there are."""
    if device.type == "cpu":
        return int(gib * GIB)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))
    torch.cuda.empty_cache()
    return memory_of(device)


def random_latents(width: int, side: int, n: int = 256) -> Latents:
    """Latents of as many pairs as there might be, on the host."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))

    parts = [draw(n, 1, 4, side, side) for _ in range(3)]
    text, null = draw(16, 77, width), draw(1, 77, width)
    return Latents(*parts, torch.arange(n) % 16, text, null, 0.18215)


def build(config: dict[str, Any], plan: Plan, device: torch.device) -> Any:
    """The U-Net as the plan has it, on the device."""
    with device:
        unet = UNet2DConditionModel.from_config(config)
    economy = plan.economy
    if economy.lora_rank:
        add_editor_lora(unet, rank=economy.lora_rank, frozen=economy.autocast)
    return unet


def train(
    config: dict[str, Any], plan: Plan, device: torch.device, side: int
) -> list[float]:
    """Take ``STEPS`` steps as planned; returns the seconds of each."""
    settings = Training(steps=STEPS, batch_size=plan.batch_size)
    unet = build(config, plan, device)
    state = training.start(unet, settings, plan.economy)
    state.micro_batch = plan.micro_batch
    latents = random_latents(config["cross_attention_dim"], side)
    steps = training.train(
        state, latents, Schedule.scaled_linear(), settings, run_seed=0
    )
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        float(next(steps).loss)  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    state.check()
    return seconds


def percent(foretold: float, measured: float) -> float:
    """How far what was foretold lies above what was measured."""
    return round(100 * (foretold / measured - 1), 1)


def memory_row(plan: Plan, device: torch.device) -> dict[str, Any]:
    """The plan beside what torch's allocator held at most."""
    row = {
        "plan": plan.sentence,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "checkpointing": plan.economy.checkpointing,
        "planned_gib": round(plan.peak / GIB, 2),
    }
    if device.type == "cpu":
        return row
    allocated = torch.cuda.max_memory_allocated(device)
    reserved = torch.cuda.max_memory_reserved(device)
    return row | {
        "allocated_gib": round(allocated / GIB, 2),
        "reserved_gib": round(reserved / GIB, 2),
        "error_percent": percent(plan.peak, allocated),
        "error_to_reserved_percent": percent(plan.peak, reserved),
    }


def time_row(plan: Plan, seconds: list[float], speed: float) -> dict[str, Any]:
    """The run's length as guessed before it and as judged after some steps."""
    left = STEPS - JUDGED_AFTER
    judged = time_left(seconds[:JUDGED_AFTER], left)
    guessed = guess_seconds(plan.flops * plan.batch_size, speed, left)
    rest = sum(seconds[JUDGED_AFTER:])
    return {
        "images_per_second": round(left * plan.batch_size / rest, 1),
        "seconds_of_the_rest": round(rest, 2),
        "eta_error_percent": percent(judged, rest),
        "guess_error_percent": percent(guessed, rest),
    }


def measure(name: str, tiny: bool, device: torch.device) -> dict[str, Any]:
    """One way: plan, train, compare."""
    gib, economy = WAYS[name]
    config, pixels = (TINY, 64) if tiny else (LARGE, 256)
    autocast = None if tiny else choose_precision(device).autocast
    plan = recommend(
        config,
        memory=cap(0.5 if tiny else gib, device),
        batch_size=4 if tiny else BATCH,
        resolution=pixels,
        autocast=autocast,
        economies=[economy],
    )
    print(plan.sentence, flush=True)
    speed = product_speed(device, autocast, 512 if tiny else 4096)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = train(config, plan, device, pixels // 8)
    row = {"way": name, **memory_row(plan, device), **time_row(plan, seconds, speed)}
    gc.collect()  # the run's tensors hang in circles
    return row


def main() -> None:
    """Train in every way asked for, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a U-Net for any machine")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["lora", "8-bit"])
    parser.add_argument("--out", type=Path, default=RESULTS / "memory-cuda.json")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.tiny:
        parser.error("860 million parameters want a GPU; --tiny runs without one.")
    began, rows = time.monotonic(), []
    for name in args.ways:
        rows.append(measure(name, args.tiny, device))
        print(rows[-1], flush=True)
    if not args.tiny:
        seconds = round(time.monotonic() - began, 1)
        print(write_results(args.out, rows, seed=0, seconds=seconds, device=device))


if __name__ == "__main__":
    main()
