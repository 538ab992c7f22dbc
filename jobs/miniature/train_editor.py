"""Train the miniature editor on its own pairs, and measure it on held-out scenes.

    python -m jobs.miniature.train_editor train
    python -m jobs.miniature.train_editor tune --text-scales 1.5 2 3 --steps 4 8
    python -m jobs.miniature.train_editor measure
    torchrun --nproc_per_node 2 -m jobs.miniature.train_editor train

``train`` reads what ``make_pairs`` left in ``--work`` and writes
``models/miniature-ip2p/unet`` and ``results/miniature-training.json``; ``tune`` tries
scales on a validation split, ``results/miniature-editor-scales.json``, and ``measure``
writes ``results/miniature-editor.json``. Budgets are wall time.
"""

import argparse
import itertools
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from ip2p_lib import checkpoint
from ip2p_lib.config import DATA, HELD_OUT, Scale, Source, Training, preset
from ip2p_lib.diffusion.loading import load_network
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.distributed import broadcast_scalar, init, rank, shutdown, world_size
from ip2p_lib.editing import load_editor
from ip2p_lib.miniature.judge import load_judge
from ip2p_lib.results import ReadmeRow, write_results
from ip2p_lib.training import train as training
from ip2p_lib.training.compiled import compile_unet
from ip2p_lib.training.latents import Latents, add_instructions
from ip2p_lib.training.loss_weighting import LOSS_WEIGHTINGS
from ip2p_lib.training.state import TrainingOptions, TrainState
from ip2p_lib.training.surgery import widen_conv_in
from jobs.miniature import saving
from jobs.miniature.measure import VALIDATION, HeldOutEdits, measure_editor
from jobs.training_plan import above_zero, positive

_LOG_EVERY = 20  # steps
_MARGIN = 0.97  # of the time left, to be sure that the last steps of the cosine come


def read_pairs(work: Path, sd: StableDiffusion) -> tuple[Latents, dict[str, int]]:
    """Every part that ``make_pairs`` left in ``work``, and how much was generated.

    Raises:
        FileNotFoundError: there is none.
    """
    parts = [checkpoint.load(folder) for folder in sorted(work.glob("part-*"))]
    if not parts:
        raise FileNotFoundError(
            f"There are no pairs in {work}. Make some first: "
            "python -m jobs.miniature.make_pairs write generate."
        )
    pairs = {
        name: torch.cat([part.tensors[name] for part in parts]).to(sd.device)
        for name in parts[0].tensors
    }
    texts = [text for part in parts for text in part.state["instructions"]]
    counts = {n: sum(part.state[n] for part in parts) for n in ("generated", "kept")}
    return add_instructions(sd, pairs, texts), counts


def first_unet(out: Path, sd: StableDiffusion, warm: bool) -> Any:
    """The text-to-image U-Net widened, or if ``warm`` the editor that is in ``out``."""
    if not warm:
        return widen_conv_in(sd.unet)
    folder = out / "models" / "miniature-ip2p" / "unet"
    where = {"pretrained_model_name_or_path": folder}
    return load_network(UNet2DConditionModel, where).to(sd.device)


