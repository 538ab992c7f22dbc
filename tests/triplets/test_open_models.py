"""Open models, as the Hub has them, write by our settings and with our adapters."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from ip2p_lib.config import Source
from ip2p_lib.diffusion.lora import add_lora, save_lora
from ip2p_lib.triplets import loading
from ip2p_lib.triplets import record as triplets
from ip2p_lib.triplets.finetuning import fine_tune, tokenize_triplets
from ip2p_lib.triplets.generation import generate_triplets
from ip2p_lib.triplets.loading import LanguageModel, load_language_model
from tests.support.open_models import (
    CAPTIONS,
    TRIPLETS,
    new_model,
    new_tokenizer,
    save_open_model,
)

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module", params=["qwen2", "llama", "gpt2"])
def open_model(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / request.param
    return save_open_model(folder, request.param)


def greedy(writer: LanguageModel, captions) -> list[str]:
    settings = {"temperature": 1e-6, "frequency_penalty": 0.0, "max_tokens": 12}
    return [reply.text for reply in generate_triplets(writer, captions, **settings)]


def test_an_open_model_is_sampled_by_our_settings_and_not_by_its_own(open_model):
    """Its folder asks for a penalty of 9; padded and in batches, against row by row."""
    writer = load_language_model(open_model, device="cpu")
    longest = {"gpt2": 192, "llama": 2048, "qwen2": 4096}[open_model.name]
    assert writer.tokenizer.model_max_length == longest
    plain = new_model(open_model.name, len(writer.tokenizer)).bfloat16().float()
    tokenizer = new_tokenizer(open_model.name)
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    for caption, text in zip(CAPTIONS, greedy(writer, CAPTIONS), strict=True):
        prompt = tokenizer(triplets.to_prompt(caption), return_tensors="pt")
        prompt = {name: prompt[name] for name in ("input_ids", "attention_mask")}
        tokens = plain.generate(**prompt, **options)
        new = tokens[0, prompt["input_ids"].shape[1] :]
        assert text == tokenizer.decode(new, skip_special_tokens=True)


def test_an_open_model_writes_what_its_adapter_learnt(open_model, tmp_path):
    pupil = load_language_model(open_model, device="cpu")
    add_lora(pupil.model, rank=16)
    rows = tokenize_triplets(pupil.tokenizer, TRIPLETS)
    list(fine_tune(pupil.model, *rows, epochs=40, learning_rate=1e-2))
    adapter = save_lora(pupil.model, tmp_path, open_model)
    captions = [triplet.caption for triplet in TRIPLETS]

    def written(adapter: Path | None) -> list:
        writer = load_language_model(open_model, adapter, device="cpu")
        replies = generate_triplets(writer, captions, temperature=0.1, max_tokens=80)
        return [reply.triplet for reply in replies]

    assert written(adapter) == TRIPLETS
    assert not any(written(None))


def test_a_tokenizer_with_nothing_to_pad_with_is_refused():
    tokenizer = new_tokenizer("qwen2", eos_token=None)
    with pytest.raises(ValueError, match="pad_token"):
        loading._prepare_tokenizer(tokenizer, new_model("qwen2", len(tokenizer)))


@pytest.mark.parametrize(
    ("device", "parameters", "expected"),
    [
        ("cpu", 1_500_000_000, torch.float32),
        ("cuda", 1_300_000, torch.float32),
        ("cuda", 1_500_000_000, torch.float16),
    ],
)
def test_a_large_model_on_a_gpu_is_in_the_half_precision_it_has(
    monkeypatch, device: str, parameters: int, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert loading._precision(parameters, torch.device(device)) is expected


def test_the_angles_of_a_rotary_model_stay_in_float32(monkeypatch, tmp_path):
    """In bfloat16 they would be off by a turn after some hundred tokens."""
    folder = save_open_model(tmp_path, "qwen2")
    monkeypatch.setattr(loading, "_precision", lambda *_: torch.bfloat16)
    model = load_language_model(folder, device="cpu").model
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    angles = dict(model.named_buffers())["model.rotary_emb.inv_freq"]
    expected = 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(angles, expected)


def test_a_model_of_the_hub_is_read_from_the_cache(monkeypatch, tmp_path):
    snapshot = tmp_path / "models--maker--model" / "snapshots" / REVISION
    local = save_open_model(tmp_path / "local", "qwen2")
    shutil.copytree(local, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = Source("maker/model", REVISION)
    writer = load_language_model(source, device="cpu")
    here = load_language_model(local, device="cpu")
    assert greedy(writer, CAPTIONS) == greedy(here, CAPTIONS)
    add_lora(writer.model)
    adapter = save_lora(writer.model, tmp_path / "adapter", source)
    assert load_language_model(source, adapter, device="cpu")
    with pytest.raises(ValueError, match=f"trained on .*maker/model.*{REVISION}"):
        load_language_model(local, adapter, device="cpu")
