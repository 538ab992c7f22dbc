"""Filter generated triplets by length, duplicates and moderation (section 3.1.1).

The authors' script drops replies without counting them. Here a dropped reply keeps its
text and gets exactly one reason, so that ``count_outcomes`` adds up: that of its
parsing, or one of

    length       a text is longer than the text encoder reads
    duplicate    the same triplet was kept before
    moderation   a text holds a blocked word
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache

from ip2p_lib.checks import each_text
from ip2p_lib.config import DATA
from ip2p_lib.triplets.record import Reply

BLOCKED_WORDS = DATA / "triplets" / "blocked_words.txt"
MAX_TOKENS = 77  # tokens that Stable Diffusion's text encoder reads, with its own two


def has_blocked_word(texts: Sequence[str]) -> bool:
    """Whether any text holds a word of ``BLOCKED_WORDS``.

    Whole words in the Latin script, any occurrence in Chinese.
    """
    return any(_blocked_words().search(t.lower()) for t in each_text("texts", texts))


@cache
def _blocked_words() -> re.Pattern[str]:
    lines = BLOCKED_WORDS.read_text("utf-8").splitlines()
    words = [w.strip().lower() for w in lines if w.strip() and not w.startswith("#")]
    patterns = (rf"\b{re.escape(w)}\b" if w.isascii() else re.escape(w) for w in words)
    return re.compile("|".join(patterns))


def filter_replies(
    replies: Iterable[Reply],
    *,
    count_tokens: Callable[[str], int] | None = None,
    is_flagged: Callable[[Sequence[str]], bool] = has_blocked_word,
) -> Iterator[Reply]:
    """Pass replies on; those that fail a filter lose their triplet and get a reason.

    Args:
        replies: from ``generate_triplets`` or ``ask_service``, read one at a time; 16
            bytes of each triplet are remembered.
        count_tokens: counts a text's tokens, special tokens included; ``None`` checks
            no length.
        is_flagged: whether a triplet's three texts must not be trained on. A service's
            moderation endpoint fits, as the authors used it:
            ``lambda texts: any(r.flagged for r in
            client.moderations.create(input=texts).results)``.
    """
    digests = set()
    for reply in replies:
        triplet = reply.triplet
        if triplet is None:
            yield reply
            continue
        texts = [triplet.caption, triplet.instruction, triplet.edited_caption]
        # Equal for triplets that differ in case and spaces only.
        plain = "\n".join(" ".join(text.lower().split()) for text in texts)
        digest = hashlib.blake2b(plain.encode("utf-8", "replace"), digest_size=16)
        if count_tokens and max(map(count_tokens, texts)) > MAX_TOKENS:
            yield replace(reply, triplet=None, reason="length")
        elif digest.digest() in digests:
            yield replace(reply, triplet=None, reason="duplicate")
        elif is_flagged(texts):
            yield replace(reply, triplet=None, reason="moderation")
        else:
            digests.add(digest.digest())
            yield reply
