"""Trains the miniature Stable Diffusion: its CLIP, its autoencoder and its U-Net.

    python -m jobs.miniature.pretrain clip vae decoder unet --out data/models
    torchrun --nproc_per_node 2 -m jobs.miniature.pretrain unet --warm

Each stage has a time budget, goes on where it stopped, and ends by measuring itself on
held-out scenes. A stage that is not named is read from ``--out``. The U-Net
can be trained by several processes, each with a GPU and scenes of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p_lib.config import MODELS, RESULTS
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.distributed import init, rank, shutdown, world_size
from ip2p_lib.miniature.corpus import Corpus, build_corpus
from ip2p_lib.results import write_results
from jobs.miniature import compile_ahead as rehearsal
from jobs.miniature import measure as quality
from jobs.miniature import models, saving
from jobs.miniature.loop import Progress
from jobs.miniature.stages import (
    STAGES,
    Stage,
    render_bank,
    store_latents,
    train_clip,
    train_decoder,
    train_vae,
)
from jobs.miniature.unet_stage import (
    Pictures,
    object_cells,
    store_text,
    train_unet,
)

Begun = tuple[Any, Future[float]]  # a U-Net, and its compilation


def follow(progress: Iterator[Progress], name: str, say: Callable = print) -> Progress:
    """Run a stage to its end, saying every few seconds where it stands."""
    last, shown = Progress(0, 0.0, float("nan")), -10.0
    for last in progress:
        if last.seconds - shown >= 10:
            say(f"{name} {last.seconds:.0f} s step {last.step} loss {last.loss:.4f}")
            shown = last.seconds
    return last


def run_clip(corpus: Corpus, bank: Tensor, stage: Stage, out: Path, work: Path) -> None:
    """Train and save CLIP, and the text encoder and tokenizer it gives the pipeline."""
    clip, tokenizer, progress = train_clip(corpus, bank, stage, work / "clip")
    follow(progress, "clip")
    paths = saving.parts(out)
    saving.save_clip(clip, tokenizer, paths["clip"])
    saving.save_text_encoder(clip, paths["text"])
    saving.save_tokenizer(tokenizer, paths["tokenizer"])


def run_vae(bank: Tensor, stage: Stage, out: Path, work: Path) -> None:
    """Train and save the autoencoder, scaled so that latents have unit variance."""
    vae, progress = train_vae(bank, stage, work / "vae")
    follow(progress, "vae")
    vae = vae.to(memory_format=torch.contiguous_format)
    sample = store_latents(vae, bank[:: max(1, len(bank) // 20_000)])
    scaling = 1 / float(sample.float().std())
    vae.register_to_config(scaling_factor=round(scaling, 5))
    saving.save_half(vae, saving.parts(out)["vae"])


def run_decoder(bank: Tensor, stage: Stage, out: Path, work: Path) -> None:
    """Go on with the decoder of the saved autoencoder, under a critic."""
    from diffusers import AutoencoderKL

    folder = saving.parts(out)["vae"]
    vae = AutoencoderKL.from_pretrained(folder)
    follow(train_decoder(vae, bank, stage, work / "decoder"), "decoder")
    saving.save_half(vae.to(memory_format=torch.contiguous_format), folder)


def begin_unet(args: argparse.Namespace, device: torch.device) -> Begun:
    """The U-Net to train, compiling in the background: new, or the one in ``--out``."""
    from diffusers import UNet2DConditionModel

    folder = saving.parts(args.out)["unet"]
    warm = args.warm and UNet2DConditionModel.from_pretrained(folder)
    unet, rows = warm or models.new_unet(), _stage("unet", args).batch
    return unet, rehearsal.begin(unet, rows // world_size(), device)


def run_unet(
    corpus: Corpus, bank: Tensor, args: argparse.Namespace, begun: Begun
) -> None:
    """Store the bank's latents, train the U-Net on them and save the pipeline."""
    from diffusers import AutoencoderKL

    paths, device = saving.parts(args.out), bank.device
    clip = load_clip(paths["clip"], device=device, dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(paths["vae"]).to(device)
    start = time.monotonic()
    latents = store_latents(vae, bank) * vae.config.scaling_factor
    captions = [*corpus.captions, *corpus.edited_captions]
    pictures = Pictures(
        latents,
        object_cells(torch.cat([corpus.before, corpus.after]).to(device)),
        store_text(clip.model, clip.tokenizer, captions, device),
        store_text(clip.model, clip.tokenizer, [""], device),
    )
    print(f"{len(latents)} latents in {time.monotonic() - start:.0f} s", flush=True)
    unet, compiled = begun
    print(f"{compiled.result():.1f} steps a second in rehearsal", flush=True)
    stage = _stage("unet", args)  # a deadline has come nearer meanwhile
    follow(train_unet(unet, pictures, stage, args.work / "unet"), "unet")
    if rank() > 0:
        return
    saving.save_half(unet.to(memory_format=torch.contiguous_format), paths["unet"])
    saving.save_scheduler(paths["scheduler"])
    saving.save_index(paths["pipeline"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--scenes", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, help="budget of each stage named")
    parser.add_argument("--deadline", type=float, help="instead: end then, Unix time")
    parser.add_argument("--batch", type=int, help="of each stage named")
    parser.add_argument("--samples", type=int, default=1024, help="held-out scenes")
    parser.add_argument("--warm", action="store_true", help="go on from --out's U-Net")
    parser.add_argument("--measure", action="store_true", help="train nothing")
    return parser.parse_args()


def _scenes(n: int) -> Corpus:
    """This process's part of the first ``n`` scenes."""
    size = n // world_size()
    return build_corpus(rank() * size, size)


def main() -> None:
    """Run the stages named on the command line."""
    args, device = _arguments(), init()
    if not args.measure:
        train(args, device)
        return
    for name in args.stages:
        _report(name, args, device)


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Draw and render scenes once, and run every stage named on them."""
    start = time.monotonic()
    begun = begin_unet(args, device) if "unet" in args.stages else None
    corpus = _scenes(args.scenes)
    bank = render_bank(torch.cat([corpus.before, corpus.after]), device)
    print(f"{len(bank)} pictures in {time.monotonic() - start:.0f} s", flush=True)
    for name in args.stages:
        stage, where = _stage(name, args), (args.out, args.work)
        if name == "clip":
            run_clip(corpus, bank, stage, *where)
        elif name == "unet" and begun:
            run_unet(corpus, bank, args, begun)
        else:
            {"vae": run_vae, "decoder": run_decoder}[name](bank, stage, *where)
        if rank() == 0 and not args.deadline:
            _report(name, args, device)


def _stage(name: str, args: argparse.Namespace) -> Stage:
    """A stage's settings, some of them replaced on the command line."""
    stage = STAGES[name]
    left = args.deadline - time.time() if args.deadline else None
    budget = replace(stage.budget, seconds=left or args.seconds or stage.budget.seconds)
    return replace(stage, budget=budget, batch=args.batch or stage.batch)


def _report(name: str, args: argparse.Namespace, device: torch.device) -> None:
    """Measure a stage that has ended and write the figures down."""
    began = time.monotonic()
    figures = quality.measure(name, args.out, args.samples)
    print(name, figures, flush=True)
    part = "vae" if name == "decoder" else name
    path, seconds = args.results / f"miniature-{part}.json", time.monotonic() - began
    write_results(path, [figures], seed=0, seconds=round(seconds, 1), device=device)


if __name__ == "__main__":
    main()
    shutdown()
