"""Let a run finish its step when it is told to stop (Ctrl-C, a notebook's stop, kill).

Python acts on a signal between any two instructions, such as those that change the
weights and those that change their average. Here the first signal only leaves a note,
which the run reads at its next good moment; a second one does not wait. What is on disk
is whole in either case: ``checkpoint`` sees to that.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether the run was told to stop, and by which signal."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.number: int | None = None

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal: remember the first, and obey a second at once."""
        if self.number is not None:
            raise exception_of(number, "Stopped at once: the last step is not saved.")
        self.number = number


def exception_of(number: int, words: str) -> BaseException:
    """What a signal becomes: KeyboardInterrupt, or an exit with code 128 + number.

    That is what Python and shells make of them: 143 tells a scheduler of SIGTERM.
    """
    if number == signal.SIGINT:
        return KeyboardInterrupt(words)
    return SystemExit(128 + number)


@contextmanager
def noted_signals() -> Iterator[Interruption]:
    """Catch SIGINT and SIGTERM while the block lasts; earlier handlers then return.

    A signal that was set to be ignored stays ignored. Python hands signals to the main
    thread alone, so in another thread there is nothing to catch.
    """
    interruption = Interruption()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = {n: h for n, h in before.items() if h not in (signal.SIG_IGN, None)}
    try:
        for number in caught:
            signal.signal(number, interruption.note)
        yield interruption
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
