"""Edit triplets: caption, instruction, edited caption (section 3.1.1 of 2211.09800).

A language model turns the caption of a picture into an edit: what a person would ask
for, and the caption that the edited picture would deserve. This module is the record
that carries such a triplet through the pipeline, the text format in which a completion
model reads and writes it, the rules a reply must pass, and its file on disk.

Read ``Triplet`` first, then ``to_prompt`` / ``to_completion`` and their inverse
``parse_completion``. The three markers are those of the authors' released
``dataset_creation/generate_txt_dataset.py``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ip2p_lib.files import atomic_write

ASK = "\n##\n"  # ends the caption: here the model starts to write
SPLIT = "\n%%\n"  # between the instruction and the edited caption
END = "\nEND"  # ends the reply; services stop here and leave it out

_MARKERS = tuple(marker.strip() for marker in (ASK, SPLIT, END))
_CHINESE = re.compile("[\u3400-\u9fff]")


class TripletError(ValueError):
    """A text that is not a usable triplet.

    ``reason`` is one word to count by: ``parts`` (the reply does not split in two),
    ``blank`` (a field is empty), ``lines`` (a field holds a line break or a marker of
    the format), ``unchanged`` (the edited caption is the caption).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Triplet:
    """One edit in words; ``language`` is the instruction's (``"en"`` or ``"zh"``)."""

    caption: str
    instruction: str
    edited_caption: str
    language: str = "en"


@dataclass(frozen=True)
class Reply:
    """What came back for one caption: a triplet, or the reason why there is none.

    Reasons are those of ``TripletError`` and ``unfinished`` (no end within the limit),
    ``schema`` (a service did not keep to the form asked for) and ``refused``.
    """

    caption: str
    text: str
    triplet: Triplet | None = None
    reason: str | None = None


def tally(replies: Iterable[Reply]) -> dict[str, int]:
    """Count replies by outcome: ``kept`` first, then the reasons, commonest first."""
    counts = Counter(reply.reason or "kept" for reply in replies)
    return {"kept": counts.pop("kept", 0), **dict(counts.most_common())}


def language_of(text: str) -> str:
    """``"zh"`` if the text holds a Chinese character, otherwise ``"en"``."""
    return "zh" if _CHINESE.search(text) else "en"


def is_unchanged(caption: str, edited_caption: str) -> bool:
    """Whether the edit left the caption as it was, but for case and end punctuation.

    The comparison of the released ``generate_txt_dataset.py``, with the Chinese
    punctuation marks added.
    """

    def bare(text: str) -> str:
        return text.strip().strip(".!?。！？").lower()

    return bare(caption) == bare(edited_caption)


def make_triplet(
    caption: str, instruction: str, edited_caption: str, language: str | None = None
) -> Triplet:
    """Build a triplet from three texts, or refuse it.

    Args:
        caption, instruction, edited_caption: any text; outer white space is dropped.
        language: the instruction's; found from its characters when ``None``.

    Raises:
        TripletError: a field is blank, breaks the line or holds a marker, or the
            caption did not change.
    """
    texts = {
        "caption": caption.strip(),
        "instruction": instruction.strip(),
        "edited caption": edited_caption.strip(),
    }
    for name, text in texts.items():
        _check_field(name, text)
    if is_unchanged(caption, edited_caption):
        raise TripletError("unchanged", f"The edit changes nothing: {caption!r}.")
    return Triplet(
        caption.strip(),
        instruction.strip(),
        edited_caption.strip(),
        language or language_of(instruction),
    )


def _check_field(name: str, text: str) -> None:
    if not text:
        raise TripletError("blank", f"The {name} is empty.")
    if len(text.splitlines()) > 1 or text in _MARKERS:
        raise TripletError(
            "lines", f"The {name} must be one line without markers: {text!r}."
        )


def to_prompt(caption: str) -> str:
    """What a completion model reads: the caption and the marker to start writing."""
    return caption + ASK


def to_completion(triplet: Triplet) -> str:
    """What a completion model should write: instruction, edited caption, end."""
    return triplet.instruction + SPLIT + triplet.edited_caption + END


def parse_completion(caption: str, text: str) -> Triplet:
    """Read a model's reply to ``to_prompt(caption)``.

    Args:
        caption: the caption the model was asked about.
        text: the reply, with or without the end marker (services leave it out);
            whatever follows the marker is ignored.

    Raises:
        TripletError: the reply does not split into exactly two parts at the
            ``%%`` line, or ``make_triplet`` refuses the parts.
    """
    parts = text.split(END)[0].split(SPLIT)
    if len(parts) != 2:
        raise TripletError(
            "parts", f"Expected two parts around '%%', got {len(parts)}: {text!r}."
        )
    return make_triplet(caption, *parts)


def write_jsonl(path: str | Path, triplets: Iterable[Triplet]) -> Path:
    """Write one JSON object a line with keys ``input``, ``edit`` and ``output``.

    The keys of the authors' human-written set. ``language`` is added only where it
    is not what the instruction's characters say. The file appears whole or not at all.

    Returns:
        The path written.
    """
    rows = (json.dumps(_to_row(t), ensure_ascii=False) for t in triplets)
    return write_lines(path, rows)


def write_lines(path: str | Path, lines: Iterable[str]) -> Path:
    """Write lines of UTF-8 text, whole or not at all, however many there are."""
    path = Path(path)
    with atomic_write(path) as file:
        file.writelines(f"{line}\n".encode() for line in lines)
    return path


def _to_row(triplet: Triplet) -> dict[str, str]:
    row = {
        "input": triplet.caption,
        "edit": triplet.instruction,
        "output": triplet.edited_caption,
    }
    if triplet.language != language_of(triplet.instruction):
        row["language"] = triplet.language
    return row


def read_jsonl(path: str | Path) -> list[Triplet]:
    """Read triplets written by ``write_jsonl`` or by the authors' scripts.

    The released set calls the caption ``input``, the authors' generating script
    ``caption``; both are read. Other keys, such as ``url``, are ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a valid triplet; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No triplet file at {path}. Check the path.")
    triplets = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                triplets.append(_from_row(json.loads(line)))
            except ValueError as error:  # also JSON and UTF-8 errors
                raise ValueError(f"{path}:{number}: {error}") from error
    return triplets


def _from_row(row: Any) -> Triplet:
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}.")
    texts = (row.get("input", row.get("caption")), row.get("edit"), row.get("output"))
    match texts:
        case (str(caption), str(instruction), str(edited_caption)):
            language = row.get("language")
            return make_triplet(caption, instruction, edited_caption, language)
    raise ValueError(
        "needs texts under the keys 'input' (or 'caption'), 'edit' and 'output'; "
        f"found the keys {sorted(row)}."
    )
