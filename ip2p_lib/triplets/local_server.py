"""A language model on this machine that is asked as a paid service is (section 3.1.1).

The authors asked their fine-tuned GPT-3 at OpenAI, which fine-tunes for newcomers no
more. ``transformers serve`` puts any model of a local folder behind the same protocol,
so that what was written for the service is tried, and used, without one:

    with serve(folder) as base_url:
        client = connect(base_url)
        replies = ask_service(
            captions, model=str(folder), client=client, form="completion", **SAMPLING
        )

It ignores a form asked for (``response_format``) and answers other model names than its
own folder with status 400.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# This server draws at random only where a request's ``generation_config`` says so, and
# takes a frequency penalty for transformers' repetition penalty, which keeps a model
# from the words of its caption too: here they are wanted.
SAMPLING: dict[str, Any] = {
    "frequency_penalty": 0.0,
    "extra_body": {"generation_config": json.dumps({"do_sample": True})},
}
_ADDRESS = re.compile(rb"running on (http://[\w.]+:\d+)")
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
}


class ServerError(RuntimeError):
    """A server that did not start: the message says why and what it needs."""


@contextmanager
def serve(
    folder: str | Path, *, device: str = "auto", seed: int = 0, patience: float = 180.0
) -> Iterator[str]:
    """Serve a causal language model while the block lasts, on a free port.

    The server is a process of its own. It ends with the block, and also when this
    process is killed.

    Args:
        folder: with the model and its tokenizer; ``str(folder)`` is the model's name.
        device: as PyTorch names it.
        seed: of the server's sampling; in which order requests come matters too.
        patience: seconds until it must be healthy.

    Yields:
        The ``base_url`` for ``connect``.

    Raises:
        FileNotFoundError: the folder holds no model.
        ServerError: the server did not start.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"There is no language model in {folder} to serve.")
    # -P: this file's neighbours must not be taken for modules of other packages.
    command = [sys.executable, "-P", __file__, "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", "0"]
    command += ["--device", device, "--default-seed", str(seed)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env=os.environ | _QUIET,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _wait_until_healthy(process, log, patience) + "/v1"
        finally:
            process.kill()
            process.communicate()


def _wait_until_healthy(
    process: subprocess.Popen[bytes], log: BinaryIO, patience: float
) -> str:
    """The server's address, once it answers there."""
    end = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < end:
        address = _ADDRESS.search(_read(log))
        if address and _is_healthy(address[1].decode()):
            return address[1].decode()
        time.sleep(0.1)
    lines = _read(log).decode("utf-8", "replace").splitlines()[-5:]
    raise ServerError(
        "The language server did not start. It needs transformers 5 and its packages "
        'for serving: pip install "transformers[serving]>=5". Its last words:\n'
        + "\n".join(lines)
    )


def _read(log: BinaryIO) -> bytes:
    # By position: reading on would move the place where the server writes.
    return os.pread(log.fileno(), 10**6, 0)


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5.0) as answer:
            return answer.status == 200
    except OSError:
        return False


def _end_with_parent() -> None:
    """Wait for the end of standard input: while the parent lives, it is open."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from transformers.cli.transformers import main

    main()
