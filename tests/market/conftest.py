"""The loopback exchange, and a source that talks to it without waiting."""

import pytest

from longtape.market.sources.bybit import Bybit
from tests.market.bybit_server import BybitServer


@pytest.fixture
def server():
    with BybitServer() as running:
        yield running


@pytest.fixture
def bybit(server):
    source = Bybit(server.url, rate=100_000.0, sleep=lambda seconds: None)
    yield source
    source.close()
