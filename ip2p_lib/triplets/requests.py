"""Two ways of asking a service about a caption (section 3.1.1).

- ``Chat``: a model of today is told the task, shown examples, and bound to a form of
  JSON, which ``service_form`` describes.
- ``Completion``: a model fine-tuned on triplets in the paper's format continues
  ``caption\\n##\\n``, as the authors' GPT-3 did in the released
  ``generate_txt_dataset.py``.

They differ in what is sent and in how the text that comes back is read. All the rest,
the ledger, the ceiling, the faults and a caption's states, is in ``service_run``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from ip2p_lib.triplets.chat_format import (
    CONTROL,
    LONGEST_REPLY,
    lead,
    mended,
    question,
    read_text,
    response_format,
    with_defaults,
)
from ip2p_lib.triplets.cost import MARKUP, likely_tokens
from ip2p_lib.triplets.record import (
    END,
    Reply,
    Triplet,
    TripletError,
    parse_completion,
    to_prompt,
)

if TYPE_CHECKING:
    from openai import OpenAI

FormName = Literal["chat", "completion"]


class Form(Protocol):
    """One way of asking."""

    @property
    def lacking(self) -> frozenset[str]:
        """The reasons of replies that lack the form; such captions are asked again."""

    def defaults(self, options: dict[str, Any], effort: str | None) -> dict[str, Any]:
        """The options of a run, with what they leave open; a limit is among them."""

    def request(self, caption: str) -> dict[str, Any]:
        """What is sent about a caption, beside the model and the options."""

    def endpoint(self, client: OpenAI) -> Any:
        """Where it is sent."""

    def read(self, caption: str, text: str) -> Reply:
        """Read what the model wrote: a triplet, or the reason why it is none."""

    def question(self, caption: str) -> str:
        """The part of a request that holds the caption."""

    def sizes(self) -> tuple[int, float]:
        """About how many more tokens than a question a request and an answer have."""


@dataclass(frozen=True)
class Chat:
    """A task, examples, and a caption; the answer is JSON of the form."""

    lead: list[dict[str, str]]
    lacking: ClassVar[frozenset[str]] = frozenset({"schema"})

    def defaults(self, options: dict[str, Any], effort: str | None) -> dict[str, Any]:
        return with_defaults(options, effort)

    def request(self, caption: str) -> dict[str, Any]:
        messages = [*self.lead, question(caption)]
        return {"messages": messages, "response_format": response_format()}

    def endpoint(self, client: OpenAI) -> Any:
        return client.chat.completions

    def read(self, caption: str, text: str) -> Reply:
        return read_text(caption, text)

    def question(self, caption: str) -> str:
        return question(caption)["content"]

    def sizes(self) -> tuple[int, float]:
        """The task, the examples and the form; answers are as long as the examples."""
        sizes = [likely_tokens(message["content"]) for message in self.lead]
        form = likely_tokens(json.dumps(response_format()["json_schema"]["schema"]))
        asked, told = sizes[1::2], sizes[2::2]
        # Without examples: as in our own triplets.
        longer = (sum(told) - sum(asked)) / len(told) if told else 11.0
        return sum(sizes) + MARKUP * (len(sizes) + 1) + form, longer


@dataclass(frozen=True)
class Completion:
    """A caption and the marker at which a fine-tuned model starts to write."""

    lacking: ClassVar[frozenset[str]] = frozenset({"schema", "parts", "unfinished"})

    def defaults(self, options: dict[str, Any], effort: str | None) -> dict[str, Any]:
        """The sampling of the released script; a completion knows no effort."""
        sampling = {"temperature": 0.7, "frequency_penalty": 0.1}
        return {"max_tokens": LONGEST_REPLY} | sampling | options

    def request(self, caption: str) -> dict[str, Any]:
        return {"prompt": self.question(caption), "stop": END}

    def endpoint(self, client: OpenAI) -> Any:
        return client.completions

    def read(self, caption: str, text: str) -> Reply:
        """Read the paper's format; the marker at its end is not sent."""
        try:
            triplet = parse_completion(caption, text)
        except TripletError as error:
            return Reply(caption, text, reason=error.reason)
        if CONTROL.search(triplet.instruction + triplet.edited_caption):
            return Reply(caption, text, reason="schema")
        return Reply(caption, text, triplet)

    def question(self, caption: str) -> str:
        return to_prompt(mended(caption))

    def sizes(self) -> tuple[int, float]:
        return 0, 7.0  # as in our own triplets


def form_of(name: FormName, examples: Sequence[Triplet] = ()) -> Form:
    """The form of this name.

    Args:
        name: ``"chat"`` or ``"completion"``.
        examples: shown in a chat.

    Raises:
        ValueError: there is no such form, or it takes no examples.
    """
    if name == "chat":
        return Chat(lead(examples))
    if name != "completion":
        raise ValueError(f"There is no form {name!r}. Use 'chat' or 'completion'.")
    if examples:
        raise ValueError(
            "A model that is asked for completions has learnt from its examples and is "
            "shown none. Leave them out, or use form='chat'."
        )
    return Completion()
