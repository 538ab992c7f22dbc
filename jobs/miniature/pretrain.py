"""Train the miniature Stable Diffusion: its CLIP, its autoencoder and its U-Net.

    python -m jobs.miniature.pretrain vae clip unet --out data/models
    torchrun --nproc_per_node 2 -m jobs.miniature.pretrain unet --warm --seconds 900

Each network has a budget of seconds, given in ``STAGES`` or by ``--seconds``.
A network that is not named is read from ``--out``. The autoencoder and the U-Net can be
trained by several processes, each with a GPU and with scenes of its own; CLIP compares
the rows of one batch with each other, so it takes one GPU.
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from ip2p_lib.config import MODELS, RESULTS
from ip2p_lib.diffusion.clip import ClipScorer, load_clip
from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.distributed import init, local_shard, rank, shutdown, world_size
from ip2p_lib.miniature.corpus import Corpus
from ip2p_lib.results import ReadmeRow, write_results
from ip2p_lib.rng import integers, key, normal, uniform
from ip2p_lib.training.compiled import compile_unet
from jobs.miniature import data, measure, models, saving
from jobs.miniature.loop import Budget, fit, follow
from jobs.miniature.losses import clip_loss, instruction_loss, unet_loss, vae_loss
from jobs.training_plan import above_zero, positive

STAGES = {
    "vae": Budget(seconds=400, learning_rate=1e-3),
    "clip": Budget(seconds=180, learning_rate=1e-3),
    "unet": Budget(seconds=600, learning_rate=1.2e-3),
}
BATCHES = {"vae": 192, "clip": 768, "unet": 1024}  # rows of each process
_TEXT = 56  # tokens of a caption while CLIP trains; later positions only hold padding
_CAPTION_DROPOUT = 0.1  # for classifier-free guidance
_REPLACED = 0.4  # of an instruction's tokens at most
_HALF_SIZE = 4  # every fourth batch of the autoencoder is decoded at half the size


def batch_ids(batch: int, device: torch.device) -> Tensor:
    """Numbers of this process's rows in a batch of ``batch`` rows a process."""
    return local_shard(torch.arange(batch * world_size())).to(device)


def train_vae(images: Tensor, budget: Budget, batch: int) -> AutoencoderKL:
    """Train an autoencoder, and scale its latents to unit variance.

    Args:
        images: (n, 3, 128, 128) uint8 on the device to train on.
        budget: time and learning rate.
        batch: images of one process in each step.
    """
    device, ids = images.device, batch_ids(batch, images.device)
    vae = models.new_vae().to(device)
    if device.type == "cuda":
        vae.to(memory_format=torch.channels_last)
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)

    def loss_of(step: int) -> Tensor:
        rows = integers(key("vae", step), ids, len(images))
        x = data.to_unit(images[rows]).contiguous(memory_format=torch.channels_last)
        shape = (4, models.LATENT, models.LATENT)
        noise = normal(key("vae noise", step), ids, shape)
        return vae_loss(vae, x, noise, half=step % _HALF_SIZE == 0)

    follow(fit(vae, loss_of, budget), "vae")
    vae = vae.to(memory_format=torch.contiguous_format)
    vae.register_to_config(scaling_factor=1.0)
    deviation = data.encode_images(vae, images[:20_000]).float().std()
    vae.register_to_config(scaling_factor=round(1 / float(deviation), 5))
    return vae


def run_vae(
    args: argparse.Namespace, budget: Budget, batch: int, device: torch.device
) -> None:
    """Train and save the autoencoder; it needs none of the corpus's words."""
    n = args.scenes // world_size()
    corpus = data.sample_corpus(rank() * n, n)
    images = data.render_bytes(torch.cat([corpus.before, corpus.after]), device)
    vae = train_vae(images, budget, batch)
    if rank() == 0:
        saving.save_half(vae, saving.parts(args.out)["vae"])


