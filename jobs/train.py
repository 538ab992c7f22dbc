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
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from ip2p_lib.config import SCALES, Scale, Source, preset
from ip2p_lib.dataset.dataset import MANIFEST, PairDataset
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.diffusion.loading import load_network, locate
from ip2p_lib.diffusion.lora import save_lora
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.distributed import broadcast_scalar, init, rank, shutdown, world_size
from ip2p_lib.editing.editor import Editor, find_scale
from ip2p_lib.evaluation.metrics import Examples
from ip2p_lib.files import FolderInUseError, read_json, run_lock, write_json
from ip2p_lib.results import provenance
from ip2p_lib.training import train as training
from ip2p_lib.training.compiled import compile_unet
from ip2p_lib.training.latents import Latents
from ip2p_lib.training.loss_weighting import LOSS_WEIGHTINGS
from ip2p_lib.training.model_card import (
    check_editor_folder,
    model_card,
    save_editor,
)
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
from jobs.latent_cache import cached_latents, crop_to_squares
from jobs.pairs import import_pairs
from jobs.run_parts import check_settings, write_parts
from jobs.training_plan import (
    TrainingPlan,
    above_zero,
    add_flags,
    assignment,
    make_plan,
    multiple_of_8,
    non_negative,
    number,
    positive,
)

# Settings of the scale that the command line may replace.
SETTINGS: dict[str, Callable[[str], Any]] = {
    "steps": positive,
    "batch_size": positive,
    "warmup": non_negative,
    "learning_rate": above_zero,
    "ema_decay": number(float, 0, high=1, below=True),
    "resolution": multiple_of_8,
}
# What a user can mend; anything else is a fault of this program.
ERRORS = (ValueError, OSError, FolderInUseError, FloatingPointError, ImportError)
VALIDATION_PAIRS = 4  # at most a quarter of the pairs


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--scale", choices=SCALES, default="miniature")
    pairs = "shards, the authors' folders, Parquet files or a CSV table"
    add("--pairs", type=Path, required=True, help=pairs)
    add("--split", help="of Parquet files: train, validation or test")
    renamed = "of Parquet, such as original_image=source_img"
    add("--columns", nargs="*", type=assignment, default=[], help=renamed)
    add("--out", type=Path, default=Path("runs/editor"))
    add("--backup-dir", type=Path, help="second folder for the checkpoints")
    add("--backbone", type=Path, help="a text-to-image pipeline in a folder")
    add("--editor", help="go on from an editor: a scale, or a folder")
    add("--clip", type=Path, help="a CLIP model in a folder")
    for name, kind in SETTINGS.items():
        add(f"--{name.replace('_', '-')}", type=kind, help="default: the scale's")
    add("--seed", type=int, default=0)
    mirrored = "train on no mirrored image; where an instruction names left or right, "
    mirrored += "in English or Chinese, none is mirrored anyway"
    add("--no-flips", dest="flips", action="store_false", help=mirrored)
    add("--loss-weighting", choices=LOSS_WEIGHTINGS, help="default: none, as the paper")
    few = f"pairs left out of training; default: {VALIDATION_PAIRS}, or fewer of few"
    add("--validation-pairs", type=non_negative, help=few)
    add("--validate-every", type=positive, default=500, help="steps")
    add("--processes", type=positive, help="refuse to run with any other number")
    add("--changed", action="store_true", help="resume although settings differ")
    add("--license", default="unknown", help="of the weights, for the card")
    add_flags(parser)
    args = parser.parse_args(words)
    args.columns = dict(args.columns)
    return args


def get_scale(args: argparse.Namespace) -> Scale:
    """The scale, with the settings of the command line."""
    scale = preset(args.scale)
    flags = {name: getattr(args, name) for name in SETTINGS}
    given = {name: value for name, value in flags.items() if value is not None}
    return replace(
        scale,
        training=replace(scale.training, **given),
        backbone=Source(str(args.backbone)) if args.backbone else scale.backbone,
        clip=Source(str(args.clip)) if args.clip else scale.clip,
    )


