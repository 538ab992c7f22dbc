"""LoRA against its formula and against peft's own use of it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.func import functional_call

from ip2p_lib.diffusion.lora import add_lora, count_parameters, lora_weights, merge_lora
from ip2p_lib.triplets.finetuning import completion_loss, encode, fine_tune
from tests.support.open_models import KINDS, TRIPLETS, new_model, new_tokenizer
from tests.support.some_lora import outputs, with_some_b, wraps

LAYER = {
    "gpt2": "transformer.h.1.mlp.c_fc",  # holds its weight as (in, out)
    "qwen2": "model.layers.1.mlp.up_proj",
    "llama": "model.layers.1.self_attn.q_proj",
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def rows(kind):
    return encode(new_tokenizer(kind), TRIPLETS)


@pytest.fixture
def model(kind):
    return new_model(kind, len(new_tokenizer(kind)))


def test_it_changes_nothing_before_the_first_step(kind, model, rows) -> None:
    before, state = outputs(model, rows), torch.random.get_rng_state()
    adapted = add_lora(model)
    assert adapted is model
    assert torch.equal(outputs(adapted, rows), before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_loss_and_its_gradients_are_those_of_the_formula(kind, model, rows) -> None:
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
def test_it_is_what_peft_makes_of_the_same_matrices(kind, model, rows) -> None:
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
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(outputs(merge_lora(model), rows), outputs(merged, rows))


def test_merged_it_is_a_plain_network_of_the_same_output(kind, model, rows) -> None:
    names, classes = set(model.state_dict()), {type(m) for m in model.modules()}
    before = outputs(with_some_b(add_lora(model)), rows)
    merge_lora(model)
    torch.testing.assert_close(outputs(model, rows), before, rtol=1e-5, atol=1e-5)
    assert set(model.state_dict()) == names
    assert {type(m) for m in model.modules()} == classes
    trained, everything = count_parameters(model)
    assert trained == everything


def test_a_begins_as_a_linear_layer_does_and_follows_the_seed(kind) -> None:
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


def test_only_the_matrices_are_trained(kind, model, rows) -> None:
    add_lora(model)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    list(fine_tune(model, *rows, learning_rate=1e-2, epochs=2))
    changed = {
        n for n, w in model.state_dict().items() if not torch.equal(w, before[n])
    }
    learnt = {n for n, p in model.named_parameters() if p.requires_grad}
    assert changed == learnt
    sizes = [w.numel() for w in lora_weights(model).values()]
    assert count_parameters(model)[0] == sum(sizes)


def test_matrices_are_taken_over_as_a_copy(kind, model, rows) -> None:
    first = with_some_b(add_lora(model))
    plain = new_model(kind, len(new_tokenizer(kind)))
    second = add_lora(plain, weights=lora_weights(first))
    before = outputs(first, rows)
    assert torch.equal(outputs(second, rows), before)
    list(fine_tune(second, *rows, learning_rate=1e-2))
    assert torch.equal(outputs(first, rows), before)


def test_layers_are_chosen_by_the_ends_of_their_names(tiny_backbone) -> None:
    """On a U-Net: any network will do."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(tiny_backbone.unet.config)
    unet.load_state_dict(tiny_backbone.unet.state_dict())
    latent, step = torch.ones(2, 4, 8, 8), torch.tensor([3, 7])
    text = torch.ones(2, 5, unet.config.cross_attention_dim)

    def noise():
        with torch.no_grad():
            return unet(latent, step, text).sample

    before = noise()
    add_lora(unet, targets=["to_q", "conv1"])
    assert {name.split(".")[-3] for name in lora_weights(unet)} == {"to_q", "conv1"}
    assert torch.equal(noise(), before)
    after = (with_some_b(unet), noise())[1]
    assert not torch.allclose(after, before, atol=1e-3)
    merge_lora(unet)
    torch.testing.assert_close(noise(), after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rank": 0}, "positive"),
        ({"targets": ["no_such_layer"]}, "no_such_layer"),
        ({"weights": {"nowhere": torch.zeros(2, 2)}}, "does not fit"),
    ],
)
def test_what_cannot_be_added_is_refused_and_the_model_left_plain(
    settings, problem: str
) -> None:
    model = new_model("qwen2", 300)
    names = set(model.state_dict())
    with pytest.raises(ValueError, match=problem):
        add_lora(model, **settings)
    assert set(model.state_dict()) == names
    with pytest.raises(ValueError, match="no LoRA to merge"):
        merge_lora(model)
    with pytest.raises(ValueError, match="LoRA already"):
        add_lora(add_lora(model))
