"""The local writer of triplets: sampling, formats, and what the shipped one writes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from open_models import TRIPLETS, new_model, new_tokenizer, save_open_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from ip2p_lib import language_loading, language_model, triplets
from ip2p_lib.adapter_files import save_lora
from ip2p_lib.attempts import Written, surest
from ip2p_lib.config import HELD_OUT, Source, preset
from ip2p_lib.language_model import (
    LanguageModel,
    load_language_model,
    load_writer,
    write_triplets,
)
from ip2p_lib.language_service import ServiceError
from ip2p_lib.language_tuning import encode, fine_tune
from ip2p_lib.lora import add_lora
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.miniature.pretrain_language import train_tokenizer

CAPTIONS = ["a cat in a forest", "a dog and a bell on a beach at night", "沙漠里的猫"]
GOOD = "make it a dog\n%%\na dog in a forest\nEND"


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    """An untrained model whose guesses are far from uniform."""
    tokenizer = train_tokenizer([*CAPTIONS, GOOD] * 9, size=300)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LanguageModel(GPT2LMHeadModel(config).eval(), tokenizer)


class Parrot:
    """A language model that says what it is told, whatever it reads."""

    def __init__(self, tokenizer, says: str) -> None:
        self.config = GPT2Config(n_positions=96)
        self.device = torch.device("cpu")
        self.says = says
        self.tokenizer = tokenizer

    def generate(self, input_ids, logits_processor, stop_strings, **rest):
        """As transformers does it: processors choose, a stop string ends."""
        start = input_ids.shape[1]
        for token in self.tokenizer(self.says)["input_ids"][: rest["max_new_tokens"]]:
            logits = torch.full((len(input_ids), len(self.tokenizer)), -50.0)
            logits[:, token] = 50.0
            chosen = logits_processor(input_ids, logits).argmax(-1)[:, None]
            input_ids = torch.cat([input_ids, chosen], dim=1)
            if stop_strings in self.tokenizer.decode(input_ids[0, start:]):
                break
        return input_ids


def said(tiny: LanguageModel, text: str) -> triplets.Reply:
    writer = LanguageModel(Parrot(tiny.tokenizer, text), tiny.tokenizer)
    (reply,) = write_triplets(writer, CAPTIONS[:1])
    return reply


def test_a_reply_in_the_papers_format_is_a_triplet(tiny) -> None:
    reply = said(tiny, GOOD + "\nand more")
    assert reply.triplet == triplets.Triplet(
        CAPTIONS[0], "make it a dog", "a dog in a forest"
    )
    assert reply.text == GOOD
    assert reply.reason is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("make it a dog\n%%\na dog", "unfinished"),
        ("make it a dog\nEND", "parts"),
        ("make it a dog\n%%\n \nEND", "blank"),
        ("keep it\n%%\nA cat in a forest.\nEND", "unchanged"),
        ("cat " * 200, "unfinished"),
    ],
)
def test_an_unusable_reply_has_one_reason(tiny, text: str, reason: str) -> None:
    reply = said(tiny, text)
    assert (reply.triplet, reply.reason) == (None, reason)


def test_replies_are_counted_by_reason() -> None:
    kept = triplets.Reply("c", "t", triplets.Triplet("a", "b", "c"))
    parts, blank = (triplets.Reply("c", "t", reason=r) for r in ("parts", "blank"))
    counts = triplets.tally([parts, blank, kept, parts])
    assert list(counts.items()) == [("kept", 1), ("parts", 2), ("blank", 1)]
    assert triplets.tally([]) == {"kept": 0}


def test_almost_no_temperature_is_greedy_as_transformers_decodes(tiny) -> None:
    """Row by row and unpadded, against padded batches of ours."""
    replies = write_triplets(
        tiny, CAPTIONS, temperature=1e-6, frequency_penalty=0.0, max_tokens=20
    )
    for caption, reply in zip(CAPTIONS, replies, strict=True):
        prompt = tiny.tokenizer(triplets.to_prompt(caption), return_tensors="pt")
        tokens = tiny.model.generate(
            **prompt, do_sample=False, max_new_tokens=20, pad_token_id=0
        )
        start = prompt["input_ids"].shape[1]
        greedy = tiny.tokenizer.decode(tokens[0, start:], skip_special_tokens=True)
        assert reply.text == greedy


def test_a_reply_depends_on_neither_batch_nor_neighbours(tiny) -> None:
    captions = [f"{caption} {n}" for n in range(4) for caption in CAPTIONS]

    def texts(**settings) -> list[str]:
        found = write_triplets(tiny, captions, max_tokens=12, **settings)
        return [reply.text for reply in found]

    alone = texts(batch_size=1)
    assert alone == texts(batch_size=5) == texts(batch_size=64)
    assert alone != texts(run_seed=1)
    assert len(set(alone)) > 6


def test_sampling_leaves_torchs_generator_alone(tiny) -> None:
    before = torch.random.get_rng_state()
    list(write_triplets(tiny, CAPTIONS, max_tokens=3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tokens_come_as_often_as_temperature_and_penalty_say() -> None:
    n, temperature, penalty = 20_000, 0.7, 0.1
    logits = torch.tensor([1.0, 0.5, 0.0, -1.0])
    written = torch.tensor([0, 0, 0, 2])
    scores = (logits.double() - penalty * torch.tensor([3, 0, 1, 0])) / temperature
    expected = scores.softmax(0)
    chosen = language_model._choose(
        logits.expand(n, 4),
        written.expand(n, 4),
        ids=torch.arange(n),
        run_seed=0,
        temperature=temperature,
        penalty=penalty,
    )
    seen = torch.bincount(chosen, minlength=4) / n
    bound = 4.5 * (expected * (1 - expected) / n).sqrt()
    assert ((seen - expected).abs() < bound).all(), (seen, expected)


def test_a_token_of_no_probability_is_never_chosen() -> None:
    n = 50_000
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(n, 5)
    none = torch.zeros(n, 0, dtype=torch.int64)
    settings = {"run_seed": 0, "temperature": 1.0, "penalty": 0.0}
    chosen = language_model._choose(logits, none, ids=torch.arange(n), **settings)
    assert set(chosen.tolist()) == {1, 3}


def test_captions_are_read_one_batch_at_a_time(tiny) -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield CAPTIONS[0]

    replies = write_triplets(tiny, endless(), batch_size=4, max_tokens=2)
    for _ in range(5):
        next(replies)
    assert taken == 8


def test_a_caption_longer_than_the_context_is_answered_all_the_same(tiny) -> None:
    long, short = write_triplets(tiny, ["cat " * 500, CAPTIONS[0]], max_tokens=4)
    assert long.caption == "cat " * 500
    assert short.text


def test_bad_settings_are_refused(tiny, tmp_path) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        next(write_triplets(tiny, CAPTIONS, temperature=0.0))
    with pytest.raises(ValueError, match="attempts must be at least 1, not 0"):
        next(write_triplets(tiny, CAPTIONS, attempts=0))
    with pytest.raises(FileNotFoundError, match="no language model in"):
        load_writer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no language model in"):
        load_writer(preset("miniature").language_model.path_or_id + "-absent")


def test_a_name_that_is_no_folder_is_a_services_model(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ServiceError, match="OPENAI_API_KEY"):
        load_writer(preset("sd15").language_model)


def test_the_shipped_model_writes_triplets_for_scenes_it_never_saw() -> None:
    scale = preset("miniature")
    files = [p for p in Path(scale.language_model.path_or_id).rglob("*") if p.is_file()]
    assert sum(file.stat().st_size for file in files) <= 3_000_000
    captions = [triplet.caption for triplet in grammar_triplets(HELD_OUT, 100)]
    write = load_writer(scale.language_model, scale.language_adapter, run_seed=5)
    replies = list(write(captions))
    assert triplets.tally(replies)["kept"] >= 90  # data/results has the exact share
    instructions = {r.triplet.instruction for r in replies if r.triplet}
    assert len(instructions) >= 60


def likelihood(writer: LanguageModel, text: str, caption: str) -> float:
    """Mean log-probability of a reply's edited caption, read in one go."""
    head, tail = text.split(triplets.SPLIT, 1)
    parts = triplets.to_prompt(caption), head + triplets.SPLIT, tail
    sizes = [len(writer.tokenizer(part).input_ids) for part in parts]
    ids = writer.tokenizer("".join(parts), return_tensors="pt").input_ids
    with torch.no_grad():
        said = writer.model(ids).logits.log_softmax(-1)[0, :-1]
    return float(said.gather(1, ids[0, 1:, None])[sizes[0] + sizes[1] - 1 :].mean())


