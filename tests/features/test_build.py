from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longtape.core.clock import HOUR
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.features.build import FeaturesConfig, build
from longtape.features.catalogue import features
from longtape.features.panel import Column, Panel
from longtape.market.bars import Bars
from longtape.market.book_files import read_books
from longtape.market.books import Books
from longtape.market.trades import Trades
from tests.candles import candles
from tests.features.tables import START, as_bars, columns
from tests.shared_data import shared

ROWS = 1_400
BOOK = Instrument("test", "linear", "BTCUSDT")
ARGUMENTS = {
    "x": "log_return",
    "y": 'of("ETHUSDT").log_return',
    "side": '"ask"',
    "period": '"week"',
    "since": '"week"',
}


def written(name: str) -> str:
    """An expression for a registered feature: defaults, and something for what has none."""
    spec = features()[name]
    inside = [f"{p.name}={ARGUMENTS[p.name]}" for p in spec.parameters if p.name in ARGUMENTS]
    if name == "log":
        inside = ["x=close"]
    return f"{name}({', '.join(inside)})" if inside else name


EVERY = [written(name) for name in features()] + [
    'resample("4h").momentum(20)',
    'resample("4h").zscore(volume, 30)',
    'of("ETHUSDT").resample("1d").volatility(5)',
    'beta(log_return, of("ETHUSDT").log_return, 50)',
    "zscore(rsi(5), 30)",
    "ema(volatility(20), 5)",
    'vwap_cumulative("2024-01-05")',
    "realised_volatility(day)",
]


def pair(rows: int = ROWS) -> list[dict[str, np.ndarray]]:
    return [columns(rows, seed) for seed in (0, 1)]


def panel(values: Sequence[dict[str, np.ndarray]], text: str, start: int = START, **options: object) -> Panel:
    bars = [
        as_bars(v, symbol, start=start) for v, symbol in zip(values, ("BTCUSDT", "ETHUSDT"), strict=False)
    ]
    return build(bars, FeaturesConfig(features=[text], **options))


def refuses(act: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as error:
        act()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("text", EVERY)
def test_features_up_to_a_moment_keep_their_bits_whatever_follows(text: str) -> None:
    values = pair()
    whole = panel(values, text)
    for cut in (ROWS - 1, ROWS - 2, ROWS - 25, 1_201):
        changed = [{name: v.copy() for name, v in one.items()} for one in values]
        for one, other in zip(changed, pair(2 * ROWS), strict=True):
            for name, v in one.items():
                v[cut:] = other[name][ROWS + cut :]
        for after in (
            panel([{n: v[:cut] for n, v in one.items()} for one in values], text),
            panel(changed, text),
        ):
            assert after.warm_up == whole.warm_up
            assert after.values[:cut].tobytes() == whole.values[:cut].tobytes()


@pytest.mark.parametrize("text", EVERY)
def test_after_the_warm_up_it_does_not_matter_where_the_data_begin(text: str) -> None:
    values = pair()
    whole = panel(values, text)
    deviation = np.nanstd(whole.values, axis=0)
    for gone in (1, 5, 37):
        later = panel([{n: v[gone:] for n, v in one.items()} for one in values], text, START + gone * HOUR)
        first = max(whole.warm_up - gone, later.warm_up)
        moved = np.abs(later.values[first:] - whole.values[first + gone :])
        assert len(moved) > 50
        assert (moved <= 1e-6 * deviation).all()
    for count in (1, 40, 45):
        changed = [{n: v.copy() for n, v in one.items()} for one in values]
        for one, other in zip(changed, pair(count), strict=True):
            for name, v in one.items():
                v[:count] = other[name] * 1.1
        moved = np.abs(panel(changed, text).values - whole.values)[whole.warm_up + count :]
        assert len(moved) > 50
        assert (moved <= 1e-6 * deviation).all()


@pytest.mark.parametrize("text", EVERY)
def test_values_are_numbers_from_the_warm_up_on_and_nothing_before(text: str) -> None:
    found = panel(pair(), text)
    assert np.isfinite(found.values[found.warm_up :]).all()
    first = found.by_asset[: found.warm_up, 0]
    own = np.concatenate([first, found.shared[: found.warm_up]], axis=1)
    assert np.isnan(own).any(axis=1).all() or found.warm_up == 0


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(700, ROWS - 1), name=st.sampled_from(EVERY))
def test_no_cut_anywhere_changes_the_past(cut: int, name: str) -> None:
    values = pair()
    short = panel([{n: v[:cut] for n, v in one.items()} for one in values], name)
    assert short.values.tobytes() == panel(values, name).values[:cut].tobytes()


