"""An adapter's files bring it back, know their base, and are opened by peft."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from ip2p_lib.config import Source
from ip2p_lib.diffusion.adapters import (
    SETTINGS,
    WEIGHTS,
    identify,
    load_lora,
    save_lora,
)
from ip2p_lib.diffusion.lora import add_lora, count_parameters, lora_weights, merge_lora
from ip2p_lib.triplets.finetuning import encode, fine_tune
from ip2p_lib.triplets.loading import load_language_model
from tests.support.open_models import (
    KINDS,
    TRIPLETS,
    new_model,
    new_tokenizer,
    save_open_model,
)
from tests.support.some_lora import outputs, with_some_b, wraps


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / request.param
    return save_open_model(folder, request.param)


@pytest.fixture(scope="module")
def rows(base):
    return encode(new_tokenizer(base.name), TRIPLETS)


@pytest.fixture
def trained(base):
    """A model loaded from disk, with LoRA that has learnt something."""
    model = load_language_model(base, device="cpu").model
    return with_some_b(add_lora(model, rank=4, alpha=6))


def test_an_adapter_is_small_and_brings_everything_back(
    base, trained, rows, tmp_path
) -> None:
    folder = save_lora(trained, tmp_path / "adapter", base)
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, SETTINGS}
    stored = load_file(folder / WEIGHTS)
    assert sum(w.numel() for w in stored.values()) == count_parameters(trained)[0]
    back = load_language_model(base, folder, device="cpu").model
    assert torch.equal(outputs(back, rows), outputs(trained, rows))
    list(fine_tune(back, *rows))  # and it goes on learning
    assert not torch.equal(outputs(back, rows), outputs(trained, rows))


@wraps
def test_peft_opens_an_adapter_as_its_own(base, trained, rows, tmp_path) -> None:
    folder = save_lora(trained, tmp_path, base)
    plain = load_language_model(base, device="cpu").model
    theirs = PeftModel.from_pretrained(plain, folder)
    assert torch.equal(outputs(theirs, rows), outputs(trained, rows))


def test_an_adapter_names_its_base_but_no_place(base, trained, tmp_path) -> None:
    hub = Source("maker/model", "0123abc")
    for source in (base, str(base), Source(str(base)), hub):
        folder = save_lora(trained, tmp_path / "adapter", source)
        text = (folder / SETTINGS).read_text()
        data = (folder / WEIGHTS).read_bytes()
        assert str(base.parent) not in text and str(base.parent).encode() not in data
    found = json.loads(text)
    assert (found["base_model_name_or_path"], found["revision"]) == (
        "maker/model",
        "0123abc",
    )


def test_a_base_is_known_by_its_weights_wherever_they_are(
    base, trained, tmp_path
) -> None:
    moved = shutil.copytree(base, tmp_path / "moved")
    adapter = save_lora(trained, tmp_path / "adapter", base)
    load_language_model(moved, adapter, device="cpu")
    other = save_open_model(tmp_path / "other", "qwen2", seed=1)
    assert identify(moved) == identify(base) != identify(other)
    with pytest.raises(ValueError, match="was trained on sha256"):
        load_language_model(other, adapter, device="cpu")


def test_a_model_of_another_width_is_refused(tmp_path) -> None:
    base = save_open_model(tmp_path / "base", "qwen2")
    model = add_lora(load_language_model(base, device="cpu").model)
    adapter = save_lora(model, tmp_path / "adapter", base)
    with pytest.raises(ValueError, match=r"is \(8, 32\) and should be \(8, 64\)"):
        load_lora(new_model("qwen2", 300, hidden_size=64), adapter, base)


def test_an_adapter_that_is_not_whole_is_refused(base, trained, tmp_path) -> None:
    def load():
        return load_language_model(base, tmp_path / "adapter", device="cpu")

    with pytest.raises(FileNotFoundError, match="no adapter in"):
        load()
    folder = save_lora(trained, tmp_path / "adapter", base)
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | {"lora_alpha": 60}))
    with pytest.raises(ValueError, match="not of one saving"):
        load()
    save_lora(trained, folder, base)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load()


def test_an_adapter_is_not_saved_where_it_would_do_harm(base, trained) -> None:
    with pytest.raises(ValueError, match="holds a model"):
        save_lora(trained, base, base)
    with pytest.raises(ValueError, match="no LoRA to save"):
        save_lora(merge_lora(trained), base, base)
    with pytest.raises(FileNotFoundError, match="no safetensors"):
        identify(base.parent)


def test_half_of_the_bytes_are_nearly_the_same_adapter(base, tmp_path):
    model = add_lora(load_language_model(base, device="cpu").model)
    with torch.no_grad():
        for weight in lora_weights(model).values():
            weight.add_(0.01)
    sizes = [
        (save_lora(model, tmp_path / name, base, dtype=dtype) / WEIGHTS).stat().st_size
        for name, dtype in (("whole", torch.float32), ("half", torch.float16))
    ]
    assert sizes[1] < 0.6 * sizes[0]
    back = load_language_model(base, tmp_path / "half", device="cpu").model
    for name, weight in lora_weights(back).items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, lora_weights(model)[name], rtol=0, atol=1e-3)
