"""A card tells what the run was, and the editor beside it opens as the card says."""

import re
from unittest.mock import create_autospec

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from PIL import Image

from ip2p_lib.config import ROOT, Editing, Source, preset
from ip2p_lib.editing import load_editor
from ip2p_lib.training.model_card import model_card, push_to_hub, save_editor
from ip2p_lib.training.state import TrainState
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import train
from ip2p_lib.training.validation import ValidationResult
from tests.support.small_training import LATENTS, SCHEDULE, SETTINGS

HUB = Source("stable-diffusion-v1-5/stable-diffusion-v1-5", "a" * 40)
RESULT = ValidationResult(6, 0.8765, 0.4321)
EDITING = Editing(20, 3.0, 1.5, "dpm_solver_pp")
PROVENANCE = {"commit": "b" * 40, "device": "cpu", "versions": {"torch": "2.11"}}


@pytest.fixture(scope="module")
def run(tiny_backbone):
    """A trained state."""
    state = TrainState.create(widen_conv_in(tiny_backbone.unet), SETTINGS)
    list(train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=7))
    return state


@pytest.fixture
def text(run):
    rows = {"data": "pairs/sample", "run_seed": 7, "validation": RESULT}
    rows |= vars(SETTINGS) | PROVENANCE
    return model_card("An editor", rows, base=HUB, editing=EDITING, license="mit")


def header_of(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_says_what_the_run_was(text):
    header = header_of(text)
    assert (header["base_model"], header["license"]) == (HUB.path_or_id, "mit")
    assert header["pipeline_tag"] == "image-to-image"
    rows = {
        "data": "pairs/sample",
        "run seed": "7",
        "learning rate": "0.001",
        "drop": "0.05",
        "base revision": HUB.revision,
        "commit": PROVENANCE["commit"],
        "torch": "2.11",
    }
    similarities = "CLIP image similarity 0.8765, directional similarity 0.4321"
    rows["validation"] = f"after step 6 {similarities}"
    for name, value in rows.items():
        assert f"| {name} | {value} |" in text


def test_a_folder_on_this_machine_is_named_and_not_located():
    local = Source("/data/somebody/models/miniature-sd")
    text = model_card("An editor", {}, base=local, editing=EDITING, license="mit")
    assert "`miniature-sd`" in text and "| base revision | none |" in text
    assert "somebody" not in text and "base_model" not in header_of(text)


def run_the_cards_lines(text, folder, size):
    """Run the Python that a card gives, and return its names."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    call = '"make it winter", num_inference_steps=2, output_type="pil"'
    code = code.replace("FOLDER", str(folder)).replace('"make it winter"', call)
    names = {"image": Image.new("RGB", (size, size), "green")}
    exec(code, names)
    assert names["edited"].size == (size, size)
    assert names["pipe"].unet.config.in_channels == 8


def test_the_lines_run_at_the_repositorys_root_on_the_miniature(tmp_path, monkeypatch):
    """Nothing is downloaded."""
    editor, scale = load_editor("miniature", device="cpu"), preset("miniature")
    editor.backbone.unet.save_pretrained(tmp_path / "unet")
    options = {"base": scale.backbone, "editing": EDITING, "license": "x"}
    monkeypatch.chdir(ROOT)
    run_the_cards_lines(model_card("An editor", {}, **options), tmp_path, 128)


@pytest.fixture
def folder(run, text, tmp_path):
    return save_editor(tmp_path / "editor", run, text)


def test_the_saved_editor_is_the_average_and_the_run_goes_on(run, folder):
    from diffusers import UNet2DConditionModel

    state = run
    saved = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    for name, weight in state.ema.weights.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-3, atol=1e-4)
    assert next(state.unet.parameters()).dtype == torch.float32
    assert {path.name for path in folder.iterdir()} == {"README.md", "unet"}


def test_the_lines_of_the_card_load_and_edit(text, folder, tiny_sd_folder):
    """Stock diffusers, by the very lines that the card gives."""
    run_the_cards_lines(text.replace(HUB.path_or_id, str(tiny_sd_folder)), folder, 64)


def test_an_older_editor_gives_way_and_other_files_do_not(run, folder, tmp_path):
    save_editor(folder, run, "a newer card")
    assert (folder / "README.md").read_text() == "a newer card"
    (folder / "unet" / ".ip2p").unlink()  # then the editor may be anybody's
    with pytest.raises(FileExistsError, match="not empty"):
        save_editor(folder, run, "a third card")
    assert (folder / "README.md").read_text() == "a newer card"


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
