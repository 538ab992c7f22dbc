"""Trains the miniature editor on its own pairs and measures it on held-out scenes.

    python -m jobs.miniature.train_editor train measure
    python -m jobs.miniature.train_editor train --since OLD_UNET
    torchrun --nproc_per_node 2 -m jobs.miniature.train_editor train

``train`` reads what ``make_pairs`` left in ``--work`` and writes
``models/miniature-ip2p/unet`` and ``results/miniature-training.json``; ``measure``
writes ``results/miniature-editor.json``. Budgets are wall time. With ``--since`` the
editor in ``--out`` goes on learning, also if its text-to-image U-Net has learnt since.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from ip2p_lib import checkpoint
from ip2p_lib.config import DATA, Scale, Source, Training, preset
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.diffusion.loading import load_network
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.distributed import broadcast_scalar, init, rank, shutdown, world_size
from ip2p_lib.editing.editor import load_editor
from ip2p_lib.results import write_results
from ip2p_lib.training import train as training
from ip2p_lib.training.latents import Latents, add_instructions
from ip2p_lib.training.state import TrainingOptions
from ip2p_lib.training.surgery import carry_over, widen_conv_in
from jobs.miniature import compile_ahead as rehearsal
from jobs.miniature import saving
from jobs.miniature.measure_editor import held_out_examples, measure_scale

_SHARE_OF_REHEARSAL = 0.9  # draws, AdamW and the average take the rest of a step


def read_pairs(work: Path, backbone: StableDiffusion) -> tuple[Latents, dict[str, int]]:
    """Every part that ``make_pairs`` left in ``work``, and how much was rendered.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [checkpoint.load(folder) for folder in sorted(work.glob("part-*"))]
    if not found:
        raise FileNotFoundError(
            f"There are no pairs in {work}. Make some first: "
            "python -m jobs.miniature.make_pairs write render."
        )
    names, device = found[0].tensors, backbone.device
    pairs = {
        n: torch.cat([part.tensors[n] for part in found]).to(device) for n in names
    }
    texts = [text for part in found for text in part.state["instructions"]]
    counts = {n: sum(part.state[n] for part in found) for n in ("rendered", "kept")}
    return add_instructions(backbone, pairs, texts), counts


def wait_for_pairs(work: Path, parts: int) -> None:
    """Wait until all the parts that ``make_pairs`` renders elsewhere are complete."""
    while len(list(work.glob(f"part-*/{checkpoint.MANIFEST}"))) < parts:
        time.sleep(0.5)


def first_unet(out: Path, backbone: StableDiffusion, since: Path | None) -> Any:
    """The text-to-image U-Net widened; or, carried over to it, an earlier editor.

    Args:
        out: its ``models/miniature-ip2p/unet`` is the earlier editor.
        backbone: today's text-to-image model.
        since: folder of the text-to-image U-Net that the editor began as; None begins
            anew.
    """
    if since is None:
        return widen_conv_in(backbone.unet)
    editor, old = (
        load_network(UNet2DConditionModel, {"pretrained_model_name_or_path": folder})
        for folder in (out / "models" / "miniature-ip2p" / "unet", since)
    )
    device = backbone.device
    return carry_over(editor.to(device), old.to(device), backbone.unet)


def train_editor(
    unet: Any,
    backbone: StableDiffusion,
    latents: Latents,
    settings: Training,
    seconds: float,
) -> tuple[Any, list[float]]:
    """Sections 3.2 and 3.2.1: train a widened U-Net; the time may end it early.

    Returns:
        The averaged 8-channel U-Net in float32, and the loss of every 20th step.
    """
    autocast = torch.bfloat16 if backbone.device.type == "cuda" else None
    state = training.start(unet, settings, TrainingOptions(autocast=autocast))
    schedule = backbone.schedule.to(backbone.device)
    steps = training.train(state, latents, schedule, settings, run_seed=0)
    losses = list(_until(steps, seconds, backbone.device))
    state.check()
    state.ema.copy_to(unet)
    return unet.to(memory_format=torch.contiguous_format), losses


