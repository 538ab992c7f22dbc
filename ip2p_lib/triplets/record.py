"""The edit triplet: caption, instruction, edited caption (section 3.1.1).

``Triplet`` is the record that the later stages read. ``to_prompt``, ``to_completion``
and ``parse_completion`` are its text format for a completion model, with the delimiters
of the authors' released ``dataset_creation/generate_txt_dataset.py``; ``make_triplet``
has the rules that a triplet must keep; ``read_jsonl`` and ``write_jsonl`` are its file.
``read_captions`` reads captions that have no edit yet.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import normalize

from ip2p_lib.checks import is_visible
from ip2p_lib.files import atomic_write, decode_text, explain_disk_errors

T = TypeVar("T")

PROMPT_END = "\n##\n"  # after the caption: the model continues from here
SEPARATOR = "\n%%\n"  # between the instruction and the edited caption
STOP = "\nEND"  # ends the reply; services stop here and leave it out

_CAPTIONS = ("input", "caption", "text", "TEXT")  # ours, the authors', LAION's
_DELIMITERS = tuple(text.strip() for text in (PROMPT_END, SEPARATOR, STOP))
_CHINESE = re.compile("[\u3400-\u9fff]")
# Characters that control a terminal or reverse the direction of writing.
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_INVISIBLE = re.compile("[\u200b-\u200d\ufeff]")


class TripletError(ValueError):
    """A text that is not a usable triplet; ``reason`` is one word to count by.

    ``parts``: it does not split in two; ``blank``, ``lines``, ``characters``: a field
    is empty, holds a line break or delimiter, or control characters; ``unchanged``: the
    edited caption is the caption.
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
    """A language model's reply to one caption: a triplet, or the reason for none.

    Reasons are those of ``TripletError`` and ``unfinished`` (no end within the limit);
    of a service also ``schema`` (not the JSON requested), ``refused`` (by the model),
    ``rejected`` (the request, by the service) and ``unanswered``; and those of
    ``filter_replies``.
    """

    caption: str
    text: str
    triplet: Triplet | None = None
    reason: str | None = None


def count_outcomes(replies: Iterable[Reply]) -> dict[str, int]:
    """Count replies by outcome: ``kept`` first, then reasons, most frequent first."""
    counts = Counter(reply.reason or "kept" for reply in replies)
    return {"kept": counts.pop("kept", 0), **dict(counts.most_common())}


def language_of(text: str) -> str:
    """``"zh"`` if the text holds a Chinese character, otherwise ``"en"``."""
    return "zh" if _CHINESE.search(text) else "en"


def is_unchanged(caption: str, edited_caption: str) -> bool:
    """Whether two captions are equal up to case, white space and end punctuation.

    As the released ``generate_txt_dataset.py`` compares; Chinese punctuation is added.
    """
    texts = (normalize("NFC", t) for t in (caption, edited_caption))
    words = (" ".join(_INVISIBLE.sub("", text).split()) for text in texts)
    before, after = (text.strip(".!?。！？").lower() for text in words)
    return before == after


def make_triplet(
    caption: str, instruction: str, edited_caption: str, language: str | None = None
) -> Triplet:
    """Build a triplet from three texts, without outer white space, and check it.

    ``language`` is the instruction's; ``None`` takes it from its characters.

    Raises:
        TripletError: a field is blank, breaks the line, or holds a delimiter or control
            characters; or the caption did not change.
    """
    texts = caption.strip(), instruction.strip(), edited_caption.strip()
    for text in texts:
        if not is_visible(text) and not _CONTROL.search(text):
            raise TripletError("blank", f"One of the three texts is empty: {text!r}.")
        if len(text.splitlines()) > 1 or text in _DELIMITERS:
            message = f"A text must be one line without delimiters: {text!r}."
            raise TripletError("lines", message)
        if _CONTROL.search(text):
            raise TripletError("characters", f"There are control characters: {text!r}.")
    if is_unchanged(caption, edited_caption):
        raise TripletError("unchanged", f"The edit changes nothing: {caption!r}.")
    return Triplet(*texts, language or language_of(instruction))


