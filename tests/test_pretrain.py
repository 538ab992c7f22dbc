"""The stages of pretraining, at a size that learns something in seconds."""

from pathlib import Path

import pytest
import torch

from ip2p_lib.draws import key, normal
from ip2p_lib.miniature import models
from ip2p_lib.miniature.corpus import build_corpus
from ip2p_lib.miniature.fitting import Budget, fit
from ip2p_lib.miniature.make_pairs import world_captions, write
from ip2p_lib.miniature.objectives import clip_loss, vae_loss
from ip2p_lib.miniature.pretrain import follow
from ip2p_lib.miniature.stages import (
    Stage,
    render_bank,
    to_bytes,
    to_unit,
    token_ids,
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
    for _ in range(12):
        loss = clip_loss(clip, to_unit(bank), ids, instructions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


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


def test_the_unet_goes_on_from_weights_it_is_given(tmp_path: Path) -> None:
    captions = build_corpus(0, 4).captions
    tokenizer = models.train_tokenizer(captions)
    clip, given = models.new_clip(tokenizer), models.new_unet()
    before = given.conv_in.weight.detach().clone()
    latents = normal(key("latents"), torch.arange(4), (4, 16, 16)).half()
    stage = Stage(Budget(0.01, 1e-4, warmup=1), batch=2)
    unet, progress = train_unet(
        clip, tokenizer, latents, captions, stage, tmp_path, given
    )
    assert unet is given and torch.equal(unet.conv_in.weight, before)
    assert follow(progress, "", _hush).step == 1
    assert not torch.equal(unet.conv_in.weight, before)


def test_the_language_model_writes_for_the_worlds_captions() -> None:
    from ip2p_lib.config import preset
    from ip2p_lib.language_model import load_language_model

    writer = load_language_model(preset("smoke").language_model, device="cpu")
    captions = world_captions(10**9, 24)
    triplets, outcomes = write(writer, captions, batch_size=24, seconds=60)
    assert sum(outcomes.values()) == 24 and len(triplets) >= 12
    assert {triplet.caption for triplet in triplets} <= set(captions)


def _hush(_: str) -> None:
    return None
