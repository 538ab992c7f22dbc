"""Train the miniature language model: the recipe of section 3.1.1 in small.

    python -m jobs.miniature.pretrain_language grammar written

Where the authors took GPT-3 and fine-tuned it for one epoch on triplets written by
hand, this takes an empty GPT-2 of 1.3 million parameters. Stage ``grammar`` teaches it
the world's grammar, minutes on a GPU; stage ``written`` is one epoch on
``data/triplets/miniature.jsonl``, in which people ask in their own words, under a
minute anywhere. The second stage trains a LoRA adapter, so that both models ship.
"""

import argparse
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from ip2p_lib.config import DATA, HELD_OUT, MODELS, RESULTS, preset
from ip2p_lib.diffusion.lora import add_lora, save_lora
from ip2p_lib.files import write_json
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.miniature.parsing import find_difference, names_difference, read_caption
from ip2p_lib.results import ReadmeRow, write_results
from ip2p_lib.rng import integers, key
from ip2p_lib.triplets.finetuning import (
    IGNORE_INDEX,
    completion_loss,
    fine_tune,
    tokenize_triplets,
)
from ip2p_lib.triplets.generation import generate_triplets
from ip2p_lib.triplets.loading import LanguageModel, load_language_model
from ip2p_lib.triplets.record import (
    Triplet,
    count_outcomes,
    read_jsonl,
    to_completion,
    to_prompt,
)
from jobs.miniature.data import sample_parts, sample_triplets
from jobs.miniature.loop import Budget, Progress, fit
from jobs.miniature.saving import save_half, save_tokenizer
from jobs.training_plan import above_zero, positive

WRITTEN = DATA / "triplets" / "miniature.jsonl"
CONTEXT = 192
VOCABULARY = 2048
_STOP = "<|endoftext|>"
_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")
_WRITTEN = 1e-4  # learning rate of stage 2: at 2e-4 copying a caption is forgotten


def train_tokenizer(texts: Iterable[str], size: int = VOCABULARY) -> GPT2TokenizerFast:
    """Byte-level BPE in GPT-2's form: any text can be written, nothing is unknown."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=False)
    bpe.train_from_iterator(texts, size, special_tokens=[_STOP], show_progress=False)
    tokenizer = Tokenizer.from_str(bpe.to_str())
    specials = dict.fromkeys(_SPECIALS, _STOP)
    return GPT2TokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONTEXT, **specials
    )


def new_model(vocabulary: int, *, width: int = 144, layers: int = 4) -> GPT2LMHeadModel:
    """An untrained GPT-2 of ``layers`` blocks and heads of 36 channels."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=layers,
        n_head=width // 36,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def pretrain(
    model: GPT2LMHeadModel,
    tokens: Tensor,
    labels: Tensor,
    budget: Budget,
    *,
    batch_size: int = 32,
) -> Iterator[Progress]:
    """Stage 1: learn the grammar's triplets until the time is spent.

    A batch is a run of rows in order of length, so that hardly any of it is padding.
    """
    lengths = (labels >= 0).int().cumsum(dim=1).argmax(dim=1)  # the last one to learn
    order = lengths.argsort(stable=True)
    step_id = torch.zeros(1, dtype=torch.int64)
    starts = max(len(tokens) - batch_size, 0) + 1

    def loss_of(step: int) -> Tensor:
        start = int(integers(key("pretrain language", step), step_id, starts))
        chosen = order[start : start + batch_size]
        return completion_loss(model, tokens[chosen].long(), labels[chosen].long())

    return fit(model, loss_of, budget)


def save(model: GPT2LMHeadModel, tokenizer: Any, folder: Path) -> None:
    """Save for ``AutoModelForCausalLM`` and ``AutoTokenizer``, in half precision."""
    save_half(model, folder)
    save_tokenizer(tokenizer, folder)
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": CONTEXT,
        "add_prefix_space": False,
        **dict.fromkeys(_SPECIALS, _STOP),
    }
    write_json(folder / "tokenizer_config.json", settings)


def measure(
    writer: LanguageModel,
    n: int = 300,
    known: Collection[Triplet] = (),
    attempts: int = 1,
) -> dict[str, Any]:
    """Let a model write for ``n`` held-out captions, and parse its triplets.

    Args:
        writer: the model.
        n: number of captions.
        known: triplets that it was trained on.
        attempts: ``num_samples`` of ``generate_triplets``.

    Returns:
        Numbers of captions, attempts, outcomes and different wordings, and shares:
        parsed as triplets; one_change, whose captions differ in one attribute; right,
        whose instruction names that one; new, not ``known``; commonest instruction.
    """
    captions = [triplet.caption for triplet in grammar_triplets(HELD_OUT, n)]
    replies = list(generate_triplets(writer, captions, num_samples=attempts))
    triplets = [reply.triplet for reply in replies if reply.triplet]
    wordings = Counter(triplet.instruction for triplet in triplets)
    one_change = right = 0
    for triplet in triplets:
        before = read_caption(triplet.caption)
        after = read_caption(triplet.edited_caption)
        one_change += find_difference(before, after) is not None
        right += names_difference(triplet.instruction, before, after)
    return {
        "captions": len(captions),
        "attempts": attempts,
        "outcomes": count_outcomes(replies),
        "parsed": len(triplets) / len(captions),
        "one_change": one_change / len(captions),
        "right": right / len(captions),
        "new": sum(t not in known for t in triplets) / max(len(triplets), 1),
        "wordings": len(wordings),
        "commonest": max(wordings.values(), default=0) / len(captions),
    }


