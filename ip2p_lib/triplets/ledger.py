"""What was asked of a paid service and what came back, on disk (section 3.1.1).

The authors had a language model write 454,445 triplets. A run of that size is
interrupted sooner or later, and every question costs money, so this ledger writes down
each question *before* it is sent and each answer when it comes. A run that was killed
goes on from here: what is answered is never asked again. What had been sent and had no
answer yet may have been paid for in vain; how often, the ledger knows and says.

It is one SQLite file. Its journal is written ahead (WAL), and a line counts only once
it is on the disk (``synchronous=FULL``), so that a power cut forgets nothing either.
Money is whole millionths of a millionth of a dollar, which add up without rounding.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    run TEXT, place INTEGER, digest TEXT NOT NULL,
    part INTEGER,                       -- the batch it waits in, if any
    held INTEGER,                       -- at most this is spent: sent, no answer
    lost INTEGER NOT NULL DEFAULT 0,    -- at most this was spent on lost answers
    losses INTEGER NOT NULL DEFAULT 0,  -- how many those were
    spent INTEGER NOT NULL DEFAULT 0,   -- on answers that came, useful or not
    read INTEGER NOT NULL DEFAULT 0, written INTEGER NOT NULL DEFAULT 0,
    text TEXT, reason TEXT,             -- the answer, once it is final
    PRIMARY KEY (run, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS open_parts ON requests (run, part) WHERE part IS NOT NULL;
CREATE INDEX IF NOT EXISTS open_sends ON requests (run) WHERE held IS NOT NULL;
"""


class LedgerError(RuntimeError):
    """A ledger that cannot be used this way; the message says what to do."""


@dataclass(frozen=True)
class Answer:
    """What came back for one caption, and the tokens the service counted.

    ``reason`` is ``None`` for a good triplet, otherwise as in ``triplets.Reply``.
    """

    text: str
    reason: str | None = None
    read: int = 0
    written: int = 0


@dataclass(frozen=True)
class Loss:
    """A question that was sent and whose answer never arrived: possibly paid twice."""

    place: int
    times: int
    cost: int  # at most; millionths of a millionth of a dollar


@dataclass(frozen=True)
class Totals:
    """A run so far; money in millionths of a millionth of a dollar."""

    answers: int = 0
    read: int = 0  # tokens
    written: int = 0
    spent: int = 0
    lost: int = 0  # at most
    held: int = 0  # at most, on what is under way


