"""One triplet, two training files: the paper's completions and today's chats (3.1.1).

The authors fine-tuned GPT-3 on rows of a prompt and a completion, whose markers
``triplets`` explains. Models since then are fine-tuned on conversations: the task, the
caption as a question, the triplet's other half as the answer, in the form in which
``service_form`` asks for it. The third format, structured output, is that answer alone.
OpenAI closes fine-tuning early in 2027; other trainers read the same two files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ip2p_lib.triplets.chat_format import lead, question, read_text
from ip2p_lib.triplets.record import (
    ASK,
    Triplet,
    TripletError,
    parse_completion,
    to_completion,
    to_prompt,
    write_lines,
)

Row = dict[str, Any]


def to_completion_row(triplet: Triplet) -> Row:
    """The paper's row, as the released ``prepare_for_gpt.py`` writes it."""
    return {"prompt": to_prompt(triplet.caption), "completion": to_completion(triplet)}


def from_completion_row(row: Row) -> Triplet:
    """Read ``to_completion_row`` back.

    Raises:
        TripletError: the row is no triplet.
    """
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise TripletError("schema", "The row needs texts 'prompt' and 'completion'.")
    return parse_completion(prompt.removesuffix(ASK), completion)


def to_chat_row(triplet: Triplet) -> Row:
    """A conversation of one question: what a chat model is fine-tuned on."""
    return {"messages": lead([triplet])}


def from_chat_row(row: Row) -> Triplet:
    """Read ``to_chat_row`` back, whatever task its first message sets.

    Raises:
        TripletError: the row is no conversation about a caption, or no triplet.
    """
    try:
        *_, asked, answered = row["messages"]
        caption = json.loads(asked["content"])["caption"]
        reply = read_text(caption, answered["content"])
    except (KeyError, TypeError, ValueError) as error:
        raise TripletError(
            "schema", "The row is no conversation of a question and an answer."
        ) from error
    if question(caption)["role"] != asked.get("role") or reply.triplet is None:
        reason = reply.reason or "schema"
        raise TripletError(reason, f"The answer is no triplet ({reason}).")
    return reply.triplet


FORMATS: dict[str, tuple[Callable[[Triplet], Row], Callable[[Row], Triplet]]] = {
    "completion": (to_completion_row, from_completion_row),
    "chat": (to_chat_row, from_chat_row),
}


def write_tuning_file(
    path: str | Path, triplets: Iterable[Triplet], form: str = "chat"
) -> Path:
    """Write a training file, one JSON object a line, whole or not at all.

    Args:
        path: of the file.
        triplets: read once.
        form: ``"completion"``, the paper's, or ``"chat"``.

    Raises:
        ValueError: another form.
    """
    write, _ = _format(form)
    rows = (json.dumps(write(triplet), ensure_ascii=False) for triplet in triplets)
    return write_lines(path, rows)


def read_tuning_file(path: str | Path, form: str = "chat") -> list[Triplet]:
    """Read ``write_tuning_file`` back.

    Raises:
        ValueError: another form, or a line that is no triplet; it names file and line.
    """
    _, read = _format(form)
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found += [read(json.loads(line))] if line.strip() else []
        except ValueError as error:  # also TripletError and JSON errors
            raise ValueError(f"{path}:{number}: {error}") from error
    return found


def _format(form: str) -> tuple[Callable[[Triplet], Row], Callable[[Row], Triplet]]:
    if form not in FORMATS:
        raise ValueError(
            f"There is no form {form!r}; choose from {', '.join(FORMATS)}."
        )
    return FORMATS[form]