def find_pairs(args: argparse.Namespace, device: torch.device) -> argparse.Namespace:
    """Arguments with ``--pairs`` as shards, their first name, and how many validate.

    Raises:
        ValueError: there are too few pairs; the message names the option.
    """
    args = argparse.Namespace(**vars(args), data=args.pairs.name)
    target = args.out / "pairs"
    if rank() == 0:
        import_pairs(args.pairs, target, split=args.split, columns=args.columns)
    broadcast_scalar(0.0, device)  # the others wait until the pairs are there
    if not (args.pairs / MANIFEST).is_file():
        args.pairs = target
    count = len(PairDataset(args.pairs))
    if args.validation_pairs is None:
        args.validation_pairs = min(VALIDATION_PAIRS, count // 4)
    if count <= args.validation_pairs:
        raise ValueError(
            f"{args.data} has {count} pairs, and --validation-pairs takes "
            f"{args.validation_pairs} of them: none is left to train on."
        )
    return args


def load_unet(args: argparse.Namespace, backbone: StableDiffusion) -> Any:
    """The U-Net that training begins with: of ``--editor``, or of the backbone.

    Raises ValueError for an editor that does not go with the backbone.
    """
    if not args.editor:
        return backbone.unet
    folder = Path(find_scale(args.editor).editor.path_or_id)
    folder = folder if (folder / "config.json").is_file() else folder / "unet"
    where = locate(folder, "config.json", "There is no editor in {folder}.")
    unet = load_network(UNet2DConditionModel, where).to(backbone.device)
    for name in ("cross_attention_dim", "out_channels"):
        own, needed = unet.config[name], backbone.unet.config[name]
        if own != needed:
            raise ValueError(
                f"The editor in {folder} has {name} {own} and the backbone {needed}. "
                "Name the --backbone that it was trained from."
            )
    if (channels := unet.config.in_channels) not in (4, 8):
        raise ValueError(f"{folder} takes {channels} channels; an editor takes 8.")
    return unet


def check_validation_texts(args: argparse.Namespace, backbone: StableDiffusion) -> None:
    """Raise ValueError for a validation pair whose instruction is too long.

    It would stop the run at its first validation.
    """
    dataset, n = PairDataset(args.pairs), args.validation_pairs
    for pair in (dataset[i] for i in range(len(dataset) - n, len(dataset))):
        if not all(backbone.fits_context([pair.instruction])):
            raise ValueError(
                f"The pair {pair.key} of {args.data} is for validation, and its "
                f"instruction is longer than the {backbone.context_length} tokens that "
                f"the text encoder reads: {pair.instruction[:60]!r}... Shorten it, or "
                "choose another number of --validation-pairs."
            )


def prepare(
    args: argparse.Namespace, scale: Scale, plan: TrainingPlan, device: torch.device
) -> tuple[StableDiffusion, Latents, TrainState]:
    """Load the networks, encode the pairs, and prepare what is trained."""
    backbone = load_stable_diffusion(scale.backbone, device=device)
    unet = load_unet(args, backbone)
    check_validation_texts(args, backbone)
    rows = range(len(PairDataset(args.pairs)) - args.validation_pairs)
    latents = cached_latents(
        backbone,
        args.pairs,
        rows,
        scale.training.resolution,
        scale.backbone,
        args.out / "latents",
        flips=args.flips,
    )
    if unet.config.in_channels == 4:  # with 8 it is an editor already
        unet = widen_conv_in(unet)
    unet = unet.float().requires_grad_(True)
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
    try:
        rows = read_json(path) if path.is_file() else []
        return [ValidationResult(**row) for row in rows if row["step"] <= up_to]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged; delete it to go on without.") from error


def run_steps(
    run: Run, steps: Iterable[tuple[TrainStep, ValidationResult | None]], last: int
) -> list[ValidationResult]:
    """Take the steps, log and print them; returns all validation results."""
    path = run.root / "validation.json"
    results = read_validation(path, up_to=run.state.step)
    for step, result in steps:
        if result:  # first: a signal that came meanwhile ends the run in log_step
            results.append(replace(result, edits=None))
            write_json(path, [{c: getattr(r, c) for c in COLUMNS} for r in results])
            print(results[-1], flush=True)
        run.log_step(step)
        if rank() == 0 and (step.step % CHECK_EVERY == 0 or step.step == last):
            print(f"step {step.step} of {last}: loss {step.loss:.4f}", flush=True)
    return results


def save_outputs(
    args: argparse.Namespace,
    scale: Scale,
    pairs: int,
    run: Run,
    results: Sequence[ValidationResult],
    parts: Sequence[dict],
) -> None:
    """Write ``editor`` and, after LoRA, ``adapter``."""
    state = run.state
    training_rows = {
        "data": f"{args.data}, {pairs:,} pairs",
        "run_seed": args.seed,
        "flips": args.flips,
        "steps_taken": state.step,
        **vars(scale.training),
        **{f"until step {b['after']}": str(a) for a, b in pairwise(parts)},
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


def run(args: argparse.Namespace) -> None:
    """Train, then save the editor with its card."""
    try:
        device, scale = init(args.processes), get_scale(args)
    except RuntimeError as error:  # another number of processes
        raise ValueError(str(error)) from error
    plan = make_plan(args, scale.training.batch_size, device)
    check_editor_folder(args.out / "editor")
    with nullcontext() if rank() else run_lock(args.out, args.out / ".job.lock"):
        parts = check_settings(args, scale)
        args = find_pairs(args, device)
        backbone, latents, state = prepare(args, scale, plan, device)
        with resumable_run(state, args.out, backup_dir=args.backup_dir) as resumed:
            write_parts(args, parts, state.step)
            state.micro_batch = plan.micro_batch or state.micro_batch
            if rank() == 0:
                print(f"{plan.options}; compiled: {plan.compile_mode}.")
                counts = f"{len(latents)} pairs, {state.step} steps"
                print(f"{world_size()} processes, {counts}")
            steps = training_steps(args, scale, backbone, latents, state)
            results = run_steps(resumed, steps, scale.training.steps)
        if rank() == 0:
            save_outputs(args, scale, len(latents), resumed, results, parts)
    shutdown()


def main(words: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    try:
        run(arguments(words))
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(str(error) or "Stopped. The same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
