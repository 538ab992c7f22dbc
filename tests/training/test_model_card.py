"""A card tells what the run was, and the editor beside it opens as the card says."""

import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from ip2p_lib.config import Source
from ip2p_lib.training.model_card import RunSummary, card, push_to_hub, save_editor
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import start, train
from ip2p_lib.training.validation import ValidationResult
from tests.support.small_training import LATENTS, SCHEDULE, SETTINGS

HUB = Source("stable-diffusion-v1-5/stable-diffusion-v1-5", "a" * 40)
LOOKS = [ValidationResult(0, 0.99, 0.01), ValidationResult(6, 0.8765, 0.4321)]
MADE = {"commit": "b" * 40, "device": "cpu", "versions": {"torch": "2.11"}}


@pytest.fixture(scope="module")
def run(tiny_backbone):
    """A trained state, and what its steps gave by band."""
    state = start(widen_conv_in(tiny_backbone.unet), SETTINGS)
    steps = train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=7)
    return state, torch.stack([step.bins for step in steps])


@pytest.fixture
def facts(run):
    return RunSummary(HUB, "pairs/sample", 1234, SETTINGS, 7, run[1], LOOKS, 3, 1.5, MADE)


def header_of(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_is_what_the_hub_reads(facts):
    link = "https://example.org/licence"
    header = header_of(
        card(facts, name="An editor", license="other", license_link=link)
    )
    assert header["base_model"] == HUB.path_or_id
    assert header["library_name"] == "diffusers"
    assert header["pipeline_tag"] == "image-to-image"
    assert (header["license"], header["license_link"]) == ("other", link)
    (model,) = header["model-index"]
    metrics = {m["name"]: m["value"] for m in model["results"][0]["metrics"]}
    assert metrics == {
        "CLIP image similarity": 0.8765,
        "CLIP directional similarity": 0.4321,
    }


def test_every_number_is_the_runs(facts, run):
    text = card(facts, name="An editor", license="mit")
    sums, counts = run[1].double().sum(0)
    told = {
        "steps": "6 of 6 of 4 examples",
        "data": "pairs/sample, 1,234 pairs",
        "seed of the run": "7",
        "learning rate": "0.001, warm-up 4",
        "conditions hidden": "5% text, both, image each",
        "started from": f"`{HUB.path_or_id}` at {HUB.revision}",
        "commit": MADE["commit"],
        "torch": "2.11",
        "6": "0.8765 | 0.4321",
    }
    for name, value in told.items():
        assert f"| {name} | {value} |" in text
    whole = replace(facts, bins=run[1].sum(0, keepdim=True))
    for mean in sums / counts:
        assert f"| {mean:.4f} |" in card(whole, name="An editor", license="mit")


def test_a_folder_on_this_machine_is_named_and_not_located(facts):
    local = replace(facts, base=Source("/data/somebody/models/miniature-sd"))
    text = card(local, name="An editor", license="mit")
    assert "`miniature-sd` at no revision" in text and "somebody" not in text
    assert "base_model" not in header_of(text)


def test_a_run_without_looks_has_no_results(facts):
    text = card(replace(facts, looks=[]), name="An editor", license="mit")
    assert "model-index" not in header_of(text) and "No edits were looked at" in text


def test_what_cannot_be_told_is_refused(facts):
    with pytest.raises(ValueError, match="license_link"):
        card(facts, name="An editor", license="other")
    with pytest.raises(ValueError, match="no step yet"):
        card(replace(facts, bins=facts.bins[:0]), name="An editor", license="mit")


@pytest.fixture
def folder(run, facts, tmp_path):
    text = card(facts, name="An editor", license="mit")
    return save_editor(tmp_path / "editor", run[0], text)


def test_the_saved_editor_is_the_average_and_the_run_goes_on(run, folder):
    from diffusers import UNet2DConditionModel

    state = run[0]
    saved = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    for name, weight in state.ema.weights.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-3, atol=1e-4)
    assert next(state.unet.parameters()).dtype == torch.float32
    assert {path.name for path in folder.iterdir()} == {"README.md", "unet"}


