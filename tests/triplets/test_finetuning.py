"""Fine-tuning of a language model on triplets (section 3.1.1)."""

import json

import pytest
import torch

from ip2p_lib.diffusion.lora import add_lora, lora_weights
from ip2p_lib.triplets.finetuning import (
    completion_loss,
    fine_tune,
    tokenize_triplets,
    write_finetuning_file,
)
from ip2p_lib.triplets.record import (
    PROMPT_END,
    Triplet,
    parse_completion,
    to_completion,
    to_prompt,
)
from tests.support.open_models import KINDS, TRIPLETS, new_model, new_tokenizer


def test_the_file_has_the_released_scripts_rows(tmp_path):
    path = write_finetuning_file(tmp_path / "train.jsonl", TRIPLETS)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert rows[0] == {
        "prompt": "a cat in a forest\n##\n",
        "completion": "make it a dog\n%%\na dog in a forest\nEND",
    }
    texts = [
        (row["prompt"].removesuffix(PROMPT_END), row["completion"]) for row in rows
    ]
    assert [parse_completion(*pair) for pair in texts] == TRIPLETS


@pytest.mark.parametrize("end", ["<|endoftext|>", None])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_completion_is_learnt_whatever_the_tokenizer(kind: str, end):
    """With no padding token and no length; with a first token; with no end."""
    tokenizer = new_tokenizer(kind, eos_token=end)
    assert tokenizer.pad_token is None and tokenizer.model_max_length > 1e18
    tokens, labels = tokenize_triplets(tokenizer, TRIPLETS)
    for row, learnt, triplet in zip(tokens, labels, TRIPLETS, strict=True):
        reply = to_completion(triplet) + (end or "")
        assert tokenizer.decode(learnt[learnt >= 0]) == reply
        stop = int((learnt >= 0).nonzero().max()) + 1
        first = "<|endoftext|>" * (kind == "llama")
        text = first + to_prompt(triplet.caption) + reply
        assert tokenizer.decode(row[:stop]) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_transformers_own(kind: str):
    """Which shifts the labels itself and averages over those that are not -100."""
    tokenizer = new_tokenizer(kind)
    model = new_model(kind, len(tokenizer)).double()
    tokens, labels = tokenize_triplets(tokenizer, TRIPLETS)
    mask = torch.ones_like(tokens)
    theirs = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    ours = completion_loss(model, tokens, labels)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)  # theirs is in float32


def test_a_triplet_too_long_for_the_model_is_refused():
    tokenizer = new_tokenizer("gpt2")
    tokenizer.model_max_length = 192
    long = Triplet("cat " * 300, "shorter", "a cat")
    with pytest.raises(ValueError, match="at most 192"):
        tokenize_triplets(tokenizer, [*TRIPLETS, long])


def learner(kind: str, lora: bool = True, dtype=torch.float32):
    """A small model in training, without dropout, and six rows for it."""
    tokenizer = new_tokenizer(kind)
    model = new_model(kind, len(tokenizer), resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    model.to(dtype).train()
    rows = [part.repeat(2, 1) for part in tokenize_triplets(tokenizer, TRIPLETS)]
    return add_lora(model) if lora else model, rows


def weights_of(model) -> dict[str, torch.Tensor]:
    learnt = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return {name: weight.detach().clone() for name, weight in learnt}


def test_fine_tuning_sees_every_row_once_an_epoch_and_learns():
    model, rows = learner("gpt2", lora=False)
    assert len(list(fine_tune(model, *rows, batch_size=4))) == 2  # of 6 rows
    options = {"epochs": 60, "learning_rate": 3e-3, "batch_size": 6}
    losses = list(fine_tune(model, *rows, **options))
    assert len(losses) == 60
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_and_checkpointing_learn_the_same(kind: str, lora: bool):
    calls, results = [], []

    def count(module, _):
        calls.append(type(module).__name__.endswith("MLP"))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    for options in ({}, {"micro_batch_size": 4}, {"gradient_checkpointing": True}):
        model, rows = learner(kind, lora)
        model.double()  # Adam makes a step of any gradient, even of rounding alone
        calls.clear()
        losses = list(fine_tune(model, *rows, batch_size=6, epochs=3, **options))
        results.append((losses, weights_of(model), sum(calls)))
    hook.remove()
    expected, weights, once = results[0]
    for losses, others, _ in results[1:]:
        assert losses == pytest.approx(expected, rel=1e-6)
        for name, weight in weights.items():
            torch.testing.assert_close(others[name], weight, rtol=1e-6, atol=1e-6)
    assert results[2][2] == 2 * once == 2 * 2 * 3  # two blocks, three steps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_half_precision_base_trains_its_float32_matrices(kind: str, dtype):
    """As float32 does, to what half precision resolves; the base is left as it was."""
    expected_model, rows = learner(kind)
    model, _ = learner(kind, dtype=dtype)
    base = {n: w.clone() for n, w in model.state_dict().items() if ".lora_" not in n}
    settings = {"batch_size": 6, "epochs": 6, "learning_rate": 1e-2}
    expected = list(fine_tune(expected_model, *rows, **settings))
    losses = list(fine_tune(model, *rows, **settings))
    assert losses == pytest.approx(expected, rel=0.05)
    assert losses[-1] < 0.8 * losses[0]
    assert {w.dtype for w in lora_weights(model).values()} == {torch.float32}
    assert {w.dtype for w in base.values()} == {dtype}
    for name, weight in base.items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_a_step_without_a_finite_loss_is_not_taken():
    model, rows = learner("qwen2")
    with pytest.raises(ValueError, match="each batch size must be at least 1"):
        next(fine_tune(model, *rows, micro_batch_size=0))
    steps = fine_tune(model, *rows, batch_size=2)
    next(steps)
    before = weights_of(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(FloatingPointError, match="not taken"):
        next(steps)
    for name, weight in weights_of(model).items():
        assert torch.equal(weight, before[name])
