"""The training of the miniature's networks, at a size that learns in seconds."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import HELD_OUT, MODELS
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.miniature.corpus import build_corpus
from ip2p_lib.miniature.render import encode
from ip2p_lib.miniature.world import sample_scene
from ip2p_lib.rng import key, normal
from jobs.miniature import models, pretrain
from jobs.miniature.data import (
    encode_texts,
    object_weights,
    render_bytes,
    sample_corpus,
    to_unit,
    token_ids,
)
from jobs.miniature.loop import Budget, fit, follow
from jobs.miniature.losses import clip_loss, instruction_loss, unet_loss, vae_loss

CPU = torch.device("cpu")


def test_fit_learns_until_its_budget_is_spent():
    layer, target = torch.nn.Linear(4, 1), torch.arange(1.0, 5)

    def loss_of(step: int) -> torch.Tensor:
        x = normal(key("line", step), torch.arange(32), (4,))
        return (layer(x)[:, 0] - x @ target).square().mean()

    last = follow(fit(layer, loss_of, Budget(1.5, 0.1, warmup=1)), "line")
    assert last.seconds >= 1.5 and last.loss < 0.1


def test_a_loss_that_is_not_finite_stops_the_run():
    layer = torch.nn.Linear(4, 1)
    steps = fit(layer, lambda _: layer.weight.sum() / 0, Budget(9, 0.1))
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        next(steps)


def test_clip_prefers_the_right_images():
    corpus = build_corpus(0, 6)
    tokenizer = models.train_tokenizer(corpus.captions + corpus.instructions)
    images = render_bytes(torch.cat([corpus.before, corpus.after]), CPU)
    captions = [*corpus.captions, *corpus.edited_captions]
    ids = token_ids(tokenizer, captions, 48).long()
    instructions = token_ids(tokenizer, corpus.instructions, 48).long()
    clip = models.new_clip(tokenizer)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = clip_loss(clip, to_unit(images), ids, instructions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]  # 0.1 to 0.4 of it, by the random start


def test_new_instructions_are_learnt_and_captions_keep_their_states():
    n, corpus = 6, build_corpus(HELD_OUT, 6)
    clip = load_clip(MODELS / "miniature-clip", dtype=torch.float32)
    images = render_bytes(torch.cat([corpus.before, corpus.after]), CPU)
    before, after = clip.embed_images(to_unit(images)).chunk(2)
    change = torch.nn.functional.normalize(after - before, dim=-1)
    words = [f"{letter}q{letter}x" for letter in "abcdef"]  # of no language
    tower, teacher = clip.model.text_model, deepcopy(clip.model.text_model)
    tokens = token_ids(clip.tokenizer, [*corpus.captions, *words], 48).long().split(n)

    def matches():
        return int(
            ((clip.embed_texts(words) @ change.T).argmax(1) == torch.arange(n)).sum()
        )

    at_first = matches()
    optimizer = torch.optim.AdamW(tower.requires_grad_(True).parameters(), lr=5e-4)
    for _ in range(30):
        optimizer.zero_grad()
        instruction_loss(clip.model, teacher, change, *tokens).backward()
        optimizer.step()
    assert matches() == n > at_first
    states = (tower(input_ids=tokens[0]), teacher(input_ids=tokens[0]))
    now, then = (output.last_hidden_state for output in states)
    assert (now - then).square().mean() < 0.02 * then.square().mean()


def test_replaced_tokens_are_few_and_never_special_ones():
    tokenizer = load_clip(MODELS / "miniature-clip").tokenizer
    tokens = token_ids(tokenizer, build_corpus(0, 200).instructions, 77).long()
    ids, special = torch.arange(200), torch.tensor(tokenizer.all_special_ids)
    noisy = pretrain.replace_tokens(tokens, ids, 3, tokenizer)
    words = ~torch.isin(tokens, special)
    assert torch.equal(noisy[~words], tokens[~words])
    assert not torch.isin(noisy[words], special).any()
    assert (noisy != tokens)[words].float().mean() == pytest.approx(0.2, abs=0.04)
    again = pretrain.replace_tokens(tokens[7:9], ids[7:9], 3, tokenizer)
    assert torch.equal(again, noisy[7:9])


class Copy(torch.nn.Module):
    """An autoencoder whose decoder returns a given image at any size."""

    def __init__(self, image: torch.Tensor):
        super().__init__()
        self.encoder = lambda x: torch.zeros(len(x), 8, 32, 32)
        pool = torch.nn.functional.avg_pool2d
        self.decoder = lambda z: pool(image, 32 // z.shape[-1])
        self.quant_conv = self.post_quant_conv = torch.nn.Identity()


@pytest.mark.parametrize("half", [False, True])
def test_the_autoencoders_loss_is_smallest_for_a_perfect_copy(half: bool):
    x = torch.rand(2, 3, 128, 128) * 2 - 1
    noise = torch.zeros(2, 4, 32, 32)
    right = vae_loss(Copy(x), x, noise, half)  # type: ignore[arg-type]
    wrong = vae_loss(Copy(x + 0.1), x, noise, half)  # type: ignore[arg-type]
    assert right == pytest.approx(0, abs=1e-6) and wrong > 0.05


def test_token_ids_are_the_tokenizers_own():
    texts = build_corpus(0, 50).captions
    tokenizer = models.train_tokenizer(texts)
    expected = tokenizer(texts, padding="max_length", max_length=77).input_ids
    assert token_ids(tokenizer, texts, 77).tolist() == expected


@pytest.mark.slow
def test_a_corpus_sampled_by_several_processes_is_the_same():
    one, several = build_corpus(5, 2100), sample_corpus(5, 2100)
    assert torch.equal(one.before, several.before)
    assert torch.equal(one.after, several.after)
    assert one.captions == several.captions
    assert one.instructions == several.instructions


def test_a_step_of_the_unet_learns_from_stored_latents_and_texts():
    corpus = build_corpus(0, 4)
    tokenizer = models.train_tokenizer(corpus.captions)
    states = encode_texts(
        models.new_clip(tokenizer), tokenizer, [*corpus.captions, ""], CPU
    )
    latents = normal(key("latents"), torch.arange(4), (4, 32, 32)).half()
    unet = models.new_unet()
    weights = object_weights(corpus.before, models.LATENT)
    loss_of = pretrain._unet_objective(unet, latents, states, weights, 2)
    start = unet.conv_in.weight.detach().clone()
    assert follow(fit(unet, loss_of, Budget(0.01, 1e-4, warmup=1)), "unet").step == 1
    assert not torch.equal(unet.conv_in.weight, start)


def test_objects_weigh_more_than_their_surroundings():
    scenes = [sample_scene(seed) for seed in range(40)]
    weights = object_weights(encode(scenes), 32)
    assert set(weights.unique().tolist()) == {1, 4}
    for scene, weight in zip(scenes, weights, strict=True):
        alone = replace(scene, things=scene.things[:1])
        thing = scene.things[0]
        row, column = (thing.base - thing.size // 2) // 4, thing.x // 4
        assert weight[row, column] == 4 and weight[0, 16] == 1
        area = (object_weights(encode([alone]), 32) == 4).sum() * 16
        inside = thing.size * min(thing.size, thing.size // 2 + 128 - thing.x)
        assert area == pytest.approx(inside, rel=0.2)


def test_weights_of_positions_do_not_change_the_scale_of_the_loss():
    shape, ids = (4, 4, 32, 32), torch.arange(4)
    guess = normal(key("guess"), ids, shape[1:])
    schedule, zeros = Schedule.scaled_linear(), torch.zeros(shape)
    losses = [
        unet_loss(lambda *_, **__: (guess,), schedule, zeros, zeros, weights, ids, 0)
        for weights in (torch.ones(4, 32, 32), torch.full((4, 32, 32), 4.0))
    ]
    torch.testing.assert_close(losses[0], losses[1])
