"""What happens to one caption that a service is asked about (section 3.1.1).

``ServiceRun.answer`` takes a caption to exactly one state:

- it is in the ledger: nothing is sent;
- a reply, good or not (the reasons of ``triplets.Reply``; what lacks the form is
  asked for again);
- ``rejected``: the service takes other captions but not this one;
- ``unanswered``: faults that should pass did not, while other captions were answered;
- the run ends, in words.

Each request follows the same order: reserve the most it can cost, write it into the
ledger, send it, write down what came, give back what it did not cost.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ip2p_lib.triplets.chat_format import (
    Reader,
    decoded,
    longest_reply,
    read_answer,
    read_text,
    read_usage,
)
from ip2p_lib.triplets.cost import Budget, most_tokens
from ip2p_lib.triplets.errors import (
    Patience,
    ServiceError,
    concerns_one,
    explain,
    is_passing,
    may_have_been_paid,
    pause,
)
from ip2p_lib.triplets.ledger import Answer, Ledger, LedgerError
from ip2p_lib.triplets.record import Reply
from ip2p_lib.triplets.requests import Form

if TYPE_CHECKING:
    from openai import OpenAI

_SILENT = 3  # captions in a row that came to nothing: the service has gone
_FIRST_TRIES = 3  # nothing has ever come back: more likely a wrong address


@dataclass
class ServiceRun:
    """What all captions of a run share; any number of threads call ``answer``."""

    client: OpenAI
    model: str
    form: Form
    options: dict[str, Any]
    attempts: int
    ledger: Ledger
    budget: Budget
    patience: Patience
    answered: bool = False
    silent: int = 0  # captions that came to nothing since the last answer
    fault: Exception | None = None  # what ended the run
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if self.ledger.parts():
            raise LedgerError(
                f"Captions of run {self.ledger.run!r} wait in a batch. Finish it with "
                "ask_in_batches, or they would be paid twice."
            )
        self.client = self.client.with_options(max_retries=0)  # the waiting is ours

    def answer(self, place: int, caption: str) -> Reply:
        """Take one caption to its state.

        Raises:
            ServiceError, CeilingError, LedgerError: the run is over, for all captions.
        """
        try:
            known = self.ledger.find(place, caption)
            if known is None:
                return self._ask(place, caption)
            return recall(caption, known, self.form.read)
        except Exception as error:
            self.fault = self.fault or error
        self.stop.set()
        raise self.fault from None

    def _ask(self, place: int, caption: str) -> Reply:
        """Ask until a reply has the form, or the attempts are used up."""
        request = self.form.request(caption)
        for left in reversed(range(self.attempts)):
            found = self._send_patiently(place, caption, request)
            if isinstance(found, Reply):
                return found
            body, reserved = found
            reply = read_answer(caption, body, self.form.read)
            final = reply.reason not in self.form.lacking or not left
            self._settle(place, reply, body, reserved, final)
            if final:
                return reply
        raise ValueError(f"attempts must be 1 or more, not {self.attempts}.")

    def _settle(
        self, place: int, reply: Reply, body: Any, reserved: int, final: bool
    ) -> None:
        """Write down what came and what it cost; without a count, the most."""
        usage = read_usage(body)
        cost = reserved if usage is None else self.budget.price.cost(*usage)
        answer = Answer(reply.text, reply.reason, *(usage or (0, 0)))
        self.ledger.settle([(place, answer, cost)], final=final)
        self.budget.release(reserved, cost)
        self.answered, self.silent = True, 0

    def _send_patiently(
        self, place: int, caption: str, request: dict[str, Any]
    ) -> tuple[Any, int] | Reply:
        """Send, and again while the fault may pass.

        Returns:
            The answer's body and what was reserved for it, or how the caption ended.
        """
        tries = 0
        while True:
            tries += 1
            body, reserved, error = self._send(place, caption, request)
            if error is None:
                return body, reserved
            if not is_passing(error) or tries >= self._most_tries():
                return self._give_up(caption, error)
            self.stop.wait(pause(error, tries, place, self.patience))

    def _most_tries(self) -> int:
        tries = self.patience.tries
        return tries if self.answered else min(tries, _FIRST_TRIES)

    def _give_up(self, caption: str, error: Any) -> Reply:
        """End this caption, or the run where no other caption would fare better."""
        self.silent += 1
        passing = is_passing(error)
        one = self.answered and self.silent < _SILENT
        if one and (passing or concerns_one(error)):
            return Reply(caption, "", reason="unanswered" if passing else "rejected")
        raise ServiceError(explain(error, self.model))

    def _send(
        self, place: int, caption: str, request: dict[str, Any]
    ) -> tuple[Any, int, Any]:
        """Send once: the body, what was reserved, and the fault if there was one."""
        import openai

        if self.stop.is_set():
            raise self.fault or ServiceError("The run was stopped.")
        most_read, most_written = most_tokens(request), longest_reply(self.options)
        reserved = self.budget.reserve(most_read, most_written)
        self.ledger.intend([(place, caption, reserved, None)])
        try:
            endpoint = self.form.endpoint(self.client).with_raw_response
            raw = endpoint.create(model=self.model, **request, **self.options)
            return decoded(raw.text), reserved, None
        except openai.APIError as error:
            # It names the request and part of the key, so it goes no further than
            # _give_up, and is not chained to what is raised there.
            self._write_off(place, reserved, error)
            return None, 0, error

    def _write_off(self, place: int, reserved: int, error: Any) -> None:
        """No answer came: what was reserved is lost, or free again."""
        if may_have_been_paid(error):
            self.ledger.lose(place)
        else:
            self.ledger.withdraw([place])
            self.budget.release(reserved)


def recall(caption: str, known: Answer, read: Reader = read_text) -> Reply:
    """The reply that an answer in the ledger stands for.

    Raises:
        LedgerError: it was good, but in another form than ``read`` reads.
    """
    if known.reason is not None:
        return Reply(caption, known.text, reason=known.reason)
    reply = read(caption, known.text)
    if reply.triplet is None:
        raise LedgerError(
            f"The ledger's answer about {caption!r} is in another form. Ask in the "
            "form that the run began with, or give the new run a new name."
        )
    return reply
