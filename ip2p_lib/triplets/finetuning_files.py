"""Fine-tuning files of prompts and completions, as GPT-3's were (section 3.1.1).

One JSON object a line with the keys ``prompt`` and ``completion``, the output of the
released ``prepare_for_gpt.py``. Trainers of today, such as TRL's ``SFTTrainer``, read
the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ip2p_lib.triplets.record import (
    PROMPT_END,
    Triplet,
    TripletError,
    parse_completion,
    read_lines,
    to_completion,
    to_prompt,
    write_lines,
)


def to_completion_row(triplet: Triplet) -> dict[str, Any]:
    """One training example of the paper's fine-tuning."""
    return {"prompt": to_prompt(triplet.caption), "completion": to_completion(triplet)}


def from_completion_row(row: Any) -> Triplet:
    """Inverse of ``to_completion_row``; raises ``TripletError``."""
    match row:
        case {"prompt": str(prompt), "completion": str(completion)}:
            return parse_completion(prompt.removesuffix(PROMPT_END), completion)
    raise TripletError("schema", "The row needs texts 'prompt' and 'completion'.")


def write_finetuning_file(path: str | Path, triplets: Iterable[Triplet]) -> Path:
    """Write a fine-tuning file, completely or not at all."""
    return write_lines(path, (to_completion_row(triplet) for triplet in triplets))


def read_finetuning_file(path: str | Path) -> list[Triplet]:
    """Inverse of ``write_finetuning_file``; a ValueError names file and line."""
    return read_lines(path, from_completion_row)
