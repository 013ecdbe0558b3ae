"""ccxt's exchanges through a stand-in that pages, limits and fails as they do; no network."""

import ccxt as library
import numpy as np
import polars as pl
import pytest

from longtape.core.clock import HOUR
from longtape.core.errors import ServiceError, UserError
from longtape.market.sources import open_source
from longtape.market.sources.ccxt import Ccxt
from tests.market.bybit_server import START, synthetic
from tests.market.ccxt_exchange import Exchange

NAMES = ["timestamp", "open", "high", "low", "close", "volume"]


def fetched(exchange, since=START, until=START + 9_000 * HOUR):
    source = Ccxt(exchange, sleep=lambda seconds: None)
    frames = list(source.candles("BTCUSDT", "1h", since, until))
    return pl.concat(frames).select(NAMES) if frames else None


@pytest.mark.parametrize("cap", [50, 300])
@pytest.mark.parametrize("heeds_until", [True, False])
def test_pages_are_hidden(cap, heeds_until):
    candles = synthetic(1_234)
    assert fetched(Exchange(candles, cap, heeds_until)).equals(candles[:-1])
    got = fetched(Exchange(candles, cap, heeds_until), START + 10 * HOUR, START + 500 * HOUR)
    assert got.equals(candles[10:500])


def test_a_late_listing_and_a_closed_market():
    candles = synthetic(2_000)
    rows = np.r_[0:700, 1_500:2_000]
    exchange = Exchange(candles[rows])
    assert fetched(exchange, START - 30_000 * HOUR).equals(candles[rows][:-1])
    assert exchange.calls < 60


def test_faults_that_pass_are_tried_again_and_others_named():
    candles = synthetic(400)
    exchange = Exchange(candles)
    exchange.faults = [
        library.RateLimitExceeded("slow down"),
        library.RequestTimeout(),
        library.ExchangeNotAvailable(),
    ]
    assert fetched(exchange).equals(candles[:-1])
    for fault, error, words in [
        (library.NetworkError("gone"), ServiceError, r"NetworkError \(8 tries\)"),
        (library.BadSymbol("what"), UserError, "does not know 'BTC/USDT'"),
        (library.ExchangeError("no\nsense"), ServiceError, "ExchangeError: no sense"),
    ]:
        exchange.faults = [fault] * 8
        with pytest.raises(error, match=words):
            fetched(exchange)


def test_instruments_and_trades():
    source = Ccxt(Exchange(synthetic(10)))
    assert source.name == "ccxt-pretend"
    spot, linear = source.instrument("BTC/USDT", "spot"), source.instrument("BTCUSDT", "linear")
    assert (spot.key, spot.tick, spot.lot, spot.settlement) == (
        "ccxt-pretend/spot/BTCUSDT",
        0.1,
        0.001,
        "USDT",
    )
    assert (linear.multiplier, linear.is_perpetual) == (0.01, True)
    assert source.trades("BTCUSDT")["price"].to_list() == [1.0 + i for i in range(9)]


def test_wrong_words_from_the_user():
    source = Ccxt(Exchange(synthetic(10)))
    for call, words in [
        (lambda: source.instrument("NOSUCH"), "no spot symbol 'NOSUCH'"),
        (lambda: source.instrument("BTCUSDT", "inverse"), "no inverse symbol"),
        (lambda: source.instrument("BTCUSDT", "stock"), "category 'stock'"),
        (lambda: source.candles("BTCUSDT", "7m", START, None), "no candles of 7m"),
        (lambda: source.candles("BTCUSDT", "1h", None, None), "name --since"),
        (lambda: open_source("ccxt-krakenn"), "did you mean 'kraken'"),
        (lambda: open_source("ccxt"), "unknown source 'ccxt'"),
        (lambda: open_source("bybit-x"), "unknown source"),
    ]:
        with pytest.raises(UserError, match=words):
            call()


def test_a_real_exchange_object_can_be_pointed_elsewhere():
    source = open_source("ccxt-kraken", "http://127.0.0.1:9")
    assert source.name == "ccxt-kraken"
    assert source._exchange.urls["api"]["public"].startswith("http://127.0.0.1:9")
    assert source._exchange.enableRateLimit


def test_an_exchange_without_a_clock_is_not_guessed():
    exchange = Exchange(synthetic(10))
    exchange.has = {}
    with pytest.raises(ServiceError, match="tells no time"):
        fetched(exchange)
    exchange.last_response_headers = {"Date": "Fri, 01 Mar 2024 00:00:00 GMT"}
    assert fetched(exchange).height == 10
