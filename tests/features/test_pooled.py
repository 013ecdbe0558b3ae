"""Pooled panels: symbols by themselves, from their first bar to their last, in units of their own past."""

import numpy as np
import polars as pl
import pytest

from longtape.core.errors import UserError
from longtape.features.build import FeaturesConfig, PooledConfig, build
from longtape.features.pooled import own_volatility, part_of, pooled, pooled_split, split_of
from longtape.features.splits import SplitConfig, chronological
from tests.books import books
from tests.candles import candle_frame, candles

OWN_PAST = 50
LATER = 100  # rows after the first at which BBB is listed


def series(n=400):
    """AAA throughout, BBB listed later and gone earlier, CCC a thousand times as dear."""
    bars = [candles(n, seed, symbol) for seed, symbol in enumerate(("AAA", "BBB", "CCC"))]
    dear = candle_frame(n, 2).with_columns(pl.col("open", "high", "low", "close") * 1000)
    late = bars[1].with_frame(bars[1].frame.slice(LATER, n - LATER - 20))
    return [bars[0], late, bars[2].with_frame(dear)]


def config(*features, **more):
    return FeaturesConfig(
        features=list(features) or ["volatility(10)", "others(volatility(10))", "hour"],
        targets=["return(3)", "volatility(3)"],
        pooled=PooledConfig(own_past=OWN_PAST),
        **more,
    )


@pytest.fixture(scope="module")
def panel():
    return build(series(), config())


def test_a_symbol_is_there_from_its_first_bar_to_its_last(panel):
    span = panel.span("BBB")
    assert (span.start, span.stop, len(panel)) == (LATER, 380, 400)
    assert not panel.present[:LATER, 1].any()
    assert panel.present[LATER:380, 1].all()
    own = panel.values[:, [c.asset == "BBB" for c in panel.columns]]
    assert np.isnan(own[: span.start]).all()
    assert np.isfinite(own[span.ready : span.stop]).all()
    assert panel.warm_up == panel.span("AAA").ready < span.ready


def test_a_part_is_the_panel_of_its_bars_alone(panel):
    """But for what it reads of others."""
    alone = build(series()[1:2], config("volatility(10)", "hour"))
    part = part_of(build(series(), config("volatility(10)", "hour")), "BBB")
    assert part.columns == alone.columns
    assert part.warm_up == alone.warm_up
    assert np.array_equal(part.values, alone.values, equal_nan=True)
    assert np.array_equal(part.targets, alone.targets, equal_nan=True)
    assert np.array_equal(part.known_at, alone.known_at)


def test_inputs_and_labels_do_not_know_a_level():
    """Dearer, ten times as lively after a while, more traded: the same to a pooled model."""
    features = ["log_return", "range", "volume_mean(5)", "parkinson(10)"]
    one = candle_frame(300, 3)
    closes = one["close"].to_numpy()
    wild = {n: 7 * closes[0] * (one[n].to_numpy() / closes[0]) ** 3 for n in ("open", "high", "low", "close")}
    other = one.with_columns(pl.Series(n, v) for n, v in wild.items()).with_columns(pl.col("volume") * 1e5)
    made = [pooled(build([candles(300).with_frame(f)], config(*features)), OWN_PAST) for f in (one, other)]
    for which, features_alike in ((0, True), (1, False)):  # the range of a bar is no exact power
        rows = slice(made[0].warm_up, None)
        own = [m.values[rows, which] for m in made]
        assert np.allclose(*own, atol=1e-3 if features_alike else 0.3)
    labels = [m.targets[made[0].warm_up :, 1] for m in made]
    assert np.allclose(*labels, equal_nan=True)