def to_prompt(caption: str) -> str:
    """The prompt of a completion model: the caption and a delimiter."""
    return caption + PROMPT_END


def to_completion(triplet: Triplet) -> str:
    """The completion to learn: instruction, edited caption and stop text."""
    return triplet.instruction + SEPARATOR + triplet.edited_caption + STOP


def parse_completion(caption: str, text: str) -> Triplet:
    """Parse a model's reply to ``to_prompt(caption)``.

    Its stop text may be missing; what follows it is ignored.

    Raises:
        TripletError: the reply does not split into exactly two parts at the
            ``%%`` line, or ``make_triplet`` refuses the parts.
    """
    parts = text.split(STOP)[0].split(SEPARATOR)
    if len(parts) != 2:
        message = f"Expected two parts around '%%', got {len(parts)}: {text!r}."
        raise TripletError("parts", message)
    return make_triplet(caption, *parts)


def write_jsonl(path: str | Path, triplets: Iterable[Triplet]) -> Path:
    """Write one JSON object a line with the keys ``input``, ``edit`` and ``output``.

    The keys of the authors' human-written set; ``language`` is added only where it is
    not what the instruction's characters say. Written completely or not at all.
    """
    return write_lines(path, (_to_row(triplet) for triplet in triplets))


def write_lines(path: str | Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write JSON objects, one a line, completely or not at all."""
    path = Path(path)
    with explain_disk_errors(path, 0), atomic_write(path) as file:
        for row in rows:
            file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())
    return path


def _to_row(triplet: Triplet) -> dict[str, Any]:
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
    ``caption``; both are read. Other keys, such as ``url``, are ignored. Raises
    ValueError for a line that is no valid triplet; the message names file and line.
    """
    return list(read_lines(path, _parse_triplet))


def read_lines(path: str | Path, parse: Callable[[str], T]) -> Iterator[T]:
    """Parse a file's lines that are not blank, one at a time; errors name the line."""
    with Path(path).open("rb") as lines:
        # Lines may end in CR alone, which only splitlines knows.
        rows = (row for line in lines for row in line.splitlines())
        for number, data in enumerate(rows, start=1):
            line = decode_text(data, path, number)
            try:
                values = [parse(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:  # also JSON errors
                advice = "Correct this line, or delete it."
                raise ValueError(f"{path}:{number}: {error} {advice}") from error
            yield from values


def _parse_triplet(line: str) -> Triplet:
    row = json.loads(line)
    if isinstance(row, dict):
        texts = row.get("input", row.get("caption")), row.get("edit"), row.get("output")
        match *texts, row.get("language"):
            case str(caption), str(edit), str(edited), (str() | None) as language:
                return make_triplet(caption, edit, edited, language)
    keys = "'input' (or 'caption'), 'edit', 'output' and, if there is one, 'language'"
    raise ValueError(f"expected a JSON object with texts under the keys {keys}.")


def read_captions(path: str | Path) -> Iterator[str]:
    """Read captions from a file, one at a time, so any number needs the memory of one.

    The authors took 454,445 captions from LAION-Aesthetics.
    ``path`` is ``.txt``, one caption a line; or ``.jsonl``, one object a line with the
    caption under ``input``, ``caption``, ``text`` or ``TEXT``. Words are put apart by
    single spaces, and blank captions are left out.

    Raises:
        ValueError: another kind of file, or a line without a caption; the message names
            file and line.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path.name}: captions are read from .txt and .jsonl files.")
    texts = read_lines(path, str if path.suffix == ".txt" else _parse_caption)
    yield from filter(None, (" ".join(text.split()) for text in texts))


def _parse_caption(line: str) -> str:
    row = json.loads(line)
    if isinstance(row, dict):
        match [row[key] for key in _CAPTIONS if key in row]:
            case [str(caption), *_]:
                return caption
    raise ValueError(f"expected an object with a text under one of {_CAPTIONS}.")
