"""Train an editor on a folder of pairs, on one device or on several.

    python -m jobs.train --pairs data/pairs/sample --out runs/editor
    torchrun --standalone --nproc_per_node 4 -m jobs.train ...     on four GPUs
    accelerate launch --multi_gpu --num_processes 4 -m jobs.train ...  the same

The same command goes on after any stop and ends in the same bits; another number of
processes changes rounding alone. ``--out`` receives the checkpoints, ``losses.csv``,
``validation.csv`` and, at the end, ``editor``: weights with a card; after LoRA, which
is merged there, also ``adapter``, some MB. What is given up for memory is planned, see
``training_plan``.
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
from ip2p_lib.diffusion.stable_diffusion import Backbone, load_backbone
from ip2p_lib.distributed import join, leave, processes, rank
from ip2p_lib.editing.editor import Editor
from ip2p_lib.evaluation.metrics import Examples
from ip2p_lib.filtering.clip_filter import ClipScorer, load_clip
from ip2p_lib.results import provenance
from ip2p_lib.training import train as training
from ip2p_lib.training.compiled.compile import compile_unet
from ip2p_lib.training.latent_cache import Order, latents_of, squares
from ip2p_lib.training.latents import Latents
from ip2p_lib.training.lora import add_editor_lora, save_editor_lora
from ip2p_lib.training.loss_weighting import min_snr
from ip2p_lib.training.model_card import RunFacts, card
from ip2p_lib.training.publish import save_editor
from ip2p_lib.training.resume import Run, recoverable
from ip2p_lib.training.state import CHECK_EVERY, TrainState
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import TrainStep
from ip2p_lib.training.validation import (
    LOOKS,
    Look,
    Validation,
    read_looks,
    with_looks,
    write_looks,
)
from jobs.training_plan import (
    add_flags,
    parts_of,
    plan_of,
    told,
    way_to_compile,
    with_time_left,
)

# Of the scale's settings, what the command line may say instead.
SETTINGS: dict[str, type] = {"steps": int, "batch_size": int, "warmup": int}
SETTINGS |= {"learning_rate": float, "ema_decay": float, "resolution": int}


def scale_of(args: argparse.Namespace) -> Scale:
    """The scale, with what the command line says instead."""
    scale = preset(args.scale)
    asked = {name: getattr(args, name) for name in SETTINGS if getattr(args, name)}
    return replace(
        scale,
        training=replace(scale.training, **asked),
        backbone=Source(str(args.backbone)) if args.backbone else scale.backbone,
        clip=Source(str(args.clip)) if args.clip else scale.clip,
    )


def prepare(
    args: argparse.Namespace, scale: Scale, device: torch.device
) -> tuple[Backbone, Latents, TrainState]:
    """The frozen networks, what they make of the pairs, and what will be trained."""
    backbone, settings = load_backbone(scale.backbone, device=device), scale.training
    config, way = backbone.unet.config, way_to_compile(args, device)
    plan = plan_of(args, config, settings, device)
    if rank() == 0:
        print(
            told(args, plan, config, settings, device), f"Compiled: {way}.", flush=True
        )
    rows = (0, len(PairDataset(args.pairs)) - args.looks)
    order = Order(args.pairs, rows, scale.backbone, settings.resolution)
    latents = latents_of(backbone, order, args.out / "latents")
    unet = widen_conv_in(backbone.unet).float()
    if (lora := plan.economy.lora_rank) is not None:
        add_editor_lora(unet, rank=lora, frozen=plan.economy.autocast)
    compile_unet(unet, way, channels_last=False if plan.economy.eight_bit else None)
    state = training.start(unet, settings, plan.economy)
    state.micro_batch = parts_of(args, plan)
    return replace(backbone, unet=unet), latents, state


def validation_of(
    args: argparse.Namespace, scale: Scale, backbone: Backbone, clip: ClipScorer
) -> Validation:
    """The last pairs of the data set, which training does not meet, as fixed edits."""
    dataset = PairDataset(args.pairs)
    pairs = [dataset[i] for i in range(len(dataset) - args.looks, len(dataset))]
    before, _ = squares(pairs, scale.training.resolution)
    unet = copy.deepcopy(backbone.unet).type(backbone.dtype).eval()
    editor = Editor(replace(backbone, unet=unet), scale.editing, scale.resolution)
    examples = Examples(
        before,
        [pair.instruction for pair in pairs],
        [pair.caption for pair in pairs],
        [pair.edited_caption for pair in pairs],
    )
    return Validation(editor, clip, examples)


def steps_of(
    args: argparse.Namespace,
    scale: Scale,
    backbone: Backbone,
    latents: Latents,
    state: TrainState,
    clip: ClipScorer | None,
) -> Iterable[tuple[TrainStep, Look | None]]:
    """The steps still to be taken, the first process's with looks."""
    steps = training.train(
        state,
        latents,
        backbone.schedule,
        scale.training,
        run_seed=args.seed,
        encode=lambda ids: backbone.text_encoder(ids).last_hidden_state,
        weights=min_snr(backbone.schedule, args.min_snr) if args.min_snr else None,
    )
    if clip is None:
        return ((step, None) for step in steps)
    validation = validation_of(args, scale, backbone, clip)
    every, last = args.look_every, scale.training.steps
    return with_looks(steps, state, validation, every=every, last=last)


