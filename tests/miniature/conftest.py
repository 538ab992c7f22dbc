"""The world is tested with the phrasings of the next generation.

Those in ``data/phrasings`` are the ones that the shipped networks were trained on.
"""

from collections.abc import Iterator

import pytest

from ip2p_lib.config import MODELS
from ip2p_lib.miniature import parsing, phrasings

CACHES = (
    phrasings.load_phrasebook,
    phrasings.load_captions,
    parsing._spoken_words,
)


def _clear() -> None:
    for function in CACHES:
        function.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def next_phrasings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phrasings, "FOLDER", MODELS / "next" / "phrasings")
        _clear()
        yield
    _clear()
