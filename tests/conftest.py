"""Tiny, randomly initialised models, saved the way the Hub gives real ones."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_in_server import KEY, StandInServer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from torch.overrides import TorchFunctionMode

from ip2p_lib.language_service import connect

torch.set_num_threads(1)
# A shell that starts the tests in the background lets them, and what they start,
# ignore Ctrl-C; some of them interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

PIXELS = 64
MARKERS = ["<|startoftext|>", "<|endoftext|>"]
WORDS = "a photo of the cat dog horse tree house river bird in on at with make it turn"
CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
    r"|[^\s\p{L}\p{N}]+"
)


def byte_level_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A small CLIP vocabulary: bytes, bytes that end a word, merges, markers."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=700,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    merges = [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(c + "</w>" for c in alphabet)]
    pieces += [a + b for a, b in merges if a + b not in pieces]
    return {p: i for i, p in enumerate([*pieces, *MARKERS])}, merges


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """Opened from files, which every transformers version can do."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    publish_tokenizer(folder)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


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


def tiny_pipeline(tokenizer):
    """Stable Diffusion 1.5's architecture at the least width, for 64 px."""
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
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
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def publish_text_encoder(folder: Path) -> None:
    """Name the weights as the Hub's files do, which all transformers versions read."""
    path = folder / "model.safetensors"
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": value
        for name, value in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def publish_tokenizer(folder: Path) -> None:
    """Write the two files of a CLIP tokenizer in place of the one of transformers 5."""
    vocab, merges = byte_level_bpe()
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A text-to-image pipeline in a local folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_pipeline(tiny_tokenizer).save_pretrained(folder)
    publish_text_encoder(folder / "text_encoder")
    publish_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def tiny_clip_folder(tiny_sd_folder: Path, tiny_tokenizer) -> Path:
    """A CLIP model with its processor, beside the pipeline."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    config = CLIPConfig(
        text_config=text_settings(tiny_tokenizer),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": 16,
        },
        projection_dim=16,
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    folder = tiny_sd_folder.parent / "tiny-clip"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(images, tiny_tokenizer).save_pretrained(folder)
    publish_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tiny_sd_folder: Path):
    """The pipeline as the library loads it; tests must leave it as it is."""
    from ip2p_lib.backbone import load_backbone

    return load_backbone(tiny_sd_folder, device="cpu")


class MaterialisedSharing:
    """Self-attention as the released code shares it: score maps copied, then softmax.

    Rows are in four blocks, [u0 | u1 | c0 | c1]. Where ``active``, picture 1 gets
    picture 0's scores, in either half. Written out with no fused attention, to be
    compared with the library's.
    """

    def __init__(self) -> None:
        self.active: list[bool] = []

    def __call__(self, attn, x, encoder_hidden_states=None, *args, **kwargs):
        q, k, v = (
            to(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for to in (attn.to_q, attn.to_k, attn.to_v)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        n = len(self.active)
        for i in range(n):
            if self.active[i]:
                scores[n + i] = scores[i]
                scores[3 * n + i] = scores[2 * n + i]
        out = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)

    def install(self, unet) -> None:
        unet.set_attn_processor(
            {
                name: self if "attn1" in name else old
                for name, old in unet.attn_processors.items()
            }
        )


@pytest.fixture
def materialised_sharing() -> MaterialisedSharing:
    return MaterialisedSharing()


class InFloat64(TorchFunctionMode):
    """diffusers casts to float32 within; here every such cast is to float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def wide(value):
            return torch.float64 if value is torch.float32 else value

        named = {name: wide(value) for name, value in (kwargs or {}).items()}
        return function(*map(wide, args), **named)


class WideNumpy:
    """numpy, whose float32 is float64."""

    float32 = np.float64

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.fixture
def float64_schedulers(monkeypatch: pytest.MonkeyPatch):
    """diffusers' schedulers, if made in this fixture's reach, compute in float64."""
    from diffusers.schedulers import (
        scheduling_dpmsolver_multistep,
        scheduling_euler_ancestral_discrete,
    )

    for module in (
        scheduling_dpmsolver_multistep,
        scheduling_euler_ancestral_discrete,
    ):
        monkeypatch.setattr(module, "np", WideNumpy())
    with InFloat64():
        yield


@pytest.fixture
def server() -> Iterator[StandInServer]:
    """A language service on this machine, without an opinion of its own."""
    with StandInServer() as server:
        yield server


@pytest.fixture
def client(server, monkeypatch):
    """A client of that service, with a key that must not turn up anywhere."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with connect(server.url) as client:
        yield client
