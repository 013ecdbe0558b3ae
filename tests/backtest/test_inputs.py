"""What cannot be traded is refused in one line that says where it stands."""

from __future__ import annotations

from datetime import datetime

import polars as pl
import pytest

from longtape.backtest import Costs, Limits, only_at_bars, run_backtest
from longtape.core.clock import Interval
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.bars import Bars
from tests.backtest.markets import bars, times, weights

GOOD_WEIGHTS, GOOD_BARS = weights([1.0, 1.0, 1.0]), bars([100.0, 110.0, 120.0])


def changed(frame, column, row, value):
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=frame[column].dtype, strict=False))


def refused(message, *, target=GOOD_WEIGHTS, frame=GOOD_BARS, **options):
    with pytest.raises(UserError, match=message) as caught:
        run_backtest(target, frame, **options)
    assert "\n" not in str(caught.value)


def test_weights_for_an_unknown_symbol():
    refused("weights: unknown symbol 'BTCUSD'", target=weights([1.0], "BTCUSD"))
    refused("did you mean 'BTCUSDT'", target=weights([1.0], "BTCUSD"), frame=bars([1.0], symbol="BTCUSDT"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_weight_that_is_no_number(value):
    refused(
        r"weights: row 2 \(2024-01-01 01:00Z\), 'A': the weight is",
        target=changed(GOOD_WEIGHTS, "A", 1, value),
    )


def test_weights_out_of_order_twice_late_or_between_bars():
    refused("weights: row 2 .* is not later than the row before", target=GOOD_WEIGHTS[::-1])
    refused("weights: row 2 .* is not later", target=GOOD_WEIGHTS[[0, 0, 1]])
    refused("03:00Z is after the last bar .*02:00Z.*drop those rows", target=weights([1.0] * 4))
    shifted = GOOD_WEIGHTS.with_columns(pl.col("timestamp").dt.offset_by("1m"))[:2]
    refused(r"weights: row 1 \(2024-01-01 00:01Z\) is the time of no bar", target=shifted)
    earlier = GOOD_WEIGHTS.with_columns(pl.col("timestamp").dt.offset_by("-1d"))
    refused("is the time of no bar", target=earlier)


def test_weights_without_symbols_or_times():
    refused("no symbol; give one column per symbol", target=GOOD_WEIGHTS.drop("A"))
    refused("weights: column 'timestamp' is missing; there are A", target=GOOD_WEIGHTS.drop("timestamp"))
    refused("weights: row 2 has no timestamp", target=changed(GOOD_WEIGHTS, "timestamp", 1, None))
    refused("weights: column 'A' holds", target=pl.DataFrame({"timestamp": times(2), "A": ["x", "y"]}))
    refused("expected a polars or pandas frame, not list", target=[1.0])


@pytest.mark.parametrize("column", ["open", "high", "low", "close"])
@pytest.mark.parametrize("value", [0.0, -5.0, float("nan"), float("inf"), None])
def test_prices_that_are_none(column, value):
    refused(
        rf"bars: row 2 \(A, 2024-01-01 01:00Z\): {column} is .*above zero",
        frame=changed(GOOD_BARS, column, 1, value),
    )


def test_bars_that_cannot_be():
    refused("volume is -1, it must be a number at least zero", frame=changed(GOOD_BARS, "volume", 1, -1.0))
    refused("row 3 .*high is below low", frame=changed(GOOD_BARS, "low", 2, 130.0))
    refused("bars: row 2 .*not later than the symbol's row before", frame=GOOD_BARS[::-1])
    refused("bars: the frame is empty", frame=GOOD_BARS.clear())
    refused("bars: column 'volume' is missing", frame=GOOD_BARS.drop("volume"))


def test_two_symbols_may_share_a_time_but_not_one():
    both = pl.concat([GOOD_BARS, bars([1.0, 1.0, 1.0], symbol="B")]).sort("timestamp", "symbol")
    target = pl.DataFrame({"timestamp": times(3), "A": [0.5] * 3, "B": [0.5] * 3})
    assert run_backtest(target, both).fills.height == 2
    refused("not later", target=target, frame=pl.concat([both, both]))


def test_faults_of_symbols_that_are_not_traded_do_not_matter():
    other = changed(bars([1.0, 1.0, 1.0], symbol="B"), "close", 1, float("nan"))
    assert run_backtest(GOOD_WEIGHTS, pl.concat([GOOD_BARS, other])).fills.height == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": "close"}, "fill 'close' is not known; it is next_open or next_close"),
        ({"rebalance": "daily"}, "rebalance 'daily' is not known; it is on_change or every_bar"),
        ({"zero_volume": "maybe"}, "zero_volume 'maybe' is not known"),
        ({"initial_capital": 0.0}, "initial_capital must be above zero"),
        ({"initial_capital": float("nan")}, "initial_capital must be above zero"),
        ({"lot_size": 0.0}, "lot_size must be above zero"),
        ({"lot_size": {"A": -1.0}}, "lot_size must be above zero"),
        ({"lot_size": {"B": 1.0}}, "lot_size: unknown symbol 'B'"),
        ({"periods_per_year": 0.0}, "periods_per_year must be above zero"),
        ({"periods_per_year": float("inf")}, "periods_per_year must be above zero"),
        ({"zero_volume": "fill", "costs": Costs(impact=0.1)}, "impact needs a volume"),
    ],
)
def test_options_that_are_not_known(options, message):
    refused(message, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stop_loss": -0.1}, "limits.stop_loss: .*greater than 0"),
        ({"maintenance_margin": 1.0}, "limits.maintenance_margin: .*less than 1"),
        ({"trailing": 0.1}, "limits.trailing: .*not permitted"),
    ],
)
def test_limits_that_cannot_be(values, message):
    with pytest.raises(UserError, match=message):
        Limits(**values)


