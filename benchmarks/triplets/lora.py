"""What one epoch of LoRA on an open model of 1.5 billion parameters takes of a GPU.

    python -m benchmarks.triplets.lora           writes data/results/language-lora.json
    python -m benchmarks.triplets.lora --tiny    the same on any machine, in small

The architecture is that of Qwen2.5-1.5B-Instruct. Its weights are random here, for time
and memory do not depend on them, and the tokens are the miniature's, more to a word
than Qwen's own: real triplets take no longer.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from ip2p_lib.config import DATA, RESULTS, preset
from ip2p_lib.diffusion.lora import WEIGHTS, add_lora, count_parameters, save_lora
from ip2p_lib.results import ReadmeRow, write_results
from ip2p_lib.triplets.finetuning import fine_tune, tokenize_triplets
from ip2p_lib.triplets.generation import generate_triplets
from ip2p_lib.triplets.loading import LanguageModel
from ip2p_lib.triplets.record import read_jsonl

STEPS, WARM_UP, BATCH, RANK = 20, 3, 8, 8
LARGE = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
TINY = LARGE | {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "vocab_size": 4096,
}


def build(settings: dict[str, Any], device: torch.device) -> LanguageModel:
    """A model of random weights, with a tokenizer of fewer tokens than it has."""
    folder = preset("miniature").language_model.path_or_id
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=2048)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = AutoModelForCausalLM.from_config(Qwen2Config(**settings), dtype=dtype)
    return LanguageModel(model, tokenizer)


def train(
    language_model: LanguageModel, n: int, micro: int, checkpointing: bool
) -> dict[str, Any]:
    """Take ``n`` steps; the first few are a warm-up."""
    triplets = read_jsonl(DATA / "triplets" / "general.jsonl")
    device = language_model.model.device
    rows = tokenize_triplets(language_model.tokenizer, triplets)
    tokens, labels = (part.to(device) for part in rows)
    steps = fine_tune(
        language_model.model.train(),
        tokens,
        labels,
        batch_size=BATCH,
        micro_batch_size=micro,
        gradient_checkpointing=checkpointing,
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(n):
        start = time.monotonic()
        next(steps)  # yields the loss as a number, so the GPU has finished
        seconds.append(time.monotonic() - start)
    median = statistics.median(seconds[WARM_UP:])
    lengths = (labels >= 0).int().cumsum(dim=1).argmax(dim=1) + 1.0
    return {
        "micro_batch_size": micro,
        "checkpointing": checkpointing,
        "steps_per_second": round(1 / median, 3),
        "tokens_per_second": round(BATCH * float(lengths.mean()) / median, 1),
        "seconds_an_epoch": round(len(triplets) / BATCH * median, 1),
        "triplets": len(triplets),
        "peak_gib": peak(device),
    }


def peak(device: torch.device) -> float | None:
    """Peak memory of tensors on a GPU, in GiB."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def generate(language_model: LanguageModel, captions: int = 8) -> dict[str, Any]:
    """Time the sampling; with random weights no reply ever ends early."""
    texts, start = ["a cat in a forest"] * captions, time.monotonic()
    list(generate_triplets(language_model, texts, max_tokens=64))
    seconds = time.monotonic() - start
    return {"written_tokens_per_second": round(captions * 64 / seconds, 1)}


def adapter_megabytes(language_model: LanguageModel) -> float:
    """Size of the adapter on disk, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        base = preset("miniature").language_model  # any: the file is deleted
        path = save_lora(language_model.model, folder, base) / WEIGHTS
        return round(path.stat().st_size / 1e6, 1)


def main() -> None:
    """Train in three ways, from the fastest to the one that needs least memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a model for any machine")
    parser.add_argument("--out", type=Path, default=RESULTS / "language-lora.json")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.tiny:
        parser.error("1.5 billion parameters need a GPU; --tiny runs without one.")
    start, language_model = (
        time.monotonic(),
        build(TINY if args.tiny else LARGE, device),
    )
    add_lora(language_model.model, rank=RANK)
    trained, everything = count_parameters(language_model.model)
    ways = [(BATCH, False), (2, False), (2, True)]
    rows = [train(language_model, 5 if args.tiny else STEPS, *way) for way in ways]
    language_model.model.eval()
    facts = {
        "parameters": everything,
        "trained": trained,
        "adapter_mb": adapter_megabytes(language_model),
        **generate(language_model),
    }
    for row in itertools.chain(rows, [facts]):
        print(row)
    if not args.tiny:
        best, seconds = rows[0], round(time.monotonic() - start, 1)
        claim = ReadmeRow(
            "One epoch of LoRA on a language model of 1.5 B random weights",
            f"{best['seconds_an_epoch']:.0f} s, {best['peak_gib']:.1f} GiB",
            "one GPU",
            best["triplets"],
        )
        options = {"seed": 0, "seconds": seconds, "device": device}
        print(write_results(args.out, rows, readme=[claim], **options, **facts))


if __name__ == "__main__":
    main()
