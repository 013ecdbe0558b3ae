"""Features beside a symbol's own past: held to pandas, and blind to price, volume and liveliness."""

import numpy as np
import pandas as pd
import pytest

from longtape.core.errors import UserError
from longtape.features.build import FeaturesConfig, build
from longtape.features.catalogue import check_features
from tests.candles import candle_frame, candles

N, BASE = 12, 60
NAMES = {
    f"relative_range({N}, {BASE})": BASE - 1,
    f"relative_move({N}, {BASE})": BASE - 1,
    f"relative_log_range({N}, {BASE})": N + BASE - 2,
    f"relative_volume({N}, {BASE})": BASE - 1,
    f"trend({N})": N,
    f"jump_ratio({N})": N + 1,
    f"downside({N})": N,
    f"relative_span({N})": N - 1,
    f"place({N})": N - 1,
    f"peak({N})": N - 1,
    f"unrest({N})": 2 * N - 2,
}


def computed(frame, names=tuple(NAMES)):
    config = FeaturesConfig(features=list(names), targets=["return(1)"])
    return build([candles(len(frame)).with_frame(frame)], config)


@pytest.fixture(scope="module")
def frame():
    return candle_frame(400, 6)


def test_each_is_its_formula(frame):
    bars = frame.to_pandas()
    r = np.log(bars["close"]).diff()
    v = np.log(bars["high"] / bars["low"]) ** 2 / (4 * np.log(2))
    usual = v.rolling(BASE).mean()
    total = (r**2).rolling(N).sum()
    low, high = bars["low"].rolling(N).min(), bars["high"].rolling(N).max()
    floored = np.maximum(v, 1e-4 * v.rolling(N).mean())
    expected = [
        np.log(v.rolling(N).mean() / usual),
        np.log((r**2).rolling(N).mean() / usual),
        np.log(np.maximum(v, 1e-4 * usual)).rolling(N).mean() - np.log(usual),
        np.log(bars["volume"].rolling(N).mean() / bars["volume"].rolling(BASE).mean()),
        np.log(bars["close"] / bars["close"].shift(N)) / np.sqrt(total),
        np.log(np.pi / 2 * (r * r.shift()).abs().rolling(N).sum() / total),
        np.log((r.clip(upper=0) ** 2).rolling(N).sum() / total).clip(lower=np.log(0.01)),
        np.log(np.log(high / low) / np.sqrt(N * v.rolling(N).mean())),
        (bars["close"] - low) / (high - low),
        np.log(v.rolling(N).max() / v.rolling(N).mean()),
        np.log(floored).rolling(N).std(),
    ]
    panel = computed(frame)
    for column, theirs in enumerate(expected):
        rows = slice(panel.warm_up, None)
        assert panel.values[rows, column] == pytest.approx(theirs.to_numpy()[rows], rel=2e-5, abs=2e-6)


@pytest.mark.parametrize(("name", "warm_up"), NAMES.items())
def test_the_warm_up_is_the_first_row_that_is_whole(frame, name, warm_up):
    assert computed(frame, [name]).warm_up == warm_up


def test_no_level_stands_in_them(frame):
    """A log price thrice as lively in another currency, volume in other units."""
    start = frame["close"][0]
    prices = ("open", "high", "low", "close")
    wild = frame.with_columns(
        *((frame[name] / start) ** 3 * 5_000 for name in prices), (frame["volume"] * 1e4).alias("volume")
    )
    one, other = computed(frame), computed(wild)
    rows = slice(one.warm_up, None)
    placed = list(NAMES).index(f"place({N})")  # is one of prices, not of their logarithms
    assert np.delete(one.values, placed, 1)[rows] == pytest.approx(
        np.delete(other.values, placed, 1)[rows], abs=2e-4
    )
    dearer = frame.with_columns(frame[name] * 5_000 for name in prices)
    assert computed(dearer).values[rows, placed] == pytest.approx(one.values[rows, placed], abs=2e-4)


def test_a_market_that_stands_still_has_stated_values(frame):
    one = frame["close"][0] + 0 * frame["close"]
    still = frame.with_columns(*(one.alias(name) for name in ("open", "high", "low", "close")), volume=0.0)
    panel = computed(still)
    assert np.isfinite(panel.values[panel.warm_up :]).all()
    assert set(pd.DataFrame(panel.values[panel.warm_up :]).nunique()) == {1}
    assert panel.values[-1, list(NAMES).index(f"place({N})")] == 0.5
    assert panel.values[-1, list(NAMES).index(f"relative_volume({N}, {BASE})")] == 0.0


def test_a_past_beside_itself_is_refused():
    with pytest.raises(UserError, match="n and base must differ"):
        check_features(["relative_range(24, 24)"])
