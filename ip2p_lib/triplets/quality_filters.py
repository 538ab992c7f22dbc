"""What is dropped after the language model has written, and why (section 3.1.1).

The authors drop replies that do not split in two, that change nothing, that moderation
objects to, and captions seen before; their script does not count them. Here a reply
that falls keeps its text and gets exactly one reason, so ``triplets.tally`` adds up:

    parts, blank, lines, unchanged, ...   found while the reply was read
    length       a text is longer than the text encoder reads
    duplicate    the same triplet, or the same caption if so asked, was kept before
    moderation   a text that must not be learnt from; last, as a service takes time
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ip2p_lib.config import DATA
from ip2p_lib.triplets.record import Reply, Triplet

BLOCKED = DATA / "triplets" / "blocked_words.txt"
LONGEST = 77  # tokens that Stable Diffusion's text encoder reads, markers included

# Whether any of a triplet's texts must not be learnt from.
Objection = Callable[[Sequence[str]], bool]


def word_list(path: str | Path = BLOCKED) -> Objection:
    """Moderation by a list of words, for where there is no service for it.

    Args:
        path: one word a line; lines that begin with # are remarks.

    Returns:
        A function that says whether any of some texts holds one: whole words in the
        Latin script, any occurrence in Chinese.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    words = [w.strip().lower() for w in lines if w.strip() and not w.startswith("#")]
    patterns = (rf"\b{re.escape(w)}\b" if w.isascii() else re.escape(w) for w in words)
    blocked = re.compile("|".join(patterns))
    return lambda texts: any(blocked.search(text.lower()) for text in texts)


def filter_replies(
    replies: Iterable[Reply],
    *,
    tokens: Callable[[str], int] | None = None,
    longest: int = LONGEST,
    objects: Objection | None = None,
    once_a_caption: bool = False,
) -> Iterator[Reply]:
    """Pass every reply on, some of them without their triplet and with a reason.

    Args:
        replies: from ``write_triplets`` or ``ask_service``, read one at a time; of
            those before, only 16 bytes a triplet are remembered.
        tokens: counts a text's tokens, markers included; ``None`` checks no length.
        longest: that a text may be.
        objects: from ``word_list`` or ``moderation.service_moderation``; ``None`` is
            the shipped word list.
        once_a_caption: keep the first triplet of a caption only, as the authors do.
    """
    objects, seen = objects or word_list(), set()
    for reply in replies:
        triplet = reply.triplet
        if triplet is None:
            yield reply
            continue
        mark = _mark(triplet, once_a_caption)
        texts = (triplet.caption, triplet.instruction, triplet.edited_caption)
        if tokens and max(map(tokens, texts)) > longest:
            yield replace(reply, triplet=None, reason="length")
        elif mark in seen:
            yield replace(reply, triplet=None, reason="duplicate")
        elif objects(texts):
            yield replace(reply, triplet=None, reason="moderation")
        else:
            seen.add(mark)
            yield reply


def _mark(triplet: Triplet, once_a_caption: bool) -> bytes:
    texts = [triplet.caption]
    if not once_a_caption:
        texts += [triplet.instruction, triplet.edited_caption]
    text = "\n".join(" ".join(text.lower().split()) for text in texts)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