def test_decisions_at_the_time_of_no_bar_are_left_out_and_the_last_one_stands():
    a = bars([100.0, 110.0, 120.0, 130.0, 140.0]).filter(pl.Series([True, True, False, True, True]))
    b = bars([1.0] * 5, symbol="B").filter(pl.Series([True, False, False, False, True]))
    unrelated = bars([1.0] * 5, symbol="C")
    market = pl.concat([a, b, unrelated])
    target = pl.DataFrame({"timestamp": times(6), "A": [0.0, 0.5, -1.0, 0.5, 0.5, 0.9], "B": [0.0] * 6})
    refused("is after the last bar", target=target, frame=market)
    refused("is the time of no bar", target=target[:5], frame=pl.concat([a, b]))
    kept = only_at_bars(target, market)
    assert kept["timestamp"].to_list() == [times(6)[at] for at in (0, 1, 3, 4)]
    assert kept["A"].to_list() == [0.0, 0.5, 0.5, 0.5]
    result = run_backtest(kept, market)
    # The −1 of the bar that is not there is never traded: one fill, at the first open after the 0.5.
    assert result.fills.select("symbol", "price").rows() == [("A", 130.0)]


def test_decisions_are_kept_alike_for_bars_and_frames_of_every_kind():
    frame = GOOD_BARS.filter(pl.Series([True, False, True]))
    one = Bars.checked(Instrument("test", "spot", "A"), Interval.parse("1h"), frame.drop("symbol"))
    expected = GOOD_WEIGHTS[[0, 2]]
    for given in (frame, frame.to_pandas(), one, [one]):
        assert only_at_bars(GOOD_WEIGHTS, given).equals(expected)
    assert only_at_bars(GOOD_WEIGHTS.to_pandas(), frame).height == 2
    assert only_at_bars(GOOD_WEIGHTS.clear(), frame).height == 0
    with pytest.raises(UserError, match="no row is at the time of a bar"):
        only_at_bars(weights([1.0], start=1), frame)


def test_times_of_every_kind_are_read_alike():
    expected = run_backtest(GOOD_WEIGHTS, GOOD_BARS).equity
    naive = [datetime(2024, 1, 1, hour) for hour in range(3)]
    for column in (
        pl.Series("timestamp", naive, dtype=pl.Datetime("us")),
        times(3).cast(pl.Int64),
        times(3).dt.convert_time_zone("America/New_York"),
        times(3).cast(pl.Datetime("ns", "UTC")),
    ):
        again = run_backtest(GOOD_WEIGHTS.with_columns(column), GOOD_BARS.with_columns(column))
        assert again.equity.equals(expected)
    assert run_backtest(GOOD_WEIGHTS.lazy(), GOOD_BARS.lazy()).equity.equals(expected)
    strings = GOOD_BARS.with_columns(pl.lit("noon").alias("timestamp"))
    refused("'timestamp' is String, not a date and time", frame=strings)
