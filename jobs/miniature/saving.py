"""Saves the miniature's networks so that every release in use reads the same weights.

That is diffusers 0.35 to 0.42 and transformers 4.57 to 5.23. Weights are safetensors in
half precision, in files of at most 14 MB.
"""

import copy
import json
from pathlib import Path

from diffusers import EulerAncestralDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from ip2p_lib.files import read_json, write_bytes, write_json

SHARD = "14MB"  # no shipped file is larger


def parts(out: Path) -> dict[str, Path]:
    """The folder of every part of the miniature's CLIP and pipeline."""
    sd = out / "miniature-sd"
    return {
        "clip": out / "miniature-clip",
        "vae": sd / "vae",
        "unet": sd / "unet",
        "text": sd / "text_encoder",
        "tokenizer": sd / "tokenizer",
        "scheduler": sd / "scheduler",
        "pipeline": sd,
    }


def save_half(model: nn.Module, folder: Path) -> None:
    """Save a copy of a diffusers or transformers model in half precision."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder, max_shard_size=SHARD)  # type: ignore[operator]
    load_as_single(folder)


def load_as_single(folder: Path) -> None:
    """Let transformers 5 load half-precision files in float32 by default.

    It takes the dtype from the configuration; diffusers and transformers 4 load float32
    anyway, and a pipeline of two precisions does not run.
    """
    path = folder / "config.json"
    config = read_json(path)
    config.pop("_name_or_path", None)  # local paths are not published
    for name in {"dtype", "torch_dtype"} & set(config):
        config[name] = "float32"
    write_json(path, config)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt``, which every release reads alike."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pairs = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    write_json(folder / "vocab.json", model["vocab"])
    merges = "\n".join(["#version: 0.2", *pairs]) + "\n"
    write_bytes(folder / "merges.txt", merges.encode())
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    }
    write_json(folder / "tokenizer_config.json", config)


def save_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save a CLIP with its tokenizer and the preprocessing of its images."""
    save_half(clip, folder)
    save_tokenizer(tokenizer, folder)
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 128},
        "crop_size": {"height": 128, "width": 128},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    steps = ("resize", "center_crop", "rescale", "normalize", "convert_rgb")
    preprocessor |= {f"do_{step}": True for step in steps}
    write_json(folder / "preprocessor_config.json", preprocessor)


def save_text_encoder(clip: CLIPModel, folder: Path) -> None:
    """Save CLIP's text model as Stable Diffusion's text encoder."""
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
    name_as_the_hub(folder)


def name_as_the_hub(folder: Path) -> None:
    """Name a saved text encoder's weights as the Hub's files do.

    transformers 4 expects the prefix ``text_model.`` on every key and silently starts
    from random weights without it; transformers 5 reads either form.
    """
    path = folder / "model.safetensors"
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": value
        for name, value in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def save_scheduler(folder: Path) -> None:
    """Write SD 1.5's noise schedule as the pipeline's scheduler."""
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
    write_json(folder / "model_index.json", index)
