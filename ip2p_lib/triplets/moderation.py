"""Moderation by a service: which texts must not be learnt from (section 3.1.1).

The released ``generate_txt_dataset.py`` asks OpenAI's moderation endpoint about each
caption, instruction and edited caption. It costs nothing there; servers of one's own
rarely have it, and ``triplet_filter.word_list`` is for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ip2p_lib.triplets.chat_format import decoded, mended
from ip2p_lib.triplets.errors import PATIENCE, Patience, ServiceError, patiently
from ip2p_lib.triplets.quality_filters import Objection

if TYPE_CHECKING:
    from openai import OpenAI

MODEL = "omni-moderation-latest"
_INSTEAD = "moderate by the list of words: filter_replies(..., objects=word_list())."


def service_moderation(
    client: OpenAI, *, model: str = MODEL, patience: Patience = PATIENCE
) -> Objection:
    """Moderation for ``filter_replies`` by the endpoint of a service.

    Args:
        client: from ``connect``.
        model: the moderation model's name there.
        patience: how long to wait for faults that pass.

    Returns:
        A function that asks about some texts, in one request, and says whether the
        service flags any. It raises ``ServiceError`` where the service cannot say.
    """
    moderations = client.with_options(max_retries=0).moderations.with_raw_response

    def objects(texts: Sequence[str]) -> bool:
        """Whether the service flags any of the texts."""
        wanted = [mended(text) for text in texts]
        try:
            ask = partial(moderations.create, model=model, input=wanted)
            raw = patiently(ask, model, patience)
        except ServiceError as error:
            if error.status != 404:
                raise
            raise ServiceError(
                f"The service has no moderation model {model!r}. Use another service "
                f"for it, or {_INSTEAD}"
            ) from None
        return any(_flags(decoded(raw.text), len(wanted)))

    return objects


def _flags(body: Any, expected: int) -> list[bool]:
    """What the service says of each text, in their order."""
    match body:
        case {"results": [*results]} if len(results) == expected:
            flags = [r.get("flagged") if isinstance(r, dict) else None for r in results]
            if all(isinstance(flag, bool) for flag in flags):
                return [flag is True for flag in flags]
    raise ServiceError(
        f"The service did not say of each of {expected} texts whether it is flagged. "
        f"Use a service with OpenAI's moderation endpoint, or {_INSTEAD}"
    )
