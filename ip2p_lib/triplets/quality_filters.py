"""Filter generated triplets by length, duplicates and moderation (section 3.1.1).

The authors drop replies that do not split in two, that change nothing, that a
moderation service flags, and captions that came before; their script does not count
them. Here a dropped reply keeps its text and gets exactly one reason, so that
``count_outcomes`` adds up:

    parts, blank, lines, unchanged, ...   set when the reply was parsed
    length       a text is longer than the text encoder reads
    duplicate    the same triplet, or the same caption if so chosen, was kept before
    moderation   a text holds a blocked word
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ip2p_lib.config import DATA
from ip2p_lib.triplets.record import Reply, Triplet

BLOCKED_WORDS = DATA / "triplets" / "blocked_words.txt"
MAX_TOKENS = 77  # tokens that Stable Diffusion's text encoder reads, with its own two

# Whether any of a triplet's three texts must not be trained on.
Moderator = Callable[[Sequence[str]], bool]


def word_list_moderator(path: str | Path = BLOCKED_WORDS) -> Moderator:
    """A moderator that flags texts holding a blocked word.

    Args:
        path: one word a line; lines that begin with # are comments.

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
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int = MAX_TOKENS,
    is_flagged: Moderator | None = None,
    one_per_caption: bool = False,
) -> Iterator[Reply]:
    """Pass replies on; those that fail a filter lose their triplet and get a reason.

    Args:
        replies: from ``generate_triplets`` or ``ask_service``, read one at a time; 16
            bytes of each triplet are remembered.
        count_tokens: counts a text's tokens, special tokens included; ``None`` checks
            no length.
        max_tokens: that a text may have.
        is_flagged: the moderator; ``None`` is ``word_list_moderator()``. A service's
            moderation endpoint fits, as the authors used it:
            ``lambda texts: any(r.flagged for r in
            client.moderations.create(input=texts).results)``.
        one_per_caption: keep the first triplet of a caption only, as the authors do.
    """
    is_flagged, kept = is_flagged or word_list_moderator(), set()
    for reply in replies:
        triplet = reply.triplet
        if triplet is None:
            yield reply
            continue
        digest = _digest(triplet, one_per_caption)
        texts = [triplet.caption, triplet.instruction, triplet.edited_caption]
        if count_tokens and max(map(count_tokens, texts)) > max_tokens:
            yield replace(reply, triplet=None, reason="length")
        elif digest in kept:
            yield replace(reply, triplet=None, reason="duplicate")
        elif is_flagged(texts):
            yield replace(reply, triplet=None, reason="moderation")
        else:
            kept.add(digest)
            yield reply


def _digest(triplet: Triplet, one_per_caption: bool) -> bytes:
    texts = [triplet.caption]
    if not one_per_caption:
        texts += [triplet.instruction, triplet.edited_caption]
    text = "\n".join(" ".join(text.lower().split()) for text in texts)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