def follow(
    run: Run, steps: Iterable[tuple[TrainStep, Look | None]], last: int
) -> list[Look]:
    """Take the steps; the first process keeps and says how they go."""
    looks = read_looks(run.root / LOOKS, up_to=run.state.step)
    for step, look in with_time_left(steps, last):
        run.record(step)
        if look:
            looks.append(replace(look, edits=None))
            write_looks(run.root / LOOKS, looks)
            print(looks[-1], flush=True)
        if rank() == 0 and (step.step % CHECK_EVERY == 0 or step.step == last):
            print(f"step {step.step} of {last}: loss {step.loss:.4f}", flush=True)
    return looks


def facts_of(
    args: argparse.Namespace, scale: Scale, pairs: int, run: Run, looks: Sequence[Look]
) -> RunFacts:
    """What the card tells."""
    made = provenance(run.state.failed.device) | {
        "processes": processes(),
        "economy": run.state.economy.words,
    }
    return RunFacts(
        base=scale.backbone,
        data=args.pairs.name,
        pairs=pairs,
        settings=scale.training,
        run_seed=args.seed,
        bands=run.bands,
        looks=looks,
        text_scale=scale.editing.text_scale,
        image_scale=scale.editing.image_scale,
        made=made,
    )


def keep_adapter(folder: Path, state: TrainState, source: Source) -> Path:
    """What LoRA learnt, averaged, for the U-Net that it was trained on."""
    averaged, base = copy.deepcopy(state.unet), source
    state.ema.copy_to(averaged)
    if source.revision is None:
        base = Source(str(Path(source.path_or_id) / "unet"))
    return save_editor_lora(averaged, folder, base)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--scale", choices=SCALES, default="miniature")
    add("--pairs", type=Path, required=True, help="folder of shards")
    add("--out", type=Path, default=Path("runs/editor"))
    add("--mirror", type=Path, help="second folder for the checkpoints")
    add("--backbone", type=Path, help="a text-to-image pipeline in a folder")
    add("--clip", type=Path, help="a CLIP model in a folder")
    for name, kind in SETTINGS.items():
        add(f"--{name.replace('_', '-')}", type=kind, help="default: the scale's")
    add("--seed", type=int, default=0)
    add("--min-snr", type=float, metavar="GAMMA", help="weigh timesteps; try 5")
    add("--looks", type=int, default=4, help="pairs kept apart for validation")
    add("--look-every", type=int, default=500, help="steps")
    add("--processes", type=int, help="refuse to run with any other number")
    add("--license", default="unknown", help="of the weights, for the card")
    add_flags(parser)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Train, then keep the editor with its card."""
    args = arguments(words)
    device, scale = join(args.processes), scale_of(args)
    looking = args.looks and rank() == 0
    clip = load_clip(scale.clip, device=device) if looking else None
    backbone, latents, state = prepare(args, scale, device)
    asked = args.micro_batch and state.micro_batch
    with recoverable(state, args.out, mirror=args.mirror) as run:
        state.micro_batch = asked or state.micro_batch
        if rank() == 0:
            print(f"{processes()} processes, {len(latents)} pairs. {run.banner}")
        steps = steps_of(args, scale, backbone, latents, state, clip)
        looks = follow(run, steps, scale.training.steps)
    if rank() == 0:
        facts = facts_of(args, scale, len(latents), run, looks)
        text = card(facts, name=args.out.name, license=args.license)
        print("saved", save_editor(args.out / "editor", state, text))
        if state.economy.lora_rank:
            print("saved", keep_adapter(args.out / "adapter", state, scale.backbone))
    leave()


if __name__ == "__main__":
    main()
