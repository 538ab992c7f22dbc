"""Fixtures of many rooms: tiny models, and diffusers' schedulers in float64."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from jobs.miniature.saving import name_as_the_hub
from tests.support.models import publish_tokenizer, text_settings, tiny_pipeline

torch.set_num_threads(1)
# A shell that starts the tests in the background lets them, and what they start,
# ignore Ctrl-C; some of them interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """Opened from files, which every transformers version can do."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    publish_tokenizer(folder)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A text-to-image pipeline in a local folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_pipeline(tiny_tokenizer).save_pretrained(folder)
    name_as_the_hub(folder / "text_encoder")
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
def clip(tiny_clip_folder: Path):
    """That CLIP as the library loads it; tests must leave it as it is."""
    from ip2p_lib.diffusion.clip import load_clip

    return load_clip(tiny_clip_folder, device="cpu")


@pytest.fixture(scope="session")
def tiny_backbone(tiny_sd_folder: Path):
    """The pipeline as the library loads it; tests must leave it as it is."""
    from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion

    return load_stable_diffusion(tiny_sd_folder, device="cpu")


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

    monkeypatch.setattr(scheduling_dpmsolver_multistep, "np", WideNumpy())
    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "np", WideNumpy())
    with InFloat64():
        yield