class Ledger:
    """The questions and answers of one run; any number of threads may share it.

    Args:
        path: the file, made if absent; ``None`` keeps a temporary one until ``close``.
        run: names the run. The same name goes on with it, another starts afresh.

    Raises:
        LedgerError: the file is in use, or is no ledger.
    """

    def __init__(self, path: str | Path | None = None, run: str = "run") -> None:
        self.path, self.run = None if path is None else Path(path), run
        self._lock = threading.Lock()
        try:
            self._file = _open(self.path)
            # Whoever sent these is gone: this process alone holds the file.
            self._write(
                "UPDATE requests "
                "SET lost = lost + held, losses = losses + 1, held = NULL "
                "WHERE run = ? AND held IS NOT NULL AND part IS NULL",
                [(run,)],
            )
        except sqlite3.Error as error:
            raise LedgerError(
                f"The ledger {self.path} cannot be opened ({error}). If another "
                "notebook or an earlier cell is using it, close it there."
            ) from None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def find(self, place: int, caption: str) -> Answer | None:
        """The answer to the caption at this place, if it came.

        Raises:
            LedgerError: the run had another caption at this place.
        """
        rows = self._rows(
            "SELECT digest, text, reason, read, written FROM requests "
            "WHERE run = ? AND place = ?",
            place,
        )
        if rows and rows[0][0] != digest(caption):
            raise LedgerError(
                f"Run {self.run!r} had another caption at place {place}. Give it the "
                "captions it began with, or give the new run a new name."
            )
        return Answer(*rows[0][1:]) if rows and rows[0][1] is not None else None

    def intend(self, questions: Iterable[tuple[int, str, int, int | None]]) -> None:
        """Write down what is about to be sent, all or nothing.

        Args:
            questions: place, caption, the most it can cost, and the number of the
                batch that carries it (``None`` for a request of its own).
        """
        self._write(
            "INSERT INTO requests (run, place, digest, held, part) VALUES (?,?,?,?,?) "
            "ON CONFLICT DO UPDATE SET held = excluded.held, part = excluded.part",
            ((self.run, p, digest(c), held, part) for p, c, held, part in questions),
        )

    def settle(
        self, answers: Iterable[tuple[int, Answer, int]], *, final: bool = True
    ) -> None:
        """Write down what came, all or nothing.

        Args:
            answers: place, answer and what it cost.
            final: otherwise only the cost counts and the caption will be asked again.
        """
        rows = []
        for place, a, cost in answers:
            text, reason = (a.text, a.reason) if final else (None, None)
            rows.append((text, reason, cost, a.read, a.written, self.run, place))
        self._write(
            "UPDATE requests SET text = ?, reason = ?, held = NULL, part = NULL, "
            "spent = spent + ?, read = read + ?, written = written + ? "
            "WHERE run = ? AND place = ?",
            rows,
        )

    def withdraw(self, places: Iterable[int]) -> None:
        """The service turned these down: nothing was spent."""
        self._write(
            "UPDATE requests SET held = NULL, part = NULL WHERE run = ? AND place = ?",
            ((self.run, place) for place in places),
        )

    def lose(self, place: int) -> None:
        """No answer came, though the service may have written and charged one."""
        self._write(
            "UPDATE requests SET lost = lost + held, losses = losses + 1, held = NULL "
            "WHERE run = ? AND place = ?",
            [(self.run, place)],
        )

    def losses(self) -> list[Loss]:
        """Every question that is possibly paid twice (or will be, once asked again)."""
        rows = self._rows(
            "SELECT place, losses, lost FROM requests WHERE run = ? AND losses > 0"
        )
        return [Loss(*row) for row in rows]

    def waiting(self, part: int) -> list[int]:
        """The places that a batch carries and that have no answer yet, in order."""
        rows = self._rows("SELECT place FROM requests WHERE run = ? AND part = ?", part)
        return [place for (place,) in rows]

    def parts(self) -> dict[int, int]:
        """How many captions wait in each open batch, by its number."""
        rows = self._rows(
            "SELECT part, COUNT(*) FROM requests WHERE run = ? AND part IS NOT NULL "
            "GROUP BY part"
        )
        return dict(rows)

    def totals(self) -> Totals:
        """Add up the run."""
        ((*sums,),) = self._rows(
            "SELECT COUNT(text), SUM(read), SUM(written), SUM(spent), SUM(lost), "
            "SUM(held) FROM requests WHERE run = ?"
        )
        return Totals(*(value or 0 for value in sums))

    def _write(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        with self._lock, self._file:
            self._file.execute("BEGIN")
            self._file.executemany(statement, rows)

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._file.execute(query, (self.run, *values)).fetchall()


def digest(caption: str) -> str:
    """Name a caption by 128 bits of its SHA-256, in hexadecimal."""
    return hashlib.sha256(caption.encode("utf-8", "replace")).hexdigest()[:32]


def _open(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    # An empty name is a temporary file of SQLite's own.
    file = sqlite3.connect(
        path or "", timeout=1.0, isolation_level=None, check_same_thread=False
    )
    try:
        # Exclusive: two processes on one ledger would each ask, and pay, for the rest.
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute(f"PRAGMA synchronous = {'OFF' if path is None else 'FULL'}")
        file.executescript(_SCHEMA)
    except sqlite3.Error:
        file.close()
        raise
    return file