def tokenize_part(tokenizer: Any, first_seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Tokenize triplets of the grammar: rows and labels, (n, ``CONTEXT``) int16."""
    rows, labels = tokenize_triplets(tokenizer, grammar_triplets(first_seed, n))
    padding = (0, CONTEXT - rows.shape[1])
    return F.pad(rows, padding).short(), F.pad(
        labels, padding, value=IGNORE_INDEX
    ).short()


def run_grammar(args: argparse.Namespace, device: str) -> None:
    """Stage 1: train a tokenizer and an empty model, or the one that is there."""
    if args.warm:
        earlier = load_language_model(args.out, device=device)
        model, tokenizer = earlier.model.float().train(), earlier.tokenizer
    else:
        grammar, written = sample_triplets(0, 20_000), read_jsonl(args.written)
        # Every written text counts: people's words are rare beside the grammar's.
        texts = [to_prompt(t.caption) + to_completion(t) for t in [*grammar, *written]]
        tokenizer = train_tokenizer(texts)
        model = new_model(len(tokenizer)).to(device)
    parts = sample_parts(partial(tokenize_part, tokenizer), 0, args.scenes)
    columns = zip(*parts, strict=True)
    tokens, labels = (torch.cat(column).to(device) for column in columns)
    # On 200,000 scenes it learnt them by heart, and copied others badly.
    budget = Budget(args.seconds, args.learning_rate, warmup=100, weight_decay=0.1)
    batch = {"batch_size": args.batch}
    for progress in pretrain(model, tokens, labels, budget, **batch):
        if progress.step % 200 == 0:
            print(f"{progress.seconds:.0f} s, loss {progress.loss:.3f}", flush=True)
    save(model, tokenizer, args.out)


def run_written(args: argparse.Namespace, device: str) -> None:
    """Stage 2: the paper's epoch on hand-written triplets, as an adapter of stage 1.

    Measured without it, after 70 triplets and after all, with one sample a caption as
    in the paper; the last one is saved, and measured again with the miniature's number.
    """
    began, written, rows = time.monotonic(), read_jsonl(args.written), []
    known = {*sample_triplets(0, args.scenes), *written}
    for n in (0, 70, len(written)):
        writer = load_language_model(args.out, device=device)
        if n:
            # Spread over the file, which goes from one edit type to the next.
            chosen = [written[i * len(written) // n] for i in range(n)]
            tokens, labels = tokenize_triplets(writer.tokenizer, chosen)
            data = tokens.to(device), labels.to(device)
            add_lora(writer.model).train()
            losses = list(fine_tune(writer.model, *data, learning_rate=_WRITTEN))
            print(f"{n} triplets: loss {losses[0]:.2f} to {losses[-1]:.2f}", flush=True)
            writer.model.eval()
        rows.append({"written": n, **measure(writer, args.samples, known)})
        print(rows[-1], flush=True)
    several = preset("miniature").language_samples
    again = measure(writer, args.samples, known, several)
    rows.append({"written": len(written), **again})
    print(rows[-1], flush=True)
    save_lora(writer.model, args.out / "adapter", args.out, dtype=torch.float16)
    path, readme = args.results / "miniature-lm.json", _readme_rows(again)
    seconds = round(time.monotonic() - began, 1)
    write_results(path, rows, seed=0, seconds=seconds, device=device, readme=readme)


def _readme_rows(measured: dict[str, Any]) -> list[ReadmeRow]:
    """The lines of the README on a model that ``measure`` has read."""
    best = f"best of {measured['attempts']} by log-likelihood"
    lines = {
        "parsed": (
            f"Replies of the language model that are triplets, {best}",
            "99.5 %",
        ),
        "right": ("Replies that change one thing, the one that is asked for", "97 %"),
    }
    return [
        ReadmeRow(claim, f"{measured[name]:.1%}", aim, measured["captions"])
        for name, (claim, aim) in lines.items()
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("stages", nargs="+", choices=["grammar", "written"])
    add("--out", type=Path, default=MODELS / "miniature-lm")
    add("--results", type=Path, default=RESULTS)
    add("--samples", type=positive, default=1000, help="held-out captions")
    add("--written", type=Path, default=WRITTEN)
    add("--scenes", type=positive, default=1_000_000)
    add("--warm", action="store_true", help="go on from --out's")
    add("--seconds", type=above_zero, default=300.0, help="of stage 1")
    add("--batch", type=positive, default=512, help="of stage 1")
    add("--learning-rate", type=above_zero, default=3e-3, help="of stage 1")
    return parser.parse_args()


def main() -> None:
    """Run the stages named on the command line."""
    args = _arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if "grammar" in args.stages:
        run_grammar(args, device)
    if "written" in args.stages:
        run_written(args, device)


if __name__ == "__main__":
    main()
