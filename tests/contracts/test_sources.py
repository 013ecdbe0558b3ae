"""What every source of candles owes its user, over the whole registry; services answer from loopback addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl
import pytest

from longtape.core.clock import DAY, Interval, to_milliseconds
from longtape.core.errors import UserError
from longtape.core.instrument import CATEGORIES
from longtape.market.bars import COLUMNS, TIME_TYPE, Bars
from longtape.market.fetch import FetchRequest, fetch
from longtape.market.sources import SOURCES, Source
from longtape.market.sources.bybit import Bybit
from longtape.market.sources.sample import Sample
from longtape.market.sources.simulate import ORIGIN, Simulate
from longtape.market.sources.yahoo import Yahoo
from longtape.market.store import Store
from tests.market.bybit_server import START, BybitServer, synthetic
from tests.market.yahoo_server import NOT_FOUND, made, serve


@dataclass(frozen=True)
class Service:
    """A source, what it has, and how to make it know no symbol of a name."""

    source: Source
    symbol: str
    interval: str
    first: int  # open of the first bar, UTC ms
    bars: int
    forget: Callable[[], Any] = lambda: None

    @property
    def step(self) -> int:
        return Interval.parse(self.interval).milliseconds

    def pages(self, since: int | None = None, until: int | None = None) -> list[pl.DataFrame]:
        """Of [since, until); left out: more than all there is."""
        since = self.first - 3 * self.step if since is None else since
        until = self.first + (self.bars + 400) * self.step if until is None else until
        return list(self.source.candles(self.symbol, self.interval, since, until, self.category))

    @property
    def category(self) -> str:
        return self.source.categories[0]


@contextmanager
def bybit() -> Iterator[Service]:
    with BybitServer() as server:
        server.add("BTCUSDT", synthetic(1_501))  # the last one is still open
        yield Service(Bybit(server.url, rate=100_000.0, sleep=lambda s: None), "BTCUSDT", "1h", START, 1_500)


@contextmanager
def ccxt() -> Iterator[Service]:
    pytest.importorskip("ccxt")
    from longtape.market.sources.ccxt import Ccxt
    from tests.market.ccxt_exchange import Exchange

    yield Service(Ccxt(Exchange(synthetic(701)), sleep=lambda s: None), "BTCUSDT", "1h", START, 700)


@contextmanager
def yahoo() -> Iterator[Service]:
    with serve() as state:
        state["body"] = made()
        source = Yahoo(state["url"], sleep=lambda s: None)
        first = to_milliseconds("2024-01-02")
        yield Service(source, "AAPL", "1d", first, 3, lambda: state.update(body=NOT_FOUND, status=404))


@contextmanager
def sample() -> Iterator[Service]:
    pytest.importorskip("arch")
    yield Service(Sample(), "SP500", "1d", to_milliseconds("1999-01-04"), 5_031)


@contextmanager
def simulate() -> Iterator[Service]:
    yield Service(Simulate(), "SIM3", "1h", ORIGIN, 500)


SERVICES = {"bybit": bybit, "ccxt": ccxt, "yahoo": yahoo, "sample": sample, "simulate": simulate}


@pytest.fixture(params=list(SOURCES))
def service(request) -> Iterator[Service]:
    with SERVICES[request.param]() as made_up:
        yield made_up
        made_up.source.close()
        made_up.source.close()  # as often as one likes


def times_of(frame: pl.DataFrame) -> list[int]:
    return frame["timestamp"].dt.timestamp("ms").to_list()


def test_it_has_a_name_and_categories_that_the_store_takes(service: Service) -> None:
    assert service.source.categories
    instrument = service.source.instrument(service.symbol, service.category)
    assert instrument.source == service.source.name
    assert instrument.symbol == service.symbol
    assert instrument.category in CATEGORIES
    assert service.source.restates(Interval.parse("1h")) is False


def test_pages_hold_checked_bars_of_their_range_each_once_and_in_order(service: Service) -> None:
    pages = service.pages(until=service.first + service.bars * service.step)
    frame = pl.concat(pages)
    times = times_of(frame)
    assert times == sorted(set(times))
    assert times[0] == service.first
    assert times[-1] < service.first + service.bars * service.step
    assert all(len(page) for page in pages)
    assert frame.schema["timestamp"] == TIME_TYPE
    assert all(frame.schema[name] == pl.Float64 for name in COLUMNS[1:])
    instrument = service.source.instrument(service.symbol, service.category)
    assert len(Bars.checked(instrument, Interval.parse(service.interval), frame)) == len(times)


def test_since_is_taken_and_until_is_not_and_values_do_not_depend_on_the_range(service: Service) -> None:
    whole = pl.concat(service.pages(until=service.first + min(service.bars, 900) * service.step))
    times = times_of(whole)
    a, b = len(times) // 3, len(times) - 1
    part = pl.concat(service.pages(times[a], times[b]))
    assert part.equals(whole[a:b])
    assert pl.concat(service.pages(times[a] - 1, times[b] + 1)).equals(whole[a : b + 1])


def test_a_range_without_a_bar_gives_none(service: Service) -> None:
    assert service.pages(service.first - 30 * DAY, service.first - 20 * DAY) == []


def test_what_it_does_not_know_is_the_users_mistake(service: Service) -> None:
    source, since, until = service.source, service.first, service.first + 9 * service.step
    wrong = [
        lambda: list(source.candles(service.symbol, "1y", since, until, service.category)),
        lambda: list(
            source.candles(service.symbol, service.interval, since, until, service.category, "candels")
        ),
    ]
    for call in wrong:
        with pytest.raises(UserError) as raised:
            call()
        assert "\n" not in str(raised.value)
    service.forget()
    with pytest.raises(UserError, match="NOSUCH"):
        source.instrument("NOSUCH", service.category)


def test_it_is_fetched_into_the_store_once(service: Service, tmp_path) -> None:
    store, until = Store(tmp_path), service.first + min(service.bars, 900) * service.step
    wanted = FetchRequest("candles", Interval.parse(service.interval), service.first, until)
    first = fetch(service.source, store, [service.symbol], wanted, service.category)[0]
    stored = store.read(service.symbol, service.interval).frame
    assert first.stored.added == len(stored) > 0
    assert stored.equals(pl.concat(service.pages(until=until)).select(stored.columns))
    again = fetch(service.source, store, [service.symbol], wanted, service.category)[0]
    assert (again.stored.added, again.stored.conflicts) == (0, 0)


def test_every_source_is_here() -> None:
    assert set(SERVICES) == set(SOURCES)