def is_triplet(caption: str, text: str) -> bool:
    try:
        return bool(triplets.parse_completion(caption, text))
    except triplets.TripletError:
        return False


def test_of_several_attempts_the_likeliest_triplet_is_given_back(monkeypatch) -> None:
    scale, seen = preset("miniature"), {}
    writer = load_language_model(scale.language_model, scale.language_adapter)

    def watched(caption, written):
        seen[caption] = written
        return surest(caption, written)

    monkeypatch.setattr(language_model, "surest", watched)
    captions = [triplet.caption for triplet in grammar_triplets(HELD_OUT, 12)]
    once = list(write_triplets(writer, captions))
    thrice = list(write_triplets(writer, captions, attempts=3, batch_size=7))
    assert sum(a.text != b.text for a, b in zip(once, thrice, strict=True)) > 2
    for first, reply in zip(once, thrice, strict=True):
        texts = [written.text for written in seen[reply.caption]]
        assert texts[0] == first.text and len(set(texts)) > 1
        scores = [likelihood(writer, text, reply.caption) for text in texts]
        noted = [written.log_likelihood for written in seen[reply.caption]]
        assert noted == pytest.approx(scores, abs=1e-3)
        by_score = sorted(zip(scores, texts, strict=True), reverse=True)
        good = [text for _, text in by_score if is_triplet(reply.caption, text)]
        assert reply.text == (good or texts)[0]
    source = scale.language_model, scale.language_adapter
    write = load_writer(*source, attempts=3, device=writer.model.device)
    assert [r.text for r in write(captions)] == [r.text for r in thrice]


