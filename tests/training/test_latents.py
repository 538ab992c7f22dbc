"""Stored latents equal the encoders' output, and steps meet every example once."""

from dataclasses import replace

import pytest
import torch

from ip2p_lib.training.latents import gather_batch, sample_ids_of_step, store_latents

CAT, DOG = "make it a cat", "turn the dog"
INSTRUCTIONS = [CAT, DOG, DOG, CAT, "turn"]


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 5, 3, 64, 64, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def latents(tiny_backbone, pictures):
    before, after = pictures
    batches = [(before[:2], after[:2]), (before[2:], after[2:])]
    return store_latents(tiny_backbone, batches, INSTRUCTIONS, dtype=torch.float32)


def test_what_is_stored_is_what_the_encoders_say_of_both_flips(
    tiny_backbone, pictures, latents
):
    before, after = pictures
    mean, logvar = tiny_backbone.encode_moments(after)
    mirrored = tiny_backbone.encode_moments(after.flip(-1))[0]
    assert torch.allclose(latents.target_mean[:, 0], mean, atol=1e-5)
    assert torch.allclose(latents.target_logvar[:, 0], logvar, atol=1e-5)
    assert torch.allclose(latents.target_mean[:, 1], mirrored, atol=1e-5)
    assert torch.allclose(
        latents.condition[:, 0], tiny_backbone.encode(before), atol=1e-5
    )
    assert not torch.allclose(mirrored, mean.flip(-1), atol=1e-3), (
        "flipping latents would have been good enough"
    )
    text = latents.text[latents.text_row]
    assert len(latents.text) == 3, "each instruction is encoded once"
    assert torch.allclose(text, tiny_backbone.encode_text(INSTRUCTIONS), atol=1e-5)
    assert len(latents) == 5 and latents.scaling_factor == tiny_backbone.scaling_factor


def test_images_are_not_mirrored_where_the_instruction_names_a_side(
    tiny_backbone, pictures
):
    texts = ["The left one is red", "make it bright", "turn upright", "去掉右边的", "x"]
    before, after = pictures
    stored = store_latents(tiny_backbone, [(before, after)], texts, dtype=torch.float32)
    for name in ("condition", "target_mean", "target_logvar"):
        plain, mirrored = getattr(stored, name).unbind(1)
        same = (plain == mirrored).flatten(1).all(1)
        assert same.tolist() == [True, False, False, True, False], name
    assert torch.allclose(
        stored.condition[:, 0], tiny_backbone.encode(before), atol=1e-5
    )
    one = store_latents(tiny_backbone, [(before, after)], texts, flips=False)
    assert one.condition.shape[1] == 1


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (10, 10), (3, 7), (7, 1)])
def test_every_epoch_meets_every_example_once_in_another_order(n, batch):
    steps = [sample_ids_of_step(1, step, batch, n) for step in range(2 * n)]
    sample_ids = torch.cat(steps)
    assert {len(v) for v in steps} == {batch}
    assert len(sample_ids.unique()) == len(sample_ids), "a sample_id happened twice"
    epochs = (sample_ids[: 2 * n] % n).reshape(2, n)
    assert torch.equal(epochs.sort(1).values, torch.arange(n).expand(2, n))
    assert n == 3 or not torch.equal(epochs[0], epochs[1])
    assert n == 3 or not torch.equal(sample_ids_of_step(2, 0, batch, n), steps[0])


def test_a_batch_gathers_matching_rows_and_the_same_flip_everywhere(latents):
    sample_ids = torch.arange(200)
    batch = gather_batch(latents, sample_ids, run_seed=1, step=0, device="cpu")
    rows = sample_ids % 5
    flipped = (batch.condition != latents.condition[rows, 0]).flatten(1).any(1).long()
    for name in ("condition", "target_mean", "target_logvar"):
        assert torch.equal(getattr(batch, name), getattr(latents, name)[rows, flipped])
    assert 60 < flipped.sum() < 140, "flips are not even"
    assert torch.equal(batch.text, latents.text[latents.text_row[rows]])


def test_token_ids_are_encoded_when_a_batch_is_made(tiny_backbone, latents):
    ids = tiny_backbone.tokenize([CAT, DOG, "turn"])

    def encode(tokens):
        return tiny_backbone.text_encoder(tokens).last_hidden_state

    stored = {"run_seed": 1, "step": 0, "device": "cpu"}
    sample_ids, tokens = torch.arange(5), replace(latents, text=ids)
    by_ids = gather_batch(tokens, sample_ids, encode=encode, **stored)
    expected = gather_batch(latents, sample_ids, **stored)
    assert torch.allclose(by_ids.text, expected.text, atol=1e-5)
    assert not by_ids.text.requires_grad