def run_clip(
    args: argparse.Namespace, budget: Budget, batch: int, device: torch.device
) -> None:
    """Train and save CLIP, and the text encoder and tokenizer it gives the pipeline.

    Every text of few scenes teaches the tokenizer as much as all texts do.
    """
    corpus = data.sample_corpus(0, args.scenes)
    images = data.render_bytes(torch.cat([corpus.before, corpus.after]), device)
    paths = saving.parts(args.out)
    if args.warm:
        earlier = load_clip(paths["clip"], device=device, dtype=torch.float32)
        clip, tokenizer = earlier.model, earlier.tokenizer
        teach_instructions(earlier, corpus, images, budget, batch)
    else:
        texts = [*corpus.captions, *corpus.edited_captions, *corpus.instructions]
        tokenizer = models.train_tokenizer(texts[:: max(1, len(texts) // 60_000)])
        clip = models.new_clip(tokenizer).to(device)
        tokens = data.token_ids(tokenizer, texts, _TEXT).to(device)
        train_clip(clip, images, tokens, budget, batch)
    saving.save_clip(clip, tokenizer, paths["clip"])
    saving.save_text_encoder(clip, paths["text"])
    saving.save_tokenizer(tokenizer, paths["tokenizer"])


def train_clip(
    clip: CLIPModel, images: Tensor, tokens: Tensor, budget: Budget, batch: int
) -> None:
    """Train an empty CLIP on ``n`` edits.

    Args:
        clip: the model, changed in place.
        images: (2n, 3, 128, 128) uint8, all before, then all after their edit.
        tokens: (3n, L) token ids: captions, edited captions, instructions.
        budget: time and learning rate.
        batch: edits in each step.
    """
    n, ids = len(tokens) // 3, torch.arange(batch, device=images.device)

    def loss_of(step: int) -> Tensor:
        rows = integers(key("clip", step), ids, n)
        pairs = torch.cat([rows, n + rows])
        pixels = data.to_unit(images[pairs])
        captions, instructions = tokens[pairs].long(), tokens[2 * n + rows].long()
        return clip_loss(clip, pixels, captions, instructions)

    follow(fit(clip, loss_of, budget), "clip")


def teach_instructions(
    clip: ClipScorer, corpus: Corpus, images: Tensor, budget: Budget, batch: int
) -> None:
    """Teach a trained CLIP's text tower new instructions, and leave all else as it is.

    Args:
        clip: the trained model, changed in place; its tokenizer stays.
        corpus: n edits.
        images: (2n, 3, 128, 128) uint8, all before, then all after their edit.
        budget: time and learning rate.
        batch: edits in each step.
    """
    parts = (clip.embed_images(data.to_unit(part)) for part in images.split(1024))
    before, after = torch.cat([*parts]).float().chunk(2)
    change, n = F.normalize(after - before, dim=-1), len(before)
    texts = [*corpus.captions, *corpus.instructions]
    tokens = data.token_ids(clip.tokenizer, texts, 77).to(images.device)
    tower = clip.model.text_model.requires_grad_(True)
    teacher, ids = deepcopy(tower), torch.arange(batch, device=images.device)

    def loss_of(step: int) -> Tensor:
        rows = integers(key("clip", step), ids, n)
        words = replace_tokens(tokens[n + rows].long(), ids, step, clip.tokenizer)
        captions = tokens[rows].long()
        return instruction_loss(clip.model, teacher, change[rows], captions, words)

    follow(fit(tower, loss_of, budget), "instructions")


def replace_tokens(
    tokens: Tensor, ids: Tensor, step: int, tokenizer: CLIPTokenizer
) -> Tensor:
    """Replace up to ``_REPLACED`` of each row's tokens by random ones.

    People use words that no phrasing has: a text encoder that cannot rely on any one
    word learns to read the others.

    Args:
        tokens: (B, L) int64; the special tokens stay.
        ids: (B,) int64 with ``step``, they name the draws.
        step: number of the step.
        tokenizer: of the tokens.
    """
    shape = tuple(tokens.shape[1:])
    share = _REPLACED * uniform(key("replaced share", step), ids)[:, None]
    chosen = uniform(key("replaced", step), ids, shape) < share
    special = torch.tensor(tokenizer.all_special_ids, device=tokens.device)
    others = integers(key("replacement", step), ids, len(tokenizer), shape)
    kept = torch.isin(tokens, special) | torch.isin(others, special)
    return torch.where(chosen & ~kept, others, tokens)


def run_unet(
    args: argparse.Namespace, budget: Budget, batch: int, device: torch.device
) -> None:
    """Train the text-to-image U-Net on stored latents and text states, and save it."""
    began, paths = time.monotonic(), saving.parts(args.out)
    n = args.scenes // world_size()
    corpus = data.sample_corpus(rank() * n, n)
    codes = torch.cat([corpus.before, corpus.after])
    vae = AutoencoderKL.from_pretrained(paths["vae"]).to(device)
    batches = (data.render_bytes(part, device) for part in codes.split(50_000))
    latents = torch.cat([data.encode_images(vae, images) for images in batches])
    print(f"{len(latents)} latents in {time.monotonic() - began:.0f} s", flush=True)
    clip = load_clip(paths["clip"], device=device, dtype=torch.float32)
    texts = [*corpus.captions, *corpus.edited_captions, ""]  # the last one for dropout
    states = data.encode_texts(clip.model, clip.tokenizer, texts, device)
    weights = data.object_weights(codes.to(device), models.LATENT)
    unet = models.new_unet()
    if args.warm:
        unet = UNet2DConditionModel.from_pretrained(paths["unet"])
    unet = unet.to(device).train()
    compile_unet(unet, "whole" if device.type == "cuda" else "none")
    print(f"training from {time.monotonic() - began:.0f} s on", flush=True)
    loss_of = _unet_objective(unet, latents, states, weights, batch)
    follow(fit(unet, loss_of, budget), "unet")
    if rank() == 0:
        saving.save_half(unet.to(memory_format=torch.contiguous_format), paths["unet"])
        saving.save_scheduler(paths["scheduler"])
        saving.save_index(paths["pipeline"])


def _unet_objective(
    unet: UNet2DConditionModel,
    latents: Tensor,
    states: Tensor,
    weights: Tensor,
    batch: int,
) -> Callable[[int], Tensor]:
    """The loss of a step: its draws are a function of the step and the row alone."""
    ids = batch_ids(batch, latents.device)
    schedule = Schedule.scaled_linear().to(latents.device)

    def loss_of(step: int) -> Tensor:
        rows = integers(key("unet", step), ids, len(latents))
        dropped = uniform(key("unet drop", step), ids) < _CAPTION_DROPOUT
        text = states[torch.where(dropped, len(latents), rows)].float()
        chosen = latents[rows].float(), text, weights[rows].float()
        return unet_loss(unet, schedule, *chosen, ids, step)

    return loss_of


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("stages", nargs="+", choices=list(STAGES))
    add("--out", type=Path, default=MODELS)
    add("--results", type=Path, default=RESULTS)
    add("--scenes", type=positive, default=200_000)
    add("--seconds", type=above_zero, help="budget of each stage named")
    add("--learning-rate", type=above_zero, help="of each stage named")
    add("--batch", type=positive, help="rows of a process, each stage named")
    add("--samples", type=positive, default=1024, help="held-out scenes")
    add(
        "--warm",
        action="store_true",
        help="go on from --out's U-Net, or teach its CLIP instructions alone",
    )
    add("--measure", action="store_true", help="train nothing")
    return parser.parse_args()


def main() -> None:
    """Train, or with ``--measure`` only measure, the networks on the command line."""
    args, device = _arguments(), init()
    run = {"vae": run_vae, "clip": run_clip, "unet": run_unet}
    for name in args.stages:
        if not args.measure:
            given = {n: getattr(args, n) for n in ("seconds", "learning_rate")}
            given = {n: value for n, value in given.items() if value is not None}
            batch = BATCHES[name] if args.batch is None else args.batch
            run[name](args, replace(STAGES[name], **given), batch, device)
        if rank() == 0:
            _report(name, args, device)


def _report(name: str, args: argparse.Namespace, device: torch.device) -> None:
    """Measure a saved network on held-out scenes and write the figures down."""
    began = time.monotonic()
    figures = measure.measure(name, args.out, args.samples)
    print(name, figures, flush=True)
    path, readme = args.results / f"miniature-{name}.json", [_readme_row(name, figures)]
    seconds = round(time.monotonic() - began, 1)
    write_results(
        path, [figures], seed=0, seconds=seconds, device=device, readme=readme
    )


def _readme_row(name: str, figures: dict[str, Any]) -> ReadmeRow:
    """The README's line on one network."""
    n = figures["samples"]
    if name == "vae":
        claim = "PSNR of the autoencoder on held-out scenes"
        return ReadmeRow(claim, f"{figures['psnr_db']:.1f} dB", "36 dB", n)
    images = {"clip": "Held-out scenes", "unet": "Generated images"}[name]
    claim = f"{images} whose caption CLIP ranks first among {n:,}"
    return ReadmeRow(claim, f"{figures['top1']:.1%}", "98.5 %", n)


if __name__ == "__main__":
    main()
    shutdown()