def test_attempts_that_are_no_triplets_never_win() -> None:
    def chosen(*texts: str) -> triplets.Reply:
        written = [Written(text, -i) for i, text in enumerate(texts, start=1)]
        return surest(CAPTIONS[0], written)

    assert chosen("cat", GOOD, "dog").text == GOOD
    assert chosen("make it a dog\nEND", "cat").reason == "parts"


# --------------------------------------------------- open models, as the Hub has them

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module", params=["qwen2", "llama", "gpt2"])
def open_model(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / request.param
    return save_open_model(folder, request.param)


def greedy(writer: LanguageModel, captions) -> list[str]:
    settings = {"temperature": 1e-6, "frequency_penalty": 0.0, "max_tokens": 12}
    return [reply.text for reply in write_triplets(writer, captions, **settings)]


def test_an_open_model_is_sampled_by_our_settings_and_not_by_its_own(
    open_model, tmp_path
) -> None:
    """Its folder asks for a penalty of 9; padded and in batches, against row by row."""
    writer = load_language_model(open_model, device="cpu")
    plain = new_model(open_model.name, len(writer.tokenizer)).bfloat16().float()
    tokenizer = new_tokenizer(open_model.name)
    for caption, text in zip(CAPTIONS, greedy(writer, CAPTIONS), strict=True):
        prompt = tokenizer(triplets.to_prompt(caption), return_tensors="pt")
        tokens = plain.generate(
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )
        new = tokens[0, prompt["input_ids"].shape[1] :]
        assert text == tokenizer.decode(new, skip_special_tokens=True)


def test_an_open_model_writes_what_its_adapter_learnt(open_model, tmp_path) -> None:
    pupil = load_language_model(open_model, device="cpu")
    add_lora(pupil.model, rank=16)
    rows = encode(pupil.tokenizer, TRIPLETS)
    list(fine_tune(pupil.model, *rows, epochs=40, learning_rate=1e-2))
    adapter = save_lora(pupil.model, tmp_path, open_model)
    captions = [triplet.caption for triplet in TRIPLETS]

    def written(adapter: Path | None) -> list:
        writer = load_language_model(open_model, adapter, device="cpu")
        replies = write_triplets(writer, captions, temperature=0.1, max_tokens=80)
        return [reply.triplet for reply in replies]

    assert written(adapter) == TRIPLETS
    assert not any(written(None))


def test_what_a_tokenizer_leaves_open_is_filled_in(open_model) -> None:
    writer = load_language_model(open_model, device="cpu")
    assert writer.tokenizer.pad_token == "<|endoftext|>"
    learnt = open_model.name == "gpt2"  # a table of 192 positions
    longest = 192 if learnt else 2048 if open_model.name == "llama" else 4096
    assert writer.tokenizer.model_max_length == longest


def test_a_tokenizer_with_nothing_to_pad_with_is_refused() -> None:
    tokenizer = new_tokenizer("qwen2", eos_token=None)
    with pytest.raises(ValueError, match="pad_token"):
        language_loading._fill_in(tokenizer, new_model("qwen2", len(tokenizer)))


@pytest.mark.parametrize(
    ("device", "capability", "parameters", "expected"),
    [
        ("cpu", None, 1_500_000_000, torch.float32),
        ("cuda", (8, 0), 1_300_000, torch.float32),
        ("cuda", (8, 0), 1_500_000_000, torch.bfloat16),
        ("cuda", (7, 5), 1_500_000_000, torch.float16),  # a T4
    ],
)
def test_a_large_model_on_a_gpu_is_in_the_half_precision_it_has(
    monkeypatch, device: str, capability, parameters: int, expected
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = language_loading._precision(parameters, torch.device(device))
    assert found is expected


def test_the_angles_of_a_rotary_model_stay_in_float32(monkeypatch, tmp_path) -> None:
    """In bfloat16 they would be off by a turn after some hundred tokens."""
    folder = save_open_model(tmp_path, "qwen2")
    monkeypatch.setattr(language_loading, "_precision", lambda *_: torch.bfloat16)
    model = load_language_model(folder, device="cpu").model
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    angles = dict(model.named_buffers())["model.rotary_emb.inv_freq"]
    expected = 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(angles, expected)


def test_a_model_of_the_hub_is_read_from_the_cache(monkeypatch, tmp_path) -> None:
    snapshot = tmp_path / "models--maker--model" / "snapshots" / REVISION
    local = save_open_model(tmp_path / "local", "qwen2")
    shutil.copytree(local, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = Source("maker/model", REVISION)
    writer = load_language_model(source, device="cpu")
    here = load_language_model(local, device="cpu")
    assert greedy(writer, CAPTIONS) == greedy(here, CAPTIONS)
    add_lora(writer.model)
    adapter = save_lora(writer.model, tmp_path / "adapter", source)
    assert load_writer(source, adapter, device="cpu")
    with pytest.raises(ValueError, match=f"trained on maker/model@{REVISION}"):
        load_writer(local, adapter, device="cpu")


def test_a_model_out_of_reach_is_named(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="maker/absent could not be loaded"):
        load_writer(Source("maker/absent", REVISION))
    with pytest.raises(FileNotFoundError, match=r"config.Source\(id, revision\)"):
        load_language_model("maker/absent")


def test_a_model_without_all_its_weights_is_refused(tmp_path) -> None:
    folder = save_open_model(tmp_path, "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        load_language_model(folder, device="cpu")


def test_a_service_takes_no_adapter(tmp_path) -> None:
    with pytest.raises(ValueError, match="takes no adapter"):
        load_writer(preset("sd15").language_model, tmp_path)


def test_where_the_writer_is_a_service_there_is_an_open_model_too() -> None:
    source = preset("sd15").open_language_model
    assert source is not None
    assert re.fullmatch("[0-9a-f]{40}", source.revision or "")
