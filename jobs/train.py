"""Train an editor on a folder of pairs, on one device or on several.

    python -m jobs.train --pairs data/pairs/sample --out runs/editor
    torchrun --standalone --nproc_per_node 4 -m jobs.train ...     on four GPUs
    accelerate launch --multi_gpu --num_processes 4 -m jobs.train ...  the same

The same command resumes after any stop and ends in the same bits; another number of
processes changes rounding alone. ``--out`` receives the checkpoints, ``losses.json``,
``validation.json`` and, at the end, ``editor``: weights with a model card; after LoRA,
which is merged there, also ``adapter``, some MB.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ip2p_lib.config import SCALES, Scale, Source, preset
from ip2p_lib.dataset.dataset import PairDataset
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.diffusion.lora import save_lora
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.distributed import init, rank, shutdown, world_size
from ip2p_lib.editing.editor import Editor
from ip2p_lib.evaluation.metrics import Examples
from ip2p_lib.files import read_json, write_json
from ip2p_lib.results import provenance
from ip2p_lib.training import train as training
from ip2p_lib.training.compiled import compile_unet
from ip2p_lib.training.latent_cache import cached_latents, crop_to_squares
from ip2p_lib.training.latents import Latents
from ip2p_lib.training.loss_weighting import LOSS_WEIGHTINGS
from ip2p_lib.training.model_card import model_card, save_editor
from ip2p_lib.training.resume import Run, resumable_run
from ip2p_lib.training.state import CHECK_EVERY, TrainState
from ip2p_lib.training.surgery import add_editor_lora, widen_conv_in
from ip2p_lib.training.train import TrainStep
from ip2p_lib.training.validation import (
    COLUMNS,
    Validation,
    ValidationResult,
    validate_every,
)
from jobs.training_plan import TrainingPlan, add_flags, make_plan

# Settings of the scale that the command line may replace.
SETTINGS: dict[str, type] = {"steps": int, "batch_size": int, "warmup": int}
SETTINGS |= {"learning_rate": float, "ema_decay": float, "resolution": int}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--scale", choices=SCALES, default="miniature")
    add("--pairs", type=Path, required=True, help="folder of shards")
    add("--out", type=Path, default=Path("runs/editor"))
    add("--backup-dir", type=Path, help="second folder for the checkpoints")
    add("--backbone", type=Path, help="a text-to-image pipeline in a folder")
    add("--clip", type=Path, help="a CLIP model in a folder")
    for name, kind in SETTINGS.items():
        add(f"--{name.replace('_', '-')}", type=kind, help="default: the scale's")
    add("--seed", type=int, default=0)
    add("--loss-weighting", choices=LOSS_WEIGHTINGS, help="default: none, as the paper")
    add("--validation-pairs", type=int, default=4, help="pairs left out of training")
    add("--validate-every", type=int, default=500, help="steps")
    add("--processes", type=int, help="refuse to run with any other number")
    add("--license", default="unknown", help="of the weights, for the card")
    add_flags(parser)
    return parser.parse_args(words)


def get_scale(args: argparse.Namespace) -> Scale:
    """The scale, with the settings of the command line."""
    scale = preset(args.scale)
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name)}
    return replace(
        scale,
        training=replace(scale.training, **given),
        backbone=Source(str(args.backbone)) if args.backbone else scale.backbone,
        clip=Source(str(args.clip)) if args.clip else scale.clip,
    )


def prepare(
    args: argparse.Namespace, scale: Scale, plan: TrainingPlan, device: torch.device
) -> tuple[StableDiffusion, Latents, TrainState]:
    """Load the networks, encode the pairs, and prepare what is trained."""
    backbone = load_stable_diffusion(scale.backbone, device=device)
    rows = range(len(PairDataset(args.pairs)) - args.validation_pairs)
    latents = cached_latents(
        backbone,
        args.pairs,
        rows,
        scale.training.resolution,
        scale.backbone,
        args.out / "latents",
    )
    unet = widen_conv_in(backbone.unet).float()
    if (lora_rank := plan.options.lora_rank) is not None:
        add_editor_lora(unet, rank=lora_rank, frozen=plan.options.autocast)
    compile_unet(unet, plan.compile_mode)
    state = TrainState.create(unet, scale.training, plan.options)
    return replace(backbone, unet=unet), latents, state


def make_validation(
    args: argparse.Namespace, scale: Scale, backbone: StableDiffusion
) -> Validation:
    """Edits of the last pairs of the dataset, which are not trained on."""
    dataset, n = PairDataset(args.pairs), args.validation_pairs
    pairs = [dataset[i] for i in range(len(dataset) - n, len(dataset))]
    before, _ = crop_to_squares(pairs, scale.training.resolution)
    unet = copy.deepcopy(backbone.unet).type(backbone.dtype).eval()
    editor = Editor(replace(backbone, unet=unet), scale.editing, scale.resolution)
    examples = Examples(
        before,
        [pair.instruction for pair in pairs],
        [pair.caption for pair in pairs],
        [pair.edited_caption for pair in pairs],
    )
    return Validation(editor, load_clip(scale.clip, device=backbone.device), examples)


def training_steps(
    args: argparse.Namespace,
    scale: Scale,
    backbone: StableDiffusion,
    latents: Latents,
    state: TrainState,
) -> Iterable[tuple[TrainStep, ValidationResult | None]]:
    """The remaining steps; in process 0 with validation results."""
    weighting = LOSS_WEIGHTINGS.get(args.loss_weighting)
    steps = training.train(
        state,
        latents,
        backbone.schedule,
        scale.training,
        run_seed=args.seed,
        encode=lambda ids: backbone.text_encoder(ids).last_hidden_state,
        weights=weighting(backbone.schedule) if weighting else None,
    )
    if rank() > 0 or not args.validation_pairs:
        return ((step, None) for step in steps)
    validation, last = make_validation(args, scale, backbone), scale.training.steps
    return validate_every(
        steps, state, validation, interval=args.validate_every, last=last
    )


def read_validation(path: Path, up_to: int) -> list[ValidationResult]:
    """The results up to a step: a run that lost its last steps validates them again."""
    rows = read_json(path) if path.is_file() else []
    return [ValidationResult(**row) for row in rows if row["step"] <= up_to]


def run_steps(
    run: Run, steps: Iterable[tuple[TrainStep, ValidationResult | None]], last: int
) -> list[ValidationResult]:
    """Take the steps, log and print them; returns all validation results."""
    path = run.root / "validation.json"
    results = read_validation(path, up_to=run.state.step)
    for step, result in steps:
        run.log_step(step)
        if result:
            results.append(replace(result, edits=None))
            write_json(path, [{c: getattr(r, c) for c in COLUMNS} for r in results])
            print(results[-1], flush=True)
        if rank() == 0 and (step.step % CHECK_EVERY == 0 or step.step == last):
            print(f"step {step.step} of {last}: loss {step.loss:.4f}", flush=True)
    return results


def save_outputs(
    args: argparse.Namespace,
    scale: Scale,
    pairs: int,
    run: Run,
    results: Sequence[ValidationResult],
) -> None:
    """Write ``editor`` and, after LoRA, ``adapter``."""
    state = run.state
    training_rows = {
        "data": f"{args.pairs.name}, {pairs:,} pairs",
        "run_seed": args.seed,
        "steps_taken": state.step,
        **vars(scale.training),
        "validation": results[-1] if results else "none",
        "processes": world_size(),
        "options": state.options,
        **provenance(state.device),
    }
    card = model_card(
        args.out.name,
        training_rows,
        base=scale.backbone,
        editing=scale.editing,
        license=args.license,
    )
    print("saved", save_editor(args.out / "editor", state, card))
    if state.options.lora_rank:
        averaged, base = copy.deepcopy(state.unet), scale.backbone
        state.ema.copy_to(averaged)
        if base.revision is None:
            base = Source(str(Path(base.path_or_id) / "unet"))
        print("saved", save_lora(averaged, args.out / "adapter", base))


def main(words: Sequence[str] | None = None) -> None:
    """Train, then save the editor with its card."""
    args = arguments(words)
    device, scale = init(args.processes), get_scale(args)
    plan = make_plan(args, scale.training.batch_size, device)
    backbone, latents, state = prepare(args, scale, plan, device)
    with resumable_run(state, args.out, backup_dir=args.backup_dir) as run:
        state.micro_batch = plan.micro_batch or state.micro_batch
        if rank() == 0:
            print(f"{plan.options}; compiled: {plan.compile_mode}.")
            print(f"{world_size()} processes, {len(latents)} pairs, {state.step} steps")
        steps = training_steps(args, scale, backbone, latents, state)
        results = run_steps(run, steps, scale.training.steps)
    if rank() == 0:
        save_outputs(args, scale, len(latents), run, results)
    shutdown()


if __name__ == "__main__":
    main()
