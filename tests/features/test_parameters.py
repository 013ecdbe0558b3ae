"""Parameters that make no sense are refused in one line; all others give numbers, whatever the market does."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.features.build import FeaturesConfig, build
from longtape.features.catalogue import check_features, features
from longtape.features.registry import Spec
from longtape.market.bars import Bars
from longtape.market.books import Books
from longtape.market.trades import Trades
from tests.features.tables import START, as_bars, columns

ROWS = 300
VALUES = {
    "int": ["1", "2", "3", "40", "299", "1000000", "10000000000000000000000"],
    "float": ["-1", "0", "0.0", "1", "1.0", "0.5", "0.9999999999", "1e-12", "-2.5", "1e300", "1e999"],
    "str": ['""', '"day"', '"month"', '"bid"', '"ask"', '"UTC"', '"Asia/Tokyo"', '"2024-01-03"', '"nonsense"'],
    "Series": ["close", "volume", "side", "log_return", "std(close, 2)", 'of("B").close', 'resample("4h").body'],
}  # fmt: skip
VALUES["CrossSection"] = VALUES["Series"]


def flat(rows: int) -> dict[str, np.ndarray]:
    """A market in which nothing happens: one price, no volume, an empty book."""
    still = {name: np.full(rows, 100.0) for name in columns(1)}
    return still | {
        name: np.zeros(rows) for name in still if "volume" in name or "size" in name or name == "side"
    }


def two_symbols(values: dict[str, np.ndarray], interval: str, calendar: str) -> list[Bars]:
    return [as_bars(values, symbol, interval, calendar=calendar) for symbol in ("A", "B")]


def events(values: dict[str, np.ndarray], kind: str) -> list[Books | Trades]:
    """A book or a trade every 700 ms."""
    times = pl.Series("timestamp", START + 700 * np.arange(ROWS)).cast(pl.Datetime("ms", "UTC"))
    one = Instrument("test", "spot", "A")
    if kind == "books":
        levels = {name: column for name, column in values.items() if name.startswith(("bid", "ask"))}
        return [Books.checked(one, pl.DataFrame({"timestamp": times, **levels}))]
    sides = np.where(values["side"] > 0, "buy", "sell")
    return [
        Trades.checked(
            one,
            pl.DataFrame({"timestamp": times, **{n: values[n] for n in ("price", "size")}, "side": sides}),
        )
    ]


@st.composite
def expressions(draw: st.DrawFn, spec: Spec) -> str:
    given = [draw(st.sampled_from(VALUES[str(p.annotation)])) for p in spec.parameters]
    return f"{spec.name}({', '.join(given)})" if given else spec.name


@pytest.mark.parametrize("name", sorted(features()))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_parameter_is_refused_or_gives_numbers(name: str, data: st.DataObject) -> None:
    text = data.draw(expressions(features()[name]))
    market = data.draw(st.sampled_from([columns, flat]))(ROWS)
    kind = data.draw(st.sampled_from(["1m", "1h", "1d", "books", "trades"]))
    calendar = data.draw(st.sampled_from(["24/7", "24/5", "XNYS"]))
    try:
        rows = events(market, kind) if kind in ("books", "trades") else two_symbols(market, kind, calendar)
        panel = build(rows, FeaturesConfig(features=[text], targets=["return(1)"]))
    except UserError:
        return
    assert np.isfinite(panel.values[panel.warm_up :]).all()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ewma_volatility(1.0)", "decay must lie between 0 and 1"),
        ("ewma_volatility(0)", "decay must lie between 0 and 1"),
        ("ewma_volatility(-0.5)", "decay must lie between 0 and 1"),
        ("std(close, 1)", "n must be at least 2"),
        ("zscore(close, 1)", "n must be at least 2"),
        ("ratio(close, 1)", "n must be at least 2"),
        ("close_ratio(1)", "n must be at least 2"),
        ("volume_ratio(1)", "n must be at least 2"),
        ("volatility(1)", "n must be at least 2"),
        ("yang_zhang(1)", "n must be at least 2"),
        ("beta(close, volume, 1)", "n must be at least 2"),
        ("correlation(close, volume, 1)", "n must be at least 2"),
        ("bollinger(1)", "n must be at least 2"),
        ("bollinger(20, 0)", "k must be above 0"),
        ("bollinger(20, 1e999)", "'k' must be a finite number"),
        ("macd(26, 12)", "fast must be below slow"),
        ("macd_signal(12, 12)", "fast must be below slow"),
        ("macd_histogram(12, 12)", "fast must be below slow"),
        ('realised_volatility("year")', 'period must be "day", "week" or "month"'),
        ('vwap_cumulative("fortnight")', 'since must be "day", "week", "month" or "year", or a date'),
        ('level_size("both")', 'side must be "bid" or "ask"'),
        ('level_distance("both")', 'side must be "bid" or "ask"'),
        ('hour("Mars/Olympus")', "unknown time zone 'Mars/Olympus'"),
        ("zscore(std(close, 1), 20)", "n must be at least 2"),
    ],
)
def test_what_makes_no_sense_is_refused_before_there_are_data(text: str, why: str) -> None:
    with pytest.raises(UserError, match=r"^features: '") as error:
        check_features([text])
    assert why in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("feature", ["vwap_session", 'vwap_cumulative("day")', 'vwap_cumulative("week")'])
@pytest.mark.parametrize("calendar", ["24/7", "24/5", "XNYS"])
def test_a_sum_since_a_period_began_starts_with_the_first_whole_one(feature: str, calendar: str) -> None:
    """Bars around the clock on an exchange's calendar: those from a Friday's close to Monday's are one session."""
    values = columns(700)
    whole = build([as_bars(values, calendar=calendar)], FeaturesConfig(features=[feature]))
    for cut in (1, 7, 30, 100, 130, 200):
        start = int(whole.timestamps[cut])
        part = {name: column[cut:] for name, column in values.items()}
        later = build([as_bars(part, start=start, calendar=calendar)], FeaturesConfig(features=[feature]))
        first = max(whole.warm_up - cut, later.warm_up)
        assert first < 200
        assert later.values[first:].tobytes() == whole.values[cut + first :].tobytes()
