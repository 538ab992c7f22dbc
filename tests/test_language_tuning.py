"""Fine-tuning of a language model on triplets (section 3.1.1)."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ip2p_lib.language_tuning import completion_loss, encode, fine_tune
from ip2p_lib.miniature.pretrain_language import train_tokenizer
from ip2p_lib.triplets import Triplet, parse_completion, to_completion, to_prompt

TRIPLETS = [
    Triplet("a cat in a forest", "make it a dog", "a dog in a forest"),
    Triplet("a castle", "at night", "a castle at night under the moon"),
    Triplet("沙漠里的猫", "变成夜晚", "夜晚沙漠里的猫", "zh"),
]


@pytest.fixture
def tokenizer():
    return train_tokenizer([to_prompt(t.caption) + to_completion(t) for t in TRIPLETS])


@pytest.fixture
def model(tokenizer) -> GPT2LMHeadModel:
    sizes = {"n_positions": 192, "n_embd": 32, "n_layer": 2, "n_head": 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **sizes, **dropout
    )
    return GPT2LMHeadModel(config)


def test_a_row_is_the_papers_and_only_its_completion_is_learnt(tokenizer) -> None:
    tokens, labels = encode(tokenizer, TRIPLETS)
    for row, learnt, triplet in zip(tokens, labels, TRIPLETS, strict=True):
        stop = tokenizer.eos_token
        text = tokenizer.decode(row).rstrip(stop)
        assert text == to_prompt(triplet.caption) + to_completion(triplet)
        reply = tokenizer.decode(learnt[learnt >= 0])
        assert reply == to_completion(triplet) + stop
        assert parse_completion(triplet.caption, reply) == triplet


def test_the_loss_is_transformers_own(tokenizer, model) -> None:
    """Which shifts the labels itself and averages over those that are not -100."""
    tokens, labels = encode(tokenizer, TRIPLETS)
    model = model.double().eval()
    mask = torch.ones_like(tokens)
    theirs = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    ours = completion_loss(model, tokens, labels)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)  # theirs is in float32


def test_the_prompts_tokens_are_read_but_not_learnt(tokenizer, model) -> None:
    tokens, labels = encode(tokenizer, TRIPLETS[:1])
    prompt = len(tokenizer(to_prompt(TRIPLETS[0].caption))["input_ids"])
    states = []

    def watch(_module, _inputs, output: torch.Tensor) -> None:
        output.retain_grad()
        states.append(output)

    model.transformer.ln_f.register_forward_hook(watch)
    completion_loss(model, tokens, labels).backward()
    with_loss = states[0].grad[0].abs().sum(-1) > 0
    assert not with_loss[: prompt - 1].any()
    assert with_loss[prompt - 1 :].sum() == (labels >= 0).sum()


def test_fine_tuning_sees_every_row_once_an_epoch_and_learns(tokenizer, model) -> None:
    tokens, labels = encode(tokenizer, TRIPLETS)
    steps = fine_tune(model, tokens, labels, batch_size=2)
    assert len(list(steps)) == 2  # 3 rows, one epoch
    losses = list(
        fine_tune(
            model, tokens, labels, epochs=60, learning_rate=3e-3, batch_size=len(tokens)
        )
    )
    assert len(losses) == 60
    assert losses[-1] < 0.2 * losses[0]


def test_a_triplet_too_long_for_the_model_is_refused(tokenizer) -> None:
    long = Triplet("cat " * 300, "shorter", "a cat")
    with pytest.raises(ValueError, match="at most 192"):
        encode(tokenizer, [*TRIPLETS, long])