def test_a_longer_bar_is_seen_from_its_close_and_not_before() -> None:
    values = columns(12)
    found = panel([values], 'resample("4h").close')
    close = values["close"].astype(np.float32)
    expected = [0.0] * 3 + [close[3]] * 4 + [close[7]] * 4 + [close[11]]
    np.testing.assert_array_equal(found.values[found.warm_up :, 0], expected[found.warm_up :])
    assert found.warm_up == 3 + 3  # at worst, a bar of four has been closed for three rows


def test_longer_bars_gather_their_prices_and_volumes() -> None:
    values = columns(12)
    wanted = {"open": values["open"][4], "high": values["high"][4:8].max(), "low": values["low"][4:8].min()}
    wanted |= {"close": values["close"][7], "volume": values["volume"][4:8].sum()}
    for name, value in wanted.items():
        assert panel([values], f'resample("4h").{name}').values[7, 0] == np.float32(value)


def test_a_longer_bar_that_began_before_the_data_is_left_out() -> None:
    found = panel([columns(12)], 'resample("4h").open', START + 2 * HOUR)
    assert (
        found.warm_up == 5 + 3
    )  # 02:00 and 03:00 belong to a bar not seen whole; the next closes with row 5
    assert found.values[8, 0] == np.float32(columns(12)["open"][2])


def test_a_longer_bar_whose_last_part_is_missing_is_seen_at_the_next_row() -> None:
    bars = as_bars(columns(16))
    holed = Bars(bars.instrument, bars.interval, bars.frame.filter(pl.Series(np.arange(16) != 11)))
    found = build([holed], FeaturesConfig(features=['resample("4h").close'], missing="drop"))
    close = bars.column("close").astype(np.float32)
    assert found.values[10, 0] == close[7]
    assert found.values[11, 0] == close[10]


def test_many_symbols_stand_side_by_side_and_what_they_share_comes_once() -> None:
    bars = [as_bars(columns(60, s), name) for s, name in enumerate(("A", "B"))]
    found = build(bars, FeaturesConfig(features=["hour", "log_return", 'of("A").range', "average(close)"]))
    assert found.columns == (
        *(Column("A", "log_return"), Column("B", "log_return"), Column(None, "hour.sin")),
        *(Column(None, "hour.cos"), Column(None, 'of("A").range'), Column(None, "average(close)")),
    )
    assert np.shares_memory(found.by_asset, found.values)
    assert np.shares_memory(found.shared, found.values)
    np.testing.assert_array_equal(found.by_asset[:, :, 0], found.values[:, :2])
    np.testing.assert_array_equal(found.shared, found.values[:, 2:])
    assert found.present.all()
    np.testing.assert_array_equal(found.closes, np.stack([b.column("close") for b in bars], axis=1))
    assert [t.asset for t in found.target_columns] == ["A", "B"]


def test_a_symbol_may_be_read_without_being_forecast() -> None:
    bars = [as_bars(columns(60, s), name) for s, name in enumerate(("A", "B"))]
    config = FeaturesConfig(features=["log_return", 'of("A").log_return'], symbols=["B"])
    found = build(bars, config)
    assert found.columns == (Column("B", "log_return"), Column(None, 'of("A").log_return'))
    assert found.assets == ("B",)
    alone = build(bars[1:], FeaturesConfig(features=["log_return"]))
    np.testing.assert_array_equal(found.values[:, :1], alone.values)


def test_symbols_share_the_period_that_all_have() -> None:
    early, late = as_bars(columns(60, 0), "A"), as_bars(columns(60, 1), "B", start=START + 10 * HOUR)
    found = build([early, late], FeaturesConfig(features=["close"]))
    assert (len(found), found.timestamps[0]) == (50, START + 10 * HOUR)
    far = as_bars(columns(60, 1), "B", start=START + 100 * HOUR)
    refuses(lambda: build([early, far], FeaturesConfig(features=["close"])), "A", "B")


def gapped() -> list[Bars]:
    bars = [as_bars(columns(60, s), name) for s, name in enumerate(("A", "B"))]
    kept = ~np.isin(np.arange(60), [20, 21])
    return [bars[0], Bars(bars[1].instrument, bars[1].interval, bars[1].frame.filter(pl.Series(kept)))]


def test_missing_bars_are_refused_unless_a_policy_is_named() -> None:
    refuses(lambda: build(gapped(), FeaturesConfig(features=["close"])), "B 2", "forward_fill")


def test_forward_fill_holds_the_price_and_trades_nothing() -> None:
    bars = gapped()
    config = FeaturesConfig(features=["close", "high", "volume", "buy_volume"], missing="forward_fill")
    found = build(bars, config).values[:, 4:]
    last = np.float32(bars[1].column("close")[19])
    np.testing.assert_array_equal(found[20:22], [[last, last, 0.0, 0.0]] * 2)