def train_editor(
    unet: Any,
    sd: StableDiffusion,
    latents: Latents,
    settings: Training,
    seconds: float,
    weighting: str | None,
) -> tuple[Any, list[dict[str, float]]]:
    """Sections 3.2 and 3.2.1: train a widened U-Net for as many steps as time allows.

    The first ``settings.steps``, at a constant rate, tell how many that are.

    Returns:
        The averaged 8-channel U-Net in float32, and the loss of every 20th step.
    """
    autocast = torch.bfloat16 if sd.device.type == "cuda" else None
    state = TrainState.create(unet, settings, TrainingOptions(autocast=autocast))
    weights = LOSS_WEIGHTINGS[weighting](sd.schedule) if weighting else None
    run = partial(training.train, state, latents, sd.schedule, weights=weights)
    end, middle = time.monotonic() + seconds, 0.0
    constant = replace(settings, decay=False)
    for step in run(constant, run_seed=0):
        if step.step == settings.steps // 2:
            step.loss.item()  # waits for the GPU
            middle = time.monotonic()
    rate = (settings.steps - settings.steps // 2) / (time.monotonic() - middle)
    left = broadcast_scalar(_MARGIN * rate * (end - time.monotonic()), sd.device)
    settings = replace(settings, steps=settings.steps + max(int(left), 1))
    print(f"{rate:.1f} steps a second, {settings.steps} in all", flush=True)
    rows = []
    for step in run(settings, run_seed=0):
        if step.step % _LOG_EVERY == 0:
            rows.append({"step": step.step, "loss": float(step.loss)})
            if len(rows) % 10 == 0 and rank() == 0:
                mean = sum(row["loss"] for row in rows[-10:]) / 10
                print(f"editor step {step.step} loss {mean:.4f}", flush=True)
    state.check()
    state.ema.copy_to(unet)
    return unet.to(memory_format=torch.contiguous_format), rows


def train(args: argparse.Namespace, scale: Scale, device: torch.device) -> None:
    """Train the editor on the pairs in ``--work`` and save it."""
    began = time.monotonic()
    sd = load_stable_diffusion(
        args.out / "models" / "miniature-sd", device=device, dtype=torch.float32
    )
    unet = first_unet(args.out, sd, args.warm).float()
    latents, counts = read_pairs(args.work, sd)
    compile_unet(unet, "whole" if device.type == "cuda" else "none")
    settings = replace(
        scale.training,
        steps=args.probe,
        batch_size=args.batch,
        learning_rate=args.learning_rate,
        warmup=args.probe,
        decay=True,
        ema_decay=0.998,
    )
    left = args.seconds - (time.monotonic() - began)
    print(f"{len(latents)} pairs, {left:.0f} s left", flush=True)
    unet, rows = train_editor(unet, sd, latents, settings, left, args.weighting)
    if rank() > 0:
        return
    saving.save_half(unet, args.out / "models" / "miniature-ip2p" / "unet")
    run: dict[str, Any] = {
        **counts,
        "batch_size": args.batch,
        "processes": world_size(),
        "weighting": args.weighting,
        "continued": args.warm,
    }
    spent = round(time.monotonic() - began, 1)
    path = args.out / "results" / "miniature-training.json"
    claim = "Generated pairs that passed the filter and trained the editor"
    readme = [ReadmeRow(claim, f"{counts['kept']:,}", "250,000", counts["generated"])]
    write_results(
        path, rows, seed=0, seconds=spent, device=device, readme=readme, **run
    )


def evaluate(args: argparse.Namespace, device: torch.device, stage: str) -> None:
    """Measure the editor in ``--out`` on held-out scenes, at each pair of scales.

    ``tune`` takes scenes of their own, from which the scales are chosen.
    """
    began, models = time.monotonic(), args.out / "models"
    scale = preset("miniature")
    scale = replace(
        scale,
        backbone=Source(str(models / "miniature-sd")),
        editor=Source(str(models / "miniature-ip2p" / "unet")),
    )
    editor = load_editor(scale, device)
    judge = load_judge(models / "miniature-judge", device)
    first = {"tune": VALIDATION, "measure": HELD_OUT}[stage]
    edits = HeldOutEdits.sample(args.samples, editor.backbone, first)
    own, rows = scale.editing, []
    grid = itertools.product(
        args.text_scales or [own.text_scale],
        args.image_scales or [own.image_scale],
        args.steps or [own.steps],
    )
    for text_scale, image_scale, steps in grid:
        options = {"text_scale": text_scale, "image_scale": image_scale, "steps": steps}
        measured = measure_editor(editor, judge, edits, **options)
        rows += measured if stage == "measure" else measured[:1]  # the group of all
        print(measured[0], flush=True)
    name = {"tune": "miniature-editor-scales", "measure": "miniature-editor"}[stage]
    write_results(
        args.out / "results" / f"{name}.json",
        rows,
        seed=0,
        seconds=round(time.monotonic() - began, 1),
        device=device,
        readme=_readme_rows(rows[0]) if stage == "measure" else [],
        sampler=scale.editing.sampler,
        first_scene=first,
    )


def _readme_rows(row: dict[str, Any]) -> list[ReadmeRow]:
    """The README's lines on the first row of a measurement."""
    aims = {
        "done": ("Held-out edits that show what was asked for", 93),
        "kept": ("Held-out edits that leave the rest as it was", 92),
        "both": ("Held-out edits that do both", 87),
    }
    return [
        ReadmeRow(claim, f"{100 * row[name]:.1f} %", f"{aim} %", row["samples"])
        for name, (claim, aim) in aims.items()
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the miniature editor.")
    add = parser.add_argument
    add("stages", nargs="+", choices=["train", "tune", "measure"])
    add("--out", type=Path, default=DATA)
    add("--work", type=Path, default=Path("runs/editor"))
    add("--warm", action="store_true", help="go on from --out's")
    add("--batch", type=positive, default=1024)
    add("--learning-rate", type=above_zero, default=8e-4)
    add("--weighting", choices=[*LOSS_WEIGHTINGS], default=None)
    add("--probe", type=positive, default=200, help="steps to warm up")
    add("--seconds", type=above_zero, default=480, help="of training")
    add("--samples", type=positive, default=1024, help="held-out edits")
    add("--text-scales", type=float, nargs="*")
    add("--image-scales", type=float, nargs="*")
    add("--steps", type=int, nargs="*", help="of one edit")
    return parser.parse_args()


def main() -> None:
    """Run the stages named on the command line."""
    args, device = _arguments(), init()
    if "train" in args.stages:
        train(args, preset("miniature"), device)
    for stage in ("tune", "measure"):
        if stage in args.stages and rank() == 0:
            evaluate(args, device, stage)


if __name__ == "__main__":
    main()
    shutdown()
