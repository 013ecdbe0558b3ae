"""Indicators against independent implementations, and by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from talipp import indicators as talipp
from talipp.ohlcv import OHLCV

from longtape.core.errors import UserError
from longtape.features.catalogue import features
from longtape.features.evaluate import Evaluator
from longtape.features.expression import parse
from longtape.features.table import Table
from tests.features.tables import as_bars, as_table, columns
from tests.shared_data import shared

Array = np.ndarray


def compute(text: str, table: Table) -> Array:
    return Evaluator({table.symbol: table}).compute(parse(text), table.symbol).values[0]


def direct(name: str, table: Table, *arguments: object) -> Array:
    return features()[name].function(table, *arguments)


@pytest.fixture(scope="module")
def real() -> Table:
    frame = pd.read_parquet(shared("candles_1h_bybit_linear/BTCUSDT.parquet")).iloc[:3_000]
    return as_table(**{name: frame[name].to_numpy() for name in ("open", "high", "low", "close", "volume")})


def candles(table: Table) -> list[OHLCV]:
    names = ("open", "high", "low", "close", "volume")
    return [OHLCV(*row) for row in zip(*(table[name].tolist() for name in names), strict=True)]


def agree(ours: Array, theirs: list[float | None], rtol: float = 1e-9) -> None:
    other = np.array([np.nan if value is None else value for value in theirs], float)
    both = np.isfinite(ours) & np.isfinite(other)
    assert both.sum() > 1_000
    np.testing.assert_allclose(ours[both], other[both], rtol=rtol, atol=1e-9)


def test_rsi_is_that_of_talipp(real: Table) -> None:
    close = real["close"].tolist()
    agree(direct("rsi", real, 14), list(talipp.RSI(14, close)))


def test_exponential_average_is_that_of_talipp(real: Table) -> None:
    agree(direct("ema", real, real["close"], 20), list(talipp.EMA(20, real["close"].tolist())))


def test_macd_is_that_of_talipp_once_warm(real: Table) -> None:
    theirs = list(talipp.MACD(12, 26, 9, real["close"].tolist()))
    for name, part in (("macd", "macd"), ("macd_signal", "signal"), ("macd_histogram", "histogram")):
        agree(compute(name, real), [getattr(value, part) if value else None for value in theirs], 1e-6)


def test_average_true_range_is_that_of_talipp_once_warm(real: Table) -> None:
    agree(compute("atr(14)", real), list(talipp.ATR(14, candles(real))), 1e-6)


def test_bollinger_is_that_of_talipp(real: Table) -> None:
    bands = list(talipp.BB(20, 2.0, real["close"].tolist()))
    theirs = [
        (close - band.lb) / (band.ub - band.lb) if band else None
        for close, band in zip(real["close"], bands, strict=True)
    ]
    agree(compute("bollinger(20, 2)", real), theirs, 1e-6)


def test_indicators_are_those_of_ta_lib(real: Table) -> None:
    talib = pytest.importorskip("talib")
    high, low, close = real["high"], real["low"], real["close"]
    agree(compute("rsi(14)", real), list(talib.RSI(close, 14)))
    agree(compute("atr(14)", real), list(talib.ATR(high, low, close, 14)), 1e-6)
    line, signal, histogram = talib.MACD(close, 12, 26, 9)
    agree(compute("macd", real), list(line), 1e-6)
    agree(compute("macd_signal", real), list(signal), 1e-6)
    agree(compute("macd_histogram", real), list(histogram), 1e-6)
    upper, middle, lower = talib.BBANDS(close, 20, 2, 2)
    agree(compute("bollinger(20, 2)", real), list((close - lower) / (upper - lower)), 1e-5)
    agree(compute("mean(close, 20)", real), list(middle))
    agree(compute("momentum(20)", real), list(talib.ROCP(close, 20)))
    agree(compute("highest(high, 30)", real), list(talib.MAX(high, 30)))
    agree(compute("lowest(low, 30)", real), list(talib.MIN(low, 30)))


def test_rolling_features_are_those_of_pandas(real: Table) -> None:
    frame = pd.DataFrame({name: real[name] for name in ("open", "high", "low", "close", "volume")})
    returns = np.log(frame["close"]).diff()
    change = frame["close"].diff()
    up, down = change.clip(lower=0).rolling(14).sum(), (-change.clip(upper=0)).rolling(14).sum()
    typical = (frame["high"] + frame["low"] + frame["close"]) / 3
    height, move = np.log(frame["high"] / frame["low"]), np.log(frame["close"] / frame["open"])
    rogers = np.log(frame["high"] / frame["close"]) * np.log(frame["high"] / frame["open"]) + np.log(
        frame["low"] / frame["close"]
    ) * np.log(frame["low"] / frame["open"])
    k = 0.34 / (1.34 + 21 / 19)
    gap = np.log(frame["open"] / frame["close"].shift())
    expected = {
        "log_return": returns,
        "log_return(5)": np.log(frame["close"]).diff(5),
        "volatility(50)": returns.rolling(50).std(),
        "realised_volatility(day)": np.sqrt((returns**2).rolling(24).sum()),
        "realised_volatility(month)": np.sqrt((returns**2).rolling(720).sum()),
        "ewma_volatility(0.9)": np.sqrt((returns**2).ewm(alpha=0.1, adjust=False).mean()),
        "zscore(close, 100)": (frame["close"] - frame["close"].rolling(100).mean())
        / frame["close"].rolling(100).std(),
        "close_ratio(20)": frame["close"] / frame["close"].rolling(20).mean(),
        "volume_ratio(20)": frame["volume"] / frame["volume"].rolling(20).mean(),
        "volume_mean(20)": frame["volume"].rolling(20).mean(),
        "log_volume": np.log1p(frame["volume"]),
        "rsi_simple(14)": 100 * up / (up + down),
        "range": (frame["high"] - frame["low"]) / frame["close"],
        "body": frame["close"] / frame["open"] - 1,
        "vwap(20)": (typical * frame["volume"]).rolling(20).sum() / frame["volume"].rolling(20).sum(),
        "parkinson(20)": np.sqrt((height**2).rolling(20).mean() / (4 * math.log(2))),
        "garman_klass(20)": np.sqrt((height**2 / 2 - (2 * math.log(2) - 1) * move**2).rolling(20).mean()),
        "rogers_satchell(20)": np.sqrt(rogers.rolling(20).mean()),
        "yang_zhang(20)": np.sqrt(
            gap.rolling(20).var() + k * move.rolling(20).var() + (1 - k) * rogers.rolling(20).mean()
        ),
        "correlation(close, volume, 50)": frame["close"].rolling(50).corr(frame["volume"]),
        "beta(close, volume, 50)": frame["close"].rolling(50).cov(frame["volume"])
        / frame["volume"].rolling(50).var(),
        "illiquidity(20)": 1e6 * (returns.abs() / (frame["close"] * frame["volume"])).rolling(20).mean(),
    }
    for text, theirs in expected.items():
        agree(compute(text, real), theirs.tolist(), 1e-6)


def test_vwap_of_a_session_and_of_a_month_start_again(real: Table) -> None:
    typical = (real["high"] + real["low"] + real["close"]) / 3
    frame = pd.DataFrame({"money": typical * real["volume"], "volume": real["volume"]})
    times = pd.to_datetime(real.timestamps, unit="ms")
    for text, keys in {
        "vwap_session": times.normalize(),
        "vwap_cumulative(month)": times.strftime("%Y-%m"),
        'vwap_cumulative("2024-02-10")': times >= "2024-02-10",
    }.items():
        sums = frame.groupby(np.asarray(keys)).cumsum()
        agree(compute(text, real), (sums["money"] / sums["volume"]).tolist())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rsi", 50.0),
        ("rsi_simple", 50.0),
        ("bollinger", 0.5),
        ("volatility", 0.0),
        ("momentum", 0.0),
        ("macd", 0.0),
        ("parkinson", 0.0),
        ("garman_klass", 0.0),
        ("yang_zhang", 0.0),
        ("atr", 0.0),
        ("close_ratio", 1.0),
        ("volume_ratio", 1.0),
        ("vwap_distance", 0.0),
        ("illiquidity", 0.0),
        ("trade_imbalance", 0.0),
    ],
)
def test_constant_prices_without_volume_have_a_stated_value(name: str, value: float) -> None:
    still = {price: np.full(600, 42.0) for price in ("open", "high", "low", "close")}
    table = as_table(**still, volume=np.zeros(600), buy_volume=np.zeros(600))
    found = compute(name, table)
    np.testing.assert_allclose(found[~np.isnan(found)], value, atol=1e-12)
    assert not np.isnan(found[-100:]).any()


def test_an_empty_book_has_a_stated_value() -> None:
    empty = {"bid_price_1": [99.0], "ask_price_1": [101.0], "bid_size_1": [0.0], "ask_size_1": [0.0]}
    table = as_table(**empty)
    assert direct("book_imbalance", table, 1)[0] == 0.0
    assert direct("micro_price", table)[0] == 100.0


def test_book_features_by_hand() -> None:
    table = as_table(
        bid_price_1=[99.0, 99.0, 100.0], bid_size_1=[3.0, 5.0, 2.0], bid_price_2=[98.0] * 3, bid_size_2=[1.0] * 3,
        ask_price_1=[101.0, 101.0, 102.0], ask_size_1=[1.0, 4.0, 2.0], ask_price_2=[103.0] * 3, ask_size_2=[3.0] * 3,
    )  # fmt: skip
    np.testing.assert_allclose(direct("book_imbalance", table, 1), [0.5, 1 / 9, 0.0])
    np.testing.assert_allclose(direct("book_imbalance", table, 2), [0.0, -1 / 13, -2 / 8])
    np.testing.assert_allclose(
        direct("micro_price", table), [(101 * 3 + 99) / 4, (101 * 5 + 99 * 4) / 9, 101.0]
    )
    np.testing.assert_allclose(direct("spread", table), 2.0)
    np.testing.assert_allclose(direct("depth", table, 2), [8.0, 13.0, 8.0])
    np.testing.assert_allclose(direct("level_distance", table, "ask", 2), [0.03, 0.03, 103 / 101 - 1])
    np.testing.assert_allclose(direct("level_size", table, "bid", 1), [3.0, 5.0, 2.0])
    # second snapshot: 5 − 3 more bid, 4 − 1 more ask; third: a higher bid of 2, the whole best ask of 4 gone
    np.testing.assert_allclose(direct("order_flow_imbalance", table, 1), [np.nan, -1.0, 6.0])


def test_trade_features_by_hand() -> None:
    table = as_table(price=[1, 1, 2, 2, 1], size=[1, 2, 3, 4, 5], side=[1, -1, 1, -1, 1])
    np.testing.assert_array_equal(direct("signed_size", table), [1, -2, 3, -4, 5])
    np.testing.assert_array_equal(direct("tick_rule", table, 9), [0, 0, 1, 1, -1])
    still = as_table(price=[1, 2, 2, 2, 2, 1])
    np.testing.assert_array_equal(direct("tick_rule", still, 2), [0, 1, 1, 0, 0, -1])
    bars = as_table(volume=[4, 0, 2], buy_volume=[3, 0, 0])
    np.testing.assert_allclose(direct("trade_imbalance", bars, 1), [0.5, 0.0, -1.0])
    np.testing.assert_allclose(direct("trade_imbalance", bars, 2), [np.nan, 0.5, -1.0])


def test_the_clock_face() -> None:
    table = as_bars(columns(24 * 7))
    full = as_table(close=table.column("close"))
    hour = features()["hour"].function(full, "UTC")
    np.testing.assert_allclose([h[6] for h in hour], [1.0, 0.0], atol=1e-12)
    new_york = features()["hour"].function(full, "America/New_York")
    np.testing.assert_allclose([h[5] for h in new_york], [0.0, 1.0], atol=1e-12)
    weekday = features()["weekday"].function(full, "UTC")
    np.testing.assert_allclose([w[0] for w in weekday], [0.0, 1.0], atol=1e-12)
    assert len(np.unique(np.round(weekday[1] + 10 * weekday[0], 9))) == 7
    month = features()["month"].function(full, "UTC")
    np.testing.assert_allclose([m[0] for m in month], [0.0, 1.0], atol=1e-12)


def test_daylight_saving_moves_the_local_hour() -> None:
    winter = as_table(close=np.ones(24 * 120))
    sine, cosine = features()["hour"].function(winter, "America/New_York")
    noon_in_winter, noon_in_summer = 24 * 10 + 17, 24 * 110 + 16
    np.testing.assert_allclose([cosine[noon_in_winter], cosine[noon_in_summer]], -1.0)
    np.testing.assert_allclose([sine[noon_in_winter], sine[noon_in_summer]], 0.0, atol=1e-9)


def test_the_cross_section_by_hand() -> None:
    tables = {s: as_table(close=[price]) for s, price in (("A", 1.0), ("B", 3.0), ("C", 3.0))}
    evaluator = Evaluator(
        {s: Table(s, t.interval, t.calendar, t.timestamps, t.known_at, t.columns) for s, t in tables.items()}
    )

    def at(text: str, symbol: str) -> float:
        return float(evaluator.compute(parse(text), symbol).values[0][0])

    assert at("average(close)", "A") == pytest.approx(7 / 3)
    assert at("relative(close)", "B") == pytest.approx(2 / 3)
    assert at("dispersion(close)", "A") == pytest.approx(math.sqrt(8 / 9))
    assert [at("rank(close)", s) for s in "ABC"] == [0.0, 0.75, 0.75]
    assert at('of("C").close', "A") == 3.0


def test_the_number_of_bars_in_a_period_follows_the_calendar() -> None:
    values = columns(600)
    for interval, calendar, day, month in (
        ("1h", "24/7", 24, 720),
        ("1d", "24/7", 1, 30),
        ("1d", "XNYS", 1, 22),
        ("5m", "XNYS", 78, 1716),
    ):
        bars = as_bars(values, interval=interval, calendar=calendar)
        table = Table("X", bars.interval, calendar, bars.timestamps, bars.known_at, values)
        warm = features()["realised_volatility"].warm_up
        assert (warm(table, "day"), warm(table, "month")) == (day, month)


def test_a_period_shorter_than_a_bar_is_refused() -> None:
    bars = as_bars(columns(100), interval="1w")
    table = Table("X", bars.interval, "24/7", bars.timestamps, bars.known_at, columns(100))
    with pytest.raises(UserError, match="longer than that"):
        compute("realised_volatility(day)", table)