def _until(
    steps: Iterator[training.TrainStep], seconds: float, device: torch.device
) -> Iterator[float]:
    """The loss of every 20th step, until the time is up."""
    start = shown = time.monotonic()
    for step in steps:
        if step.step % 20:
            continue
        yield float(step.loss)
        spent = broadcast_scalar(time.monotonic() - start, device)
        if start + spent - shown > 10:
            print(f"editor {spent:.0f} s step {step.step}", flush=True)
            shown = start + spent
        if spent > seconds:
            return


def train(args: argparse.Namespace, scale: Scale, device: torch.device) -> None:
    """Train the editor on the pairs in ``--work`` and save it."""
    began = time.monotonic()
    backbone = load_stable_diffusion(
        args.out / "models" / "miniature-sd", device=device
    )
    unet = first_unet(args.out, backbone, args.since).float()
    rows = args.batch // world_size()
    rehearsal.begin(unet, rows, device).result()
    wait_for_pairs(args.work, args.parts)
    latents, facts = read_pairs(args.work, backbone)
    rate = rehearsal.steps_a_second(unet, rows, device)  # rendering slowed the first
    print(f"{rate:.1f} steps a second in rehearsal", flush=True)
    left = args.deadline - time.time() if args.deadline else args.seconds
    seconds, rate = broadcast_scalar(left, device), broadcast_scalar(rate, device)
    steps = args.steps or max(1, int(_SHARE_OF_REHEARSAL * rate * seconds))
    settings = replace(
        scale.training,
        steps=steps,
        batch_size=args.batch,
        learning_rate=args.learning_rate,
        warmup=100,
        decay=True,
        ema_decay=0.995,  # a run of a few thousand steps forgets its start with this
    )
    print(f"{len(latents)} pairs, {steps} steps in {seconds:.0f} s", flush=True)
    unet, losses = train_editor(unet, backbone, latents, settings, seconds)
    if rank() > 0:
        return
    saving.save_half(unet, args.out / "models" / "miniature-ip2p" / "unet")
    rows = [{"step": 20 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]
    facts |= {"batch_size": args.batch, "processes": world_size()}
    facts |= {"continued": args.since is not None}
    spent = round(time.monotonic() - began, 1)
    path = args.out / "results" / "miniature-training.json"
    write_results(path, rows, seed=0, seconds=spent, device=device, **facts)


def evaluate(args: argparse.Namespace, scale: Scale, device: torch.device) -> None:
    """Measure the editor in ``--out`` on held-out scenes."""
    began, settings = time.monotonic(), scale.editing
    source = Source(str(args.out / "models" / "miniature-ip2p" / "unet"))
    editor = load_editor(replace(scale, editor=source), device)
    clip = load_clip(scale.clip, device=device)
    examples, kinds = held_out_examples(args.samples, device)
    grid = itertools.product(
        args.text_scales or [settings.text_scale],
        args.image_scales or [settings.image_scale],
    )
    rows = []
    for text_scale, image_scale in grid:
        scales = (text_scale, image_scale)
        rows += measure_scale(editor, clip, examples, kinds, *scales)
        print(next(row for row in reversed(rows) if row["kind"] == "all"), flush=True)
    seconds = round(time.monotonic() - began, 1)
    facts = {"steps": settings.steps, "sampler": settings.sampler}
    path = args.out / "results" / "miniature-editor.json"
    write_results(path, rows, seed=0, seconds=seconds, device=device, **facts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the miniature editor.")
    parser.add_argument("stages", nargs="+", choices=["train", "measure"])
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=Path("runs/editor"))
    parser.add_argument(
        "--since", type=Path, help="go on from the editor that began as this U-Net"
    )
    parser.add_argument("--parts", type=int, default=0, help="of pairs to wait for")
    parser.add_argument("--steps", type=int, help="default: what the time allows")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--seconds", type=float, default=300, help="of training")
    parser.add_argument("--deadline", type=float, help="instead: end then, Unix time")
    parser.add_argument("--samples", type=int, default=512, help="held-out edits")
    parser.add_argument("--text-scales", type=float, nargs="*")
    parser.add_argument("--image-scales", type=float, nargs="*")
    return parser.parse_args()


def main() -> None:
    """Run the stages named on the command line."""
    args, scale, device = _arguments(), preset("miniature"), init()
    if "train" in args.stages:
        train(args, scale, device)
    if "measure" in args.stages and rank() == 0:
        evaluate(args, scale, device)


if __name__ == "__main__":
    main()
    shutdown()
