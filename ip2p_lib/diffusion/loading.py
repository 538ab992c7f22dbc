"""Loads one pretrained network of a larger model: whole, quietly, safetensors only.

Section 3.2 starts from pretrained weights; a missing one must not go unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def load_network(kind: Any, where: dict[str, Any]) -> Any:
    """Load a network; weights that are missing are an error, not a random layer.

    Args:
        kind: a class of ``diffusers`` or ``transformers``.
        where: arguments of its ``from_pretrained``.

    Raises:
        ValueError: the files lack weights that the network has.
    """
    with _no_progress_bar():
        model, report = kind.from_pretrained(
            **where, use_safetensors=True, output_loading_info=True
        )
    missing = sorted(report["missing_keys"])
    if missing:
        place = where["pretrained_model_name_or_path"]
        place = f"{place}/{where['subfolder']}" if "subfolder" in where else place
        raise ValueError(
            f"{place} lacks {len(missing)} weights, {missing[0]} among them: download "
            "or save the model again."
        )
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Counting to two files takes no bar, and a bar would stay in a notebook."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
