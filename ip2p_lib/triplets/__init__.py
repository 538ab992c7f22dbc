"""Stage 1: a language model turns captions into edit triplets (section 3.1.1).

Notebook 01. Read ``record`` (the triplet, its text format and files), ``generation``
(sampling, best of n) and ``quality_filters``; for a model of your own ``loading`` and
``finetuning``; for a chat model behind an API ``chat_format``, ``service``,
``reply_file`` and ``pricing``.
"""

from ip2p_lib.triplets.pricing import estimate_cost
from ip2p_lib.triplets.quality_filters import filter_replies
from ip2p_lib.triplets.record import (
    count_outcomes,
    read_captions,
    read_jsonl,
    write_jsonl,
)
from ip2p_lib.triplets.service import ask_service, connect

__all__ = [
    "ask_service",
    "connect",
    "count_outcomes",
    "estimate_cost",
    "filter_replies",
    "read_captions",
    "read_jsonl",
    "write_jsonl",
]