def test_the_lines_of_the_card_load_and_edit(facts, folder, tiny_sd_folder, tmp_path):
    """Stock diffusers, by the very lines that the card gives."""
    text = card(facts, name="An editor", license="mit")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    code = code.replace("FOLDER", str(folder))
    code = code.replace(HUB.path_or_id, str(tiny_sd_folder))
    call = '"make it winter", num_inference_steps=2, output_type="pil"'
    code = code.replace('"make it winter"', call)
    names = {"picture": Image.new("RGB", (64, 64), "white")}
    exec(code, names)
    assert names["pipe"].unet.config.in_channels == 8
    assert names["edited"].size == (64, 64)


def test_an_older_editor_gives_way_and_other_files_do_not(run, folder, tmp_path):
    save_editor(folder, run[0], "a newer card")
    assert (folder / "README.md").read_text() == "a newer card"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        save_editor(folder, run[0], "a third card")
    assert (folder / "notes.txt").read_text() == "mine"


def test_weights_that_are_not_finite_are_never_saved(run, tmp_path):
    state = start(deepcopy(run[0].unet), SETTINGS)
    nn.init.constant_(state.unet.conv_in.bias, torch.nan)
    with pytest.raises(FloatingPointError, match="nothing was saved"):
        save_editor(tmp_path / "spoilt", state, "a card")
    assert list(tmp_path.iterdir()) == []


class Recorder:
    """In place of ``huggingface_hub.HfApi``: keeps what it is asked for."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **options: self.calls.append((name, args, options))


def test_a_dry_run_tells_what_would_be_sent_and_calls_nobody(folder):
    api = Recorder()
    sent = push_to_hub(folder, "somebody/editor", dry_run=True, api=api)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert sent == ["README.md", "unet/config.json", weights]
    assert api.calls == []


def test_a_real_one_makes_a_private_repository_and_sends_those_files_alone(folder):
    (folder / "unet" / "token.txt").write_text("hf_canary")
    api = Recorder()
    push_to_hub(folder, "somebody/editor", dry_run=False, api=api)
    (made, where, options), (sent, _, what) = api.calls
    assert (made, where) == ("create_repo", ("somebody/editor",))
    assert options == {"private": True, "exist_ok": True}
    assert (sent, what["repo_id"]) == ("upload_folder", "somebody/editor")
    chosen = {p for pattern in what["allow_patterns"] for p in folder.glob(pattern)}
    assert "token.txt" not in {path.name for path in chosen}


def test_the_arguments_are_those_of_the_real_api():
    """A stand-in that takes anything would hide a renamed argument."""
    import inspect

    from huggingface_hub import HfApi

    used = {
        "create_repo": {"private", "exist_ok"},
        "upload_folder": {"repo_id", "folder_path", "allow_patterns", "commit_message"},
    }
    for name, arguments in used.items():
        assert arguments <= inspect.signature(getattr(HfApi, name)).parameters.keys()


def test_a_token_is_in_no_file_and_no_message(
    run, facts, tmp_path, monkeypatch, capsys
):
    canary = "hf_Q7wZ41canaryLp93Xv"
    monkeypatch.setenv("HF_TOKEN", canary)
    text = card(facts, name="An editor", license="mit")
    folder = save_editor(tmp_path / "editor", run[0], text)
    api = Recorder()
    push_to_hub(folder, "somebody/editor", dry_run=False, api=api)
    shown = [*capsys.readouterr(), repr(api.calls), text]
    assert not any(canary[3:] in words for words in shown)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not any(canary.encode() in path.read_bytes() for path in files)


def test_a_folder_without_an_editor_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no editor with its card"):
        push_to_hub(tmp_path, "somebody/editor", dry_run=True)
