"""How long a benchmark has been running."""

import time

import psutil


def age() -> float:
    """Seconds since this process started, imports and compiling included."""
    return time.time() - psutil.Process().create_time()
