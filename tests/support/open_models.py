"""Small language models of random weights, in folders as the Hub gives large ones."""

import json
from pathlib import Path

import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from ip2p_lib.triplets.record import Triplet, to_completion, to_prompt
from jobs.miniature.pretrain_language import train_tokenizer

TRIPLETS = [
    Triplet("a cat in a forest", "make it a dog", "a dog in a forest"),
    Triplet("a castle", "at night", "a castle at night under the moon"),
    Triplet("沙漠里的猫", "变成夜晚", "夜晚沙漠里的猫", "zh"),
]
TEXTS = [to_prompt(t.caption) + to_completion(t) for t in TRIPLETS]
CAPTIONS = ["a cat in a forest", "a dog and a bell on a beach at night", "沙漠里的猫"]
GOOD = "make it a dog\n%%\na dog in a forest\nEND"

_ROTARY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
_LEARNT = {"n_positions": 192, "n_embd": 32, "n_layer": 2, "n_head": 2}
_CONFIGS = {
    "gpt2": lambda settings: GPT2Config(**_LEARNT | settings),
    "qwen2": lambda settings: Qwen2Config(
        **_ROTARY | settings, tie_word_embeddings=True
    ),
    "llama": lambda settings: LlamaConfig(**_ROTARY | settings),
}
KINDS = list(_CONFIGS)


def new_model(kind: str, vocabulary: int, seed: int = 0, **settings):
    """An untrained model whose guesses are far from uniform, in evaluation mode."""
    common = {"initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0}
    config = _CONFIGS[kind]({"vocab_size": vocabulary, **common, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def new_tokenizer(
    kind: str, eos_token: str | None = "<|endoftext|>"
) -> PreTrainedTokenizerFast:
    """No padding token and no length; Llama's puts a token before every text."""
    bpe = train_tokenizer(TEXTS * 3, size=400).backend_tokenizer
    if kind == "llama":
        start = bpe.token_to_id("<|endoftext|>")
        bpe.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", start)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos_token)


def save_open_model(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a model in bfloat16, with sampling settings and no padding token."""
    tokenizer = new_tokenizer(kind)
    model = new_model(kind, len(tokenizer), seed).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sampling = {"do_sample": True, "top_k": 2, "repetition_penalty": 9.0}
    ends = {"eos_token_id": [0], "bos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(sampling | ends))
    return folder
