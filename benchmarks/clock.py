"""The time that a benchmark has spent."""

import time

import psutil


def age() -> float:
    """Seconds since this process began, imports and compiling included."""
    return time.time() - psutil.Process().create_time()