def test_labels_are_in_units_of_the_volatility_of_the_bars_before(panel):
    rows = pooled(panel, OWN_PAST)
    at = int(rows.offsets[2]) + 123
    closes = rows.parts[2].closes[123 - OWN_PAST : 124, 0]
    unit = np.sqrt(np.mean(np.diff(np.log(closes)) ** 2))
    assert rows.unit[at] == pytest.approx(unit, rel=1e-12)
    assert rows.targets[at] * rows.units(np.array([at]))[0] == pytest.approx(rows.parts[2].targets[123])


def test_bars_that_are_absent_do_not_count_in_the_unit():
    frame = candle_frame(200)
    holes = candles(200).with_frame(frame.filter(~pl.int_range(200).is_between(120, 139)))
    part = build([holes], config("log_return", missing="mask"))
    moves = np.diff(np.log(part.closes[:, 0]))[150 - OWN_PAST : 150]
    there = part.present[151 - OWN_PAST : 151, 0]
    assert there.sum() == OWN_PAST - 20
    assert own_volatility(part, OWN_PAST)[150] == pytest.approx(np.sqrt(np.mean(moves[there] ** 2)))
    assert np.isnan(part.targets[117:140]).all()
    assert np.isfinite(part.targets[100:117]).all()


def test_rows_are_those_of_the_symbols_one_below_the_other(panel):
    rows = pooled(panel, OWN_PAST)
    assert len(rows) == 400 + 280 + 400
    assert rows.assets == ("any",)
    assert rows.row_in_series[rows.offsets].tolist() == [0, 0, 0]
    split = chronological(panel, 8, SplitConfig())
    found = pooled_split(panel, rows, split, 8)
    for name in ("train", "validation", "calibration", "test"):
        each = [getattr(split_of(panel, asset, split, 8), name) for asset in panel.assets]
        assert np.array_equal(
            getattr(found, name), np.concatenate([o + e for o, e in zip(rows.offsets, each, strict=True)])
        )
        times = panel.timestamps[getattr(split, name)]
        assert np.isin(rows.timestamps[getattr(found, name)], times).all()
        assert np.isfinite(rows.targets[getattr(found, name)]).all()
    assert len(found.train) < 3 * len(split.train)  # BBB is not there yet


def test_others_are_those_that_are_there():
    panel = build(series(), config("log_return", "others(log_return)").model_copy(
        update={"pooled": PooledConfig(own_past=OWN_PAST, scaled=False)}))  # fmt: skip
    own, others = panel.by_asset[..., 0].astype(float), panel.by_asset[..., 1]
    before, both = OWN_PAST + 10, LATER + OWN_PAST + 10
    assert others[before, 0] == pytest.approx(own[before, 2])  # BBB is not listed
    assert others[both, 0] == pytest.approx((own[both, 1] + own[both, 2]) / 2, abs=1e-8)
    alone = build(series()[:1], config("others(log_return)", "log_return"))
    assert np.array_equal(alone.values[:, 0], alone.values[:, 1], equal_nan=True)


def test_the_order_of_symbols_does_not_matter(panel):
    turned = build(series()[::-1], config())
    for asset in panel.assets:
        one, other = part_of(panel, asset), part_of(turned, asset)
        assert np.array_equal(one.values, other.values, equal_nan=True)


def test_another_symbol_can_be_named_where_it_is_there():
    bars = [candles(400, 0, "AAA"), candles(400, 1, "BBB").between(int(candles(400).timestamps[LATER]))]
    named = build(bars, config('of("BBB").log_return'))
    assert [named.span(asset).ready for asset in ("AAA", "BBB")] == [LATER + OWN_PAST] * 2
    assert np.isfinite(named.values[LATER + OWN_PAST, 0])
    assert np.isnan(named.values[LATER + OWN_PAST - 1, 0])


def test_events_are_not_pooled():
    with pytest.raises(UserError, match="on bars, not on events"):
        build([books(50)], config("mid_price"))


def test_a_symbol_that_is_named_must_still_be_there():
    with pytest.raises(UserError, match=r"is nan at row 381 .*; 20 such"):
        build(series(), config('of("BBB").log_return'))
