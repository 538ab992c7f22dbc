"""Tiny, randomly initialised models, saved the way the Hub gives real ones."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers

PIXELS = 64
MARKERS = ["<|startoftext|>", "<|endoftext|>"]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WORDS = "a photo of the cat dog horse tree house river bird in on at with make it turn"


def byte_level_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A small CLIP vocabulary: bytes, bytes that end a word, merges, markers.

    The same in every run, which a trainer of ``tokenizers`` does not give: of pairs
    that are equally frequent it takes any.
    """
    words = [[*word[:-1], word[-1] + "</w>"] for word in WORDS.split()]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in words for pair in pairwise(word)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [merged(word, best) for word in words]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(c + "</w>" for c in alphabet)]
    pieces += [a + b for a, b in merges]
    return {p: i for i, p in enumerate([*pieces, *MARKERS])}, merges


def merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """A word's pieces after one merge."""
    left: list[str] = []
    for piece in word:
        if left and (left[-1], piece) == pair:
            left[-1] += piece
        else:
            left.append(piece)
    return left


def text_settings(tokenizer) -> dict[str, int]:
    """Settings of a text encoder; the ids are passed, since pooling looks for them."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "projection_dim": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def pndm_scheduler():
    """As Stable Diffusion 1.5 stores it."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(skip_prk_steps=True, steps_offset=1, **BETAS)


def tiny_pipeline(tokenizer):
    """Stable Diffusion 1.5's architecture at the least width, for 64 px."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 8],
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=PIXELS,
    )
    unet = UNet2DConditionModel(
        sample_size=PIXELS // 8,
        block_out_channels=[8, 8, 16, 16],
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text_settings(tokenizer))),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=pndm_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def publish_tokenizer(folder: Path):
    """Write the two files of a CLIP tokenizer in place of the one of transformers 5."""
    vocab, merges = byte_level_bpe()
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink(missing_ok=True)
