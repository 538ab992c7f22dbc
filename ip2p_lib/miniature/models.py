"""The networks of the miniature: Stable Diffusion's classes at a fraction of its size.

Everything is a stock ``diffusers`` or ``transformers`` class, saved so that older and
newer releases of both read the same weights.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTokenizer

VOCABULARY = 2048  # tokens, the two special ones included
TEXT_WIDTH = 192  # of a token's hidden state, and of CLIP's joint space
SHARD = "14MB"  # no shipped file is larger


def train_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """Learn a byte-level BPE tokenizer that can encode any text.

    Args:
        texts: the training text.

    Returns:
        A ``CLIPTokenizer`` of ``VOCABULARY`` tokens in CLIP's order: 256 bytes, the
        same 256 at the end of a word, the merges, start and end of text.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges_wanted = VOCABULARY - 2 * len(alphabet) - 2
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    reference = _empty_tokenizer(alphabet).backend_tokenizer
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = reference.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=merges_wanted + 2 * len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"][:merges_wanted]
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    tokens += [first + second for first, second in pairs]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77)


def _empty_tokenizer(alphabet: list[str]) -> CLIPTokenizer:
    """A tokenizer without merges, for its rules of splitting text into words."""
    from transformers import CLIPTokenizer

    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of 5 M parameters for 128 px pictures, randomly initialised."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": TEXT_WIDTH,
    }
    vision = {
        "hidden_size": 224,
        "intermediate_size": 896,
        "num_hidden_layers": 4,
        "num_attention_heads": 7,
        "image_size": 128,
        "patch_size": 16,
        "projection_dim": TEXT_WIDTH,
    }
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH)
    )


def new_vae() -> AutoencoderKL:
    """An autoencoder of 4 M parameters, 128 px to 16 x 16 x 4."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=128,
    )


def new_unet() -> UNet2DConditionModel:
    """A U-Net of 8 M parameters for 16 x 16 x 4 latents, predicting noise."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(96, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # the number of heads, as in SD 1.5's config
        norm_num_groups=16,
    )


def save_half(model: nn.Module, folder: Path) -> None:
    """Save a copy of a diffusers or transformers model in half precision."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder, max_shard_size=SHARD)  # type: ignore[operator]
    load_as_single(folder)


def load_as_single(folder: Path) -> None:
    """Let transformers 5 load half-precision files in float32 unless asked otherwise.

    It takes the dtype from the configuration; diffusers and transformers 4 load float32
    anyway, and a pipeline of two precisions does not run.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for name in ("dtype", "torch_dtype"):
        if name in config:
            config[name] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt``, which every release reads alike."""
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pairs = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    merges = "\n".join(["#version: 0.2", *pairs]) + "\n"
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False, indent=0) + "\n"
    (folder / "vocab.json").write_text(vocabulary, "utf-8")
    (folder / "merges.txt").write_text(merges, "utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, "utf-8")


def save_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save a CLIP with its tokenizer and the preprocessing of its pictures."""
    save_half(clip, folder)
    save_tokenizer(tokenizer, folder)
    size = {"height": 128, "width": 128}
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 128},
        "do_center_crop": True,
        "crop_size": size,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }
    text = json.dumps(preprocessor, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, "utf-8")


def save_text_encoder(clip: CLIPModel, folder: Path) -> None:
    """Save CLIP's text model as Stable Diffusion's text encoder.

    transformers 4 expects the prefix ``text_model.`` on every key and silently starts
    from random weights without it; transformers 5 reads either form.
    """
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(clip.config.text_config)
    plain = {
        name.removeprefix("text_model."): value
        for name, value in clip.text_model.state_dict().items()
    }
    own = encoder.state_dict()
    encoder.load_state_dict(
        {name: plain[name.removeprefix("text_model.")] for name in own}
    )
    encoder.half().save_pretrained(folder)
    load_as_single(folder)
    path = folder / "model.safetensors"
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": value
        for name, value in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def save_scheduler(folder: Path) -> None:
    """Write SD 1.5's noise schedule as the pipeline's scheduler."""
    from diffusers import EulerAncestralDiscreteScheduler

    EulerAncestralDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="linspace",
        steps_offset=1,
    ).save_pretrained(folder)


def save_index(folder: Path) -> None:
    """Write ``model_index.json``, which makes the parts a pipeline."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.39.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    text = json.dumps(index, indent=2) + "\n"
    (folder / "model_index.json").write_text(text, "utf-8")


def parameters(model: nn.Module) -> float:
    """Number of parameters, in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def pick_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
