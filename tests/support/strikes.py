"""Forked children that a signal strikes at one exact function call."""

import json
import os
import traceback
from collections.abc import Callable


class Strikes:
    """Counts function calls and returns, and sends this process a signal at some."""

    def __init__(self, *at: int, signal: int = 0, before: Callable = lambda: None):
        self.at, self.signal, self.before, self.count = at, signal, before, 0

    def __call__(self, frame, event, argument):
        self.count += 1
        if self.count in self.at:
            self.before()
            os.kill(os.getpid(), self.signal)


def in_child(work: Callable) -> tuple[int, object]:
    """Run ``work`` in a fork; returns the exit code and what ``work`` returned.

    The code of a child that a signal ended is minus the signal's number. Forking a
    process that has imported torch takes milliseconds; starting one takes seconds.
    """
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        code = 0
        try:
            os.write(writer, json.dumps(work()).encode())
        except SystemExit as stop:
            code = stop.code
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        told = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, json.loads(told) if told else None
