"""A fake service and a client of it."""

from collections.abc import Iterator

import pytest

from ip2p_lib.triplets.service import connect
from tests.support.service import KEY, FakeService


@pytest.fixture
def server() -> Iterator[FakeService]:
    with FakeService() as server:
        yield server


@pytest.fixture
def client(server, monkeypatch):
    """A client with a key that must not turn up anywhere and with short back-off."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    with connect(server.url) as client:
        yield client
