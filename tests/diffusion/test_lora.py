"""LoRA against its formula and against peft; its files know the base they belong to."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.func import functional_call

from ip2p_lib.diffusion.lora import (
    CONFIG,
    WEIGHTS,
    add_lora,
    count_parameters,
    identify_base,
    lora_weights,
    merge_lora,
    save_lora,
)
from ip2p_lib.rng import key, uniform
from ip2p_lib.triplets.finetuning import completion_loss, fine_tune, tokenize_triplets
from ip2p_lib.triplets.loading import load_language_model
from tests.support.open_models import (
    TRIPLETS,
    new_model,
    new_tokenizer,
    save_open_model,
)

# peft's own wrapper asks transformers for an attribute by its old name.
wraps = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
LAYER = {
    "gpt2": "transformer.h.1.mlp.c_fc",  # holds its weight as (in, out)
    "llama": "model.layers.1.self_attn.q_proj",
}


def with_some_b(model):
    """Move B away from zero, as training does."""
    for name, weight in lora_weights(model).items():
        ids = torch.arange(len(weight))
        draw = uniform(key("test", name), ids, tuple(weight.shape[1:])) - 0.5
        weight.data += 0.2 * draw.to(weight) * (".lora_B." in name)
    return model


def outputs(model, rows):
    with torch.no_grad():
        return model(input_ids=rows[0]).logits


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def rows(kind):
    return tokenize_triplets(new_tokenizer(kind), TRIPLETS)


@pytest.fixture
def model(kind):
    return new_model(kind, len(new_tokenizer(kind)))


def test_it_changes_nothing_before_the_first_step(kind, model, rows):
    before, state = outputs(model, rows), torch.random.get_rng_state()
    adapted = add_lora(model)
    assert adapted is model
    assert torch.equal(outputs(adapted, rows), before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_loss_and_its_gradients_are_those_of_the_formula(kind, model, rows):
    """W + (alpha / r) B A, written out in float64 on one layer of the plain network."""
    plain = new_model(kind, len(new_tokenizer(kind))).double()
    add_lora(model, rank=3, alpha=5, targets=[LAYER[kind]])
    with_some_b(model).double()
    a, b = (w.detach().clone().requires_grad_() for w in lora_weights(model).values())
    name = f"{LAYER[kind]}.weight"
    delta = 5 / 3 * b @ a
    weight = plain.get_parameter(name) + (delta.T if kind == "gpt2" else delta)

    class Replaced(torch.nn.Module):
        def forward(self, tokens):
            return functional_call(plain, {name: weight}, kwargs={"input_ids": tokens})

    tokens, labels = rows
    logits = Replaced()(tokens).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten()
    )
    expected.backward()
    loss = completion_loss(model, *rows)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for ours, theirs in zip(lora_weights(model).values(), (a, b), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-10)


@wraps
def test_it_is_what_peft_makes_of_the_same_matrices(kind, model, rows):
    """Layers chosen, scale and merging, against ``get_peft_model``."""
    plain, transposed = new_model(kind, len(new_tokenizer(kind))), kind == "gpt2"
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", fan_in_fan_out=transposed
    )
    theirs = get_peft_model(plain, config)
    ours = lora_weights(with_some_b(add_lora(model, rank=4, alpha=6)))
    pairs = {
        name.removeprefix("base_model.model.").replace(".default.", "."): weight
        for name, weight in theirs.named_parameters()
        if ".lora_" in name
    }
    assert ours.keys() == pairs.keys()
    for name, weight in ours.items():
        pairs[name].data.copy_(weight.data)
    torch.testing.assert_close(outputs(model, rows), outputs(theirs, rows))
    merged, plain = theirs.merge_and_unload(), new_model(kind, model.config.vocab_size)
    torch.testing.assert_close(outputs(merge_lora(model), rows), outputs(merged, rows))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert {*map(type, model.modules())} == {*map(type, plain.modules())}


def test_a_begins_as_a_linear_layer_does_and_follows_the_seed(kind):
    def matrices(**settings) -> dict[str, torch.Tensor]:
        fresh = add_lora(new_model(kind, 300), rank=64, **settings)
        return {name: w.detach() for name, w in lora_weights(fresh).items()}

    first, again, other = matrices(), matrices(), matrices(run_seed=1)
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        if ".lora_B." in name:
            assert not weight.any()
            continue
        bound = weight.shape[1] ** -0.5
        assert 0.98 * bound < float(weight.abs().max()) <= bound
        # A uniform variable's deviation, give or take six times that of an estimate.
        margin = 6 * 0.45 / weight.numel() ** 0.5
        assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=margin)
        assert not torch.equal(weight, other[name])


# ------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def base(kind, tmp_path_factory):
    return save_open_model(tmp_path_factory.mktemp("hub") / kind, kind)


@pytest.fixture
def trained(base):
    """A model loaded from disk, with LoRA that has learnt something."""
    model = load_language_model(base, device="cpu").model
    return with_some_b(add_lora(model, rank=4, alpha=6))


def test_an_adapter_is_small_and_brings_everything_back(base, trained, rows, tmp_path):
    folder = save_lora(trained, tmp_path / "adapter", base)
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CONFIG}
    stored = load_file(folder / WEIGHTS)
    assert sum(w.numel() for w in stored.values()) == count_parameters(trained)[0]
    back = load_language_model(base, folder, device="cpu").model
    assert torch.equal(outputs(back, rows), outputs(trained, rows))
    list(fine_tune(back, *rows))  # and it goes on learning
    assert not torch.equal(outputs(back, rows), outputs(trained, rows))


def test_a_base_is_known_by_its_weights_wherever_they_are(base, trained, tmp_path):
    moved = shutil.copytree(base, tmp_path / "moved")
    adapter = save_lora(trained, tmp_path / "adapter", base)
    load_language_model(moved, adapter, device="cpu")
    other = save_open_model(tmp_path / "other", "qwen2", seed=1)
    assert identify_base(moved) == identify_base(base) != identify_base(other)
    assert str(base.parent) not in (adapter / CONFIG).read_text()
    with pytest.raises(ValueError, match=r"was trained on .*sha256"):
        load_language_model(other, adapter, device="cpu")


def test_an_adapter_that_is_not_whole_is_refused(base, trained, tmp_path):
    def load():
        return load_language_model(base, tmp_path / "adapter", device="cpu")

    with pytest.raises(FileNotFoundError, match="No adapter"):
        load()
    folder = save_lora(trained, tmp_path / "adapter", base)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(SafetensorError):
        load()


def test_an_adapter_is_not_saved_where_it_would_do_harm(base, trained):
    with pytest.raises(FileExistsError):
        save_lora(trained, base, base)