def test_drop_leaves_the_time_out_for_all() -> None:
    found = build(gapped(), FeaturesConfig(features=["close"], missing="drop"))
    assert len(found) == 58
    assert not np.isin(START + HOUR * np.array([20, 21]), found.timestamps).any()


def test_mask_tells_the_model_and_learns_no_label_there() -> None:
    found = build(gapped(), FeaturesConfig(features=["close"], targets=["return(3)"], missing="mask"))
    assert [str(column) for column in found.columns] == ["A close", "A present", "B close", "B present"]
    np.testing.assert_array_equal(np.flatnonzero(~found.present[:, 1]), [20, 21])
    np.testing.assert_array_equal(np.flatnonzero(found.values[:, 3] == 0.0), [20, 21])
    unknown = np.flatnonzero(np.isnan(found.targets[:, 1]))
    np.testing.assert_array_equal(unknown, [17, 18, 20, 21, 57, 58, 59])


def test_book_snapshots_become_a_panel_of_events() -> None:
    config = FeaturesConfig(
        features=["book_imbalance(5)", "micro_price_distance", "order_flow_imbalance(10)", "depth(20)"],
        targets=["mid_direction(10, 0.00001)", "return(10)"],
    )
    books = read_books(shared("lob/binance_perp_BTCUSDT_2024-08-08_top20.parquet"), BOOK)
    found = build([books], config)
    assert found.values.shape == (6_545, 4)
    assert np.abs(found.values[found.warm_up :, 0]).max() <= 1.0
    assert (found.target_ends >= found.known_at[:, None]).all()
    mid = (books.frame["bid_price_1"] + books.frame["ask_price_1"]).to_numpy() / 2
    np.testing.assert_array_equal(found.closes[:, 0], mid)
    np.testing.assert_array_equal(found.ordinals, books.frame["update_id"].to_numpy())
    refuses(lambda: found.future(np.array([100]), 5), "no fixed time")
    assert found.future(np.array([100, 102]), 0).shape == (2, 0, 0)


def test_trades_become_a_panel_of_events_where_equal_times_are_normal() -> None:
    frame = pl.read_parquet(shared("trades/BTCUSDT_binance_perp_2024-08-08.parquet"))
    config = FeaturesConfig(features=["log(price)", "signed_size", "tick_rule"], targets=["return(5)"])
    found = build([Trades.checked(BOOK, frame)], config)
    assert len(found) == frame.height
    signed = np.where(frame["buyer_is_maker"], -1.0, 1.0) * frame["size"].to_numpy()
    np.testing.assert_array_equal(
        found.values[found.warm_up :, 1], signed[found.warm_up :].astype(np.float32)
    )
    assert (np.diff(found.timestamps) == 0).any()


def test_a_level_that_a_book_does_not_have_has_no_size() -> None:
    levels = {
        "bid_price_1": [1.0] * 3,
        "ask_price_1": [3.0] * 3,
        "bid_size_1": [4.0] * 3,
        "ask_size_1": [4.0] * 3,
    }
    second = {"bid_price_2": [0.5, None, 0.5], "bid_size_2": [4.0, None, 8.0]}
    second |= {"ask_price_2": [4.0] * 3, "ask_size_2": [4.0] * 3}
    times = pl.Series([0, 0, 5]).cast(pl.Datetime("us", "UTC"))
    books = Books.checked(BOOK, pl.DataFrame({"timestamp": times, **levels, **second}))
    config = FeaturesConfig(features=["book_imbalance(2)"], targets=["mid_direction(1)"])
    np.testing.assert_allclose(build([books], config).values[:, 0], [0.0, -1 / 3, 0.2], atol=1e-7)


def test_events_without_ids_are_numbered_by_their_time_wherever_the_data_begin() -> None:
    times = pl.Series([10, 10, 11, 15, 15, 15]).cast(pl.Datetime("ms", "UTC"))
    frame = pl.DataFrame({"timestamp": times, "price": [1.0] * 6, "size": [1.0] * 6})
    config = FeaturesConfig(features=["price"])
    whole, later = (build([Trades.checked(BOOK, frame[first:])], config) for first in (0, 2))
    np.testing.assert_array_equal(whole.ordinals, [10, 11, 11, 15, 16, 17])
    np.testing.assert_array_equal(whole.ordinals[2:], later.ordinals)


