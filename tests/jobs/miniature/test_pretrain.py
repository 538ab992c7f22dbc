"""The stages of pretraining, at a size that learns something in seconds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.miniature.corpus import build_corpus
from ip2p_lib.miniature.render import encode
from ip2p_lib.miniature.world import sample_scene
from ip2p_lib.rng import key, normal
from jobs.miniature import compile_ahead as rehearsal
from jobs.miniature import models
from jobs.miniature.loop import Budget, fit
from jobs.miniature.losses import clip_loss, decoder_loss, unet_loss, vae_loss
from jobs.miniature.pretrain import follow
from jobs.miniature.stages import (
    Stage,
    render_bank,
    to_bytes,
    to_unit,
    token_ids,
    train_decoder,
)
from jobs.miniature.unet_stage import (
    Pictures,
    object_cells,
    store_text,
    train_unet,
)


def _line(width: int = 4) -> tuple[torch.nn.Module, torch.Tensor]:
    layer = torch.nn.Linear(width, 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(0.1)
    return layer, torch.arange(1.0, width + 1)


def test_fitting_learns_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    layer, wanted = _line()

    def loss_of(step: int) -> torch.Tensor:
        x = normal(key("line", step), torch.arange(32), (4,))
        return (layer(x)[:, 0] - x @ wanted).square().mean()

    first = follow(fit(layer, loss_of, Budget(1.0, 0.1, warmup=1), tmp_path), "", _hush)
    weights = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.zero_()
    again = fit(layer, loss_of, Budget(1.5, 0.1, warmup=1), tmp_path)
    assert next(again).step == first.step + 1
    torch.testing.assert_close(layer.weight, weights, rtol=0, atol=0.5)
    last = follow(again, "", _hush)
    assert last.seconds >= 1.5 and last.loss < 0.1


def test_what_is_remembered_of_a_weight_stays_with_it(tmp_path: Path) -> None:
    """A file is contiguous, a network on a GPU is not: its layout must come back."""
    network = torch.nn.Conv2d(3, 4, 3, bias=False)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = torch.nn.init.zeros_(network.weight)
    follow(fit(network, lambda _: weight[0, 1, 2, 2], Budget(0.1, 0.1), tmp_path), "")
    next(fit(network, lambda _: 0 * weight.sum(), Budget(9, 0.1), tmp_path))
    assert (weight != 0).nonzero().tolist() == [[0, 1, 2, 2]]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    layer, _ = _line()
    steps = fit(layer, lambda _: layer.weight.sum() / 0, Budget(9, 0.1), tmp_path)
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        next(steps)


def test_clip_prefers_the_right_pictures() -> None:
    corpus = build_corpus(0, 6)
    tokenizer = models.train_tokenizer(corpus.captions + corpus.instructions)
    bank = render_bank(torch.cat([corpus.before, corpus.after]), torch.device("cpu"))
    captions = [*corpus.captions, *corpus.edited_captions]
    ids = token_ids(tokenizer, captions, 48).long()
    instructions = token_ids(tokenizer, corpus.instructions, 48).long()
    clip = models.new_clip(tokenizer)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = clip_loss(clip, to_unit(bank), ids, instructions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]  # 0.1 to 0.4 of it, by the random start


def test_the_vaes_loss_is_smallest_for_a_perfect_copy() -> None:
    class Copy(torch.nn.Module):
        """An autoencoder whose decoder knows the answer."""

        def __init__(self, answer: torch.Tensor) -> None:
            super().__init__()
            self.encoder = lambda x: torch.zeros(len(x), 8, 16, 16)
            self.decoder = lambda z: answer
            self.quant_conv = self.post_quant_conv = torch.nn.Identity()

    x = torch.rand(2, 3, 128, 128) * 2 - 1
    noise = torch.zeros(2, 4, 16, 16)
    right = vae_loss(Copy(x), x, noise)  # type: ignore[arg-type]
    wrong = vae_loss(Copy(x + 0.1), x, noise)  # type: ignore[arg-type]
    assert right == pytest.approx(0, abs=1e-6) and wrong > 0.05


def test_token_ids_are_the_tokenizers_own() -> None:
    texts = build_corpus(0, 50).captions
    tokenizer = models.train_tokenizer(texts)
    expected = tokenizer(texts, padding="max_length", max_length=77).input_ids
    assert token_ids(tokenizer, texts, 77).tolist() == expected


def test_bytes_and_units_are_inverse() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit(levels)), levels)


def _pictures() -> Pictures:
    corpus = build_corpus(0, 4)
    tokenizer = models.train_tokenizer(corpus.captions)
    clip, device = models.new_clip(tokenizer), torch.device("cpu")
    return Pictures(
        normal(key("latents"), torch.arange(4), (4, 16, 16)).half(),
        object_cells(corpus.before),
        store_text(clip, tokenizer, corpus.captions, device),
        store_text(clip, tokenizer, [""], device),
    )


def test_the_unet_is_rehearsed_and_goes_on_from_its_weights(tmp_path: Path) -> None:
    unet, cpu = models.new_unet(), torch.device("cpu")
    before = unet.conv_in.weight.detach().clone()
    assert rehearsal.begin(unet, 2, cpu).result() > 0
    assert torch.equal(unet.conv_in.weight, before) and unet.conv_in.weight.grad is None
    stage = Stage(Budget(0.01, 1e-4, warmup=1), batch=2)
    progress = train_unet(unet, _pictures(), stage, tmp_path)
    assert follow(progress, "", _hush).step == 1
    assert not torch.equal(unet.conv_in.weight, before)


def test_objects_weigh_more_than_their_surroundings() -> None:
    scenes = [sample_scene(seed) for seed in range(40)]
    cells = object_cells(encode(scenes))
    assert set(cells.unique().tolist()) == {1, 4}
    for scene, weight in zip(scenes, cells, strict=True):
        alone = replace(scene, things=scene.things[:1])
        thing = scene.things[0]
        row, column = (thing.base - thing.size // 2) // 8, thing.x // 8
        assert weight[row, column] == 4 and weight[0, 8] == 1
        area = (object_cells(encode([alone])) == 4).sum() * 64
        inside = thing.size * min(thing.size, thing.size // 2 + 128 - thing.x)
        assert area == pytest.approx(inside, rel=0.35)


def test_weights_of_places_do_not_change_the_scale_of_the_loss() -> None:
    shape, ids = (4, 4, 16, 16), torch.arange(4)
    guess = normal(key("guess"), ids, shape[1:])
    schedule, zeros = Schedule.scaled_linear(), torch.zeros(shape)
    losses = [
        unet_loss(lambda *_, **__: (guess,), schedule, zeros, zeros, cells, ids, 0)
        for cells in (torch.ones(4, 16, 16), torch.full((4, 16, 16), 4.0))
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_the_critic_sharpens_the_decoder_and_leaves_latents_alone(
    tmp_path: Path,
) -> None:
    bank = render_bank(build_corpus(0, 4).before, torch.device("cpu"))
    vae = models.new_vae()
    encoder = {k: v.clone() for k, v in vae.encoder.state_dict().items()}
    decoder = vae.decoder.conv_out.weight.detach().clone()
    stage = Stage(Budget(0.01, 1e-3, warmup=1), batch=2)
    follow(train_decoder(vae, bank, stage, tmp_path), "", _hush)
    same = (torch.equal(v, encoder[k]) for k, v in vae.encoder.state_dict().items())
    assert all(same)
    assert not torch.equal(vae.decoder.conv_out.weight, decoder)


def test_the_critics_pull_is_the_share_it_is_given() -> None:
    """At the picture, gradients of the two terms have the lengths asked for."""

    class Open(torch.nn.Module):
        """An autoencoder whose output is its only weight."""

        def __init__(self, out: torch.Tensor) -> None:
            super().__init__()
            self.out = torch.nn.Parameter(out)
            self.encoder = lambda x: torch.zeros(len(x), 8, 16, 16)
            self.decoder = lambda z: self.out
            self.quant_conv = self.post_quant_conv = torch.nn.Identity()

    ids = torch.arange(1)
    x, out = (normal(key(name), ids, (3, 128, 128)) / 3 for name in "xy")
    critic = torch.nn.Conv2d(3, 1, 4, 4)

    def pull(share: float) -> torch.Tensor:
        vae, noise = Open(out), torch.zeros(1, 4, 16, 16)
        loss = decoder_loss(vae, critic, x, noise, share)  # type: ignore[arg-type]
        return torch.autograd.grad(loss, vae.out)[0]

    distance, both = pull(0.0), pull(0.3)
    torch.testing.assert_close((both - distance).norm(), 0.3 * distance.norm())


def _hush(_: str) -> None:
    return None
