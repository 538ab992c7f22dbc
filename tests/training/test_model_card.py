"""A card tells what the run was, and the editor beside it opens as the card says."""

import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from PIL import Image
from torch import nn

from ip2p_lib.config import Source
from ip2p_lib.training.model_card import (
    RunSummary,
    model_card,
    push_to_hub,
    save_editor,
)
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import start, train
from ip2p_lib.training.validation import ValidationResult
from tests.support.small_training import LATENTS, SCHEDULE, SETTINGS

HUB = Source("stable-diffusion-v1-5/stable-diffusion-v1-5", "a" * 40)
RESULTS = [ValidationResult(0, 0.99, 0.01), ValidationResult(6, 0.8765, 0.4321)]
PROVENANCE = {"commit": "b" * 40, "device": "cpu", "versions": {"torch": "2.11"}}


@pytest.fixture(scope="module")
def run(tiny_backbone):
    """A trained state, and what its steps gave by bin."""
    state = start(widen_conv_in(tiny_backbone.unet), SETTINGS)
    steps = train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=7)
    return state, torch.stack([step.bins for step in steps])


@pytest.fixture
def summary(run):
    return RunSummary(
        HUB, "pairs/sample", 1234, SETTINGS, 7, run[1], RESULTS, 3, 1.5, PROVENANCE
    )


def header_of(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_is_what_the_hub_reads(summary):
    link = "https://example.org/licence"
    header = header_of(
        model_card(summary, name="An editor", license="other", license_link=link)
    )
    assert header["base_model"] == HUB.path_or_id
    assert header["library_name"] == "diffusers"
    assert header["pipeline_tag"] == "image-to-image"
    assert (header["license"], header["license_link"]) == ("other", link)


def test_every_number_is_the_runs(summary, run):
    text = model_card(summary, name="An editor", license="mit")
    sums, counts = run[1].double().sum(0)
    rows = {
        "steps": "6 of 6 of 4 examples",
        "data": "pairs/sample, 1,234 pairs",
        "run seed": "7",
        "learning rate": "0.001, warm-up 4",
        "conditioning dropout": "5% text, both, image each",
        "base revision": HUB.revision,
        "commit": PROVENANCE["commit"],
        "torch": "2.11",
        "6": "0.8765, 0.4321",
    }
    for name, value in rows.items():
        assert f"| {name} | {value} |" in text
    whole = replace(summary, bins=run[1].sum(0, keepdim=True))
    for mean in sums / counts:
        assert f"| {mean:.4f} |" in model_card(whole, name="An editor", license="mit")


def test_a_folder_on_this_machine_is_named_and_not_located(summary):
    local = replace(summary, base=Source("/data/somebody/models/miniature-sd"))
    text = model_card(local, name="An editor", license="mit")
    assert "`miniature-sd`" in text and "| base revision | none |" in text
    assert "somebody" not in text and "base_model" not in header_of(text)


def test_a_run_without_validation_has_no_results(summary):
    text = model_card(replace(summary, validation=[]), name="An editor", license="mit")
    assert "no validation" in text


def test_what_cannot_be_reported_is_refused(summary):
    with pytest.raises(ValueError, match="license_link"):
        model_card(summary, name="An editor", license="other")
    with pytest.raises(ValueError, match="no step yet"):
        model_card(
            replace(summary, bins=summary.bins[:0]), name="An editor", license="mit"
        )


@pytest.fixture
def folder(run, summary, tmp_path):
    text = model_card(summary, name="An editor", license="mit")
    return save_editor(tmp_path / "editor", run[0], text)


def test_the_saved_editor_is_the_average_and_the_run_goes_on(run, folder):
    from diffusers import UNet2DConditionModel

    state = run[0]
    saved = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    for name, weight in state.ema.weights.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-3, atol=1e-4)
    assert next(state.unet.parameters()).dtype == torch.float32
    assert {path.name for path in folder.iterdir()} == {"README.md", "unet"}


def test_the_lines_of_the_card_load_and_edit(summary, folder, tiny_sd_folder, tmp_path):
    """Stock diffusers, by the very lines that the card gives."""
    text = model_card(summary, name="An editor", license="mit")
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


@pytest.fixture
def calls(monkeypatch):
    """What is asked of ``huggingface_hub.HfApi``, by its own signatures."""
    calls = {}
    for name in ("create_repo", "upload_folder"):
        method = create_autospec(getattr(HfApi, name))
        calls[name] = method
        monkeypatch.setattr(HfApi, name, method)
    return calls


def test_a_dry_run_lists_the_files_and_calls_nobody(folder, calls):
    files = push_to_hub(folder, "somebody/editor", dry_run=True)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert files == ["README.md", "unet/config.json", weights]
    assert not any(method.called for method in calls.values())


def test_an_upload_makes_a_private_repository_of_those_files_alone(folder, calls):
    (folder / "unet" / "token.txt").write_text("hf_canary")
    push_to_hub(folder, "somebody/editor", dry_run=False)
    (made,), (uploaded,) = (m.call_args_list for m in calls.values())
    assert made.args[1:] == ("somebody/editor",) and made.kwargs["private"]
    assert uploaded.kwargs["repo_id"] == "somebody/editor"
    patterns = uploaded.kwargs["allow_patterns"]
    chosen = {path.name for pattern in patterns for path in folder.glob(pattern)}
    assert "README.md" in chosen and "token.txt" not in chosen


def test_a_folder_without_an_editor_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no editor with its card"):
        push_to_hub(tmp_path, "somebody/editor", dry_run=True)