def test_missing_is_for_bars_and_events_are_of_one_symbol() -> None:
    times = pl.Series([1, 2]).cast(pl.Datetime("ms", "UTC"))
    trades = Trades.checked(BOOK, pl.DataFrame({"timestamp": times, "price": [1.0, 1.0], "size": [1.0, 1.0]}))
    refuses(lambda: build([trades], FeaturesConfig(features=["price"], missing="drop")), "missing")
    refuses(lambda: build([trades, trades], FeaturesConfig(features=["price"])), "one symbol", "2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("volatilty(20)", ["volatilty", "did you mean 'volatility'"]),
        ("zscore(clse, 100)", ["clse", "did you mean 'close'", "zscore"]),
        ("volatility(0)", ["volatility(0)", "at least 1", "volatility(n=20)"]),
        ("volatility(2.5)", ["whole number"]),
        ("volatility(20, 3)", ["volatility(n=20)"]),
        ("volatility(m=3)", ["'m'", "volatility(n=20)"]),
        ("volatility(3, n=3)", ["'n'"]),
        ("zscore", ["'x' is missing"]),
        ("zscore(3)", ["a column or a feature"]),
        ("zscore(hour, 3)", ["2 columns"]),
        ("close(3)", ["close"]),
        ("volatility(60)", ["60 bars", "has 60"]),
        ('resample("4h").rsi(14)', ["bars of 4h", "has 15"]),
        ('resample("90m").rsi', ["not a whole number of bars"]),
        ('resample("soon").rsi', ["soon"]),
        ('of("ETH").close', ["unknown symbol 'ETH'"]),
        ('hour("Mars")', ["Mars"]),
        ("depth(9)", ["bid_size_6", "no column"]),
        ('level_size("middle")', ["middle"]),
        ("yang_zhang(1)", ["at least 2"]),
        ("correlation(close, volume, 1)", ["at least 2"]),
        ("realised_volatility(decade)", ["decade", "month"]),
        ('vwap_cumulative("1999-01-01")', ["begins later"]),
        ('vwap_cumulative("soon")', ["soon"]),
        ("log(volume)", ["log(volume)", "row"]),
    ],
)
def test_a_mistake_is_told_in_one_line(text: str, words: list[str]) -> None:
    values = columns(60)
    values["volume"][30] = 0.0
    refuses(lambda: panel([values], text), *words)


def test_the_same_feature_twice_is_refused() -> None:
    bars = [as_bars(columns(60))]
    refuses(lambda: build(bars, FeaturesConfig(features=["close", "close"])), "close", "twice")


def test_a_number_that_is_none_is_named_with_its_row() -> None:
    values = columns(60)
    values["buy_volume"][7] = np.nan
    refuses(lambda: panel([values], "trade_imbalance"), "buy_volume", "row 8", "2024-01-01 07:00Z")


def test_nothing_to_build_from_is_refused() -> None:
    refuses(lambda: build([], FeaturesConfig()), "no bars")
    refuses(lambda: build([as_bars(columns(0))], FeaturesConfig()), "no bars")
    refuses(lambda: panel([columns(60)], "close", symbols=["ETH"]), "ETH")
    refuses(lambda: panel([columns(60)], "close", targets=["retrun(1)"]), "did you mean 'return'")


def test_one_row_is_enough_for_what_looks_at_one_row() -> None:
    refuses(lambda: panel([columns(1)], "range"), "looks 1 bars ahead")
    refuses(lambda: panel([columns(1)], "log_return"), "1 bars")
    assert panel([columns(2)], "range").warm_up == 0


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        FeaturesConfig(feature=["close"])
    with pytest.raises(ValidationError):
        FeaturesConfig(missing="guess")


def test_two_exchanges_have_no_common_sessions() -> None:
    bars = [as_bars(columns(60), name, "1d", calendar=code) for name, code in (("A", "XNYS"), ("B", "XLON"))]
    refuses(lambda: build(bars, FeaturesConfig(features=["close"])), "XNYS", "XLON")


def test_what_comes_after_an_origin_is_what_the_calendar_says_and_not_which_bars_will_be_missing():
    whole = candles(300, 1)
    holed = whole.with_frame(whole.frame.filter(~pl.int_range(300).is_in([120, 121, 122, 200])))
    config = FeaturesConfig(features=["log_return"], targets=["path(6)"], missing="drop")
    full, dropped = (build([bars, candles(300, 2, "OTHER")], config) for bars in (whole, holed))
    assert len(dropped) == 296
    rows = np.arange(1, 296)
    same = np.searchsorted(full.timestamps, dropped.timestamps[rows])
    assert np.array_equal(dropped.future(rows, 6), full.future(same, 6))
    assert not np.array_equal(dropped.calendar_values[120], full.calendar_values[120])
