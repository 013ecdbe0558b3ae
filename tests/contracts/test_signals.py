"""What every signal owes its user, over the whole registry: causal, bounded, strict in its options, right by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.backtest.signals import (
    ACROSS_SYMBOLS,
    SIGNALS,
    SignalConfig,
    signal_options,
    weights_from_forecast,
)
from longtape.core.errors import UserError

HOUR = 3_600_000
PERIODS_PER_YEAR = 8760.0
VOLATILITY = 0.02  # forecast of each bar
TIME = pl.Datetime("ms", "UTC")


@dataclass(frozen=True)
class Example:
    """Options, and the weights [R, S] that follow by hand from `MEANS`."""

    options: dict[str, float]
    weights: list[list[float]]


MEANS = [[0.02, -0.005], [-0.02, 0.03]]  # ± 0.01 is the interval of each
YEARLY = VOLATILITY * math.sqrt(PERIODS_PER_YEAR)
EXAMPLES = {
    "threshold": Example({"threshold": 0.01}, [[0.5, 0.0], [-0.5, 0.5]]),
    "tanh": Example({"gain": 50.0}, [[0.5 * math.tanh(50 * mean) for mean in row] for row in MEANS]),
    "proportional": Example({"gain": 40.0}, [[0.4, -0.1], [-0.4, 0.5]]),
    "equal": Example({"threshold": 0.01}, [[1.0, 0.0], [-0.5, 0.5]]),
    "volatility_target": Example(
        {"volatility": 0.5, "max_leverage": 0.9},
        [[0.25 / YEARLY, -0.25 / YEARLY], [-0.25 / YEARLY, 0.25 / YEARLY]],
    ),
    "interval": Example({}, [[0.5, 0.0], [-0.5, 0.5]]),
    "rank": Example({"quantile": 0.5}, [[0.5, -0.5], [-0.5, 0.5]]),
    "allocation": Example({}, MEANS),
}
every_signal = pytest.mark.parametrize("name", list(SIGNALS))


def forecast(means):
    """Returns of one bar [R, S] with intervals, and the volatility of the same bar."""
    means = np.asarray(means, float)
    opens = np.repeat(HOUR * np.arange(len(means)), means.shape[1])
    common = {
        "timestamp": pl.Series(opens).cast(TIME),
        "known_at": pl.Series(opens + HOUR).cast(TIME),
        "symbol": [f"S{s}" for s in range(means.shape[1])] * len(means),
        "horizon": 1,
        "end": pl.Series(opens + 2 * HOUR).cast(TIME),
    }
    mean = means.ravel()
    returns = {
        "target": "return(1)",
        "kind": "return",
        "mean": mean,
        "lower": mean - 0.01,
        "upper": mean + 0.01,
    }
    spread = {
        "target": "volatility(1)",
        "kind": "volatility",
        "mean": VOLATILITY,
        "lower": None,
        "upper": None,
    }
    frames = [pl.DataFrame({**common, **own}, schema_overrides={"lower": pl.Float64, "upper": pl.Float64})
              for own in (returns, spread)]  # fmt: skip
    return pl.concat(frames)


def weigh(name, frame, options=None):
    config = SignalConfig(name=name, options=EXAMPLES[name].options if options is None else options)
    return weights_from_forecast(frame, config, PERIODS_PER_YEAR).drop("timestamp").to_numpy()


def drawn(seed, rows=12, symbols=5):
    return np.random.default_rng(seed).normal(0, 0.02, (rows, symbols))


def test_every_signal_has_its_example():
    assert set(EXAMPLES) == set(SIGNALS)
    assert set(SIGNALS) >= ACROSS_SYMBOLS
    assert all(SIGNALS.load(name).__doc__ for name in SIGNALS)


@every_signal
def test_weights_are_those_found_by_hand(name):
    assert weigh(name, forecast(MEANS)) == pytest.approx(np.array(EXAMPLES[name].weights), abs=1e-12)


@every_signal
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 11))
def test_what_comes_later_moves_no_weight(name, seed, cut):
    means, other = drawn(seed), drawn(seed + 1)
    whole = weigh(name, forecast(means))
    assert np.array_equal(weigh(name, forecast(means[:cut])), whole[:cut])
    changed = weigh(name, forecast(np.concatenate([means[:cut], other[cut:]])))
    assert np.array_equal(changed[:cut], whole[:cut])
    assert not np.array_equal(changed[cut:], whole[cut:])


@every_signal
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 1e6]))
def test_no_more_than_the_equity_is_asked_for(name, seed, scale):
    """An allocation asks for itself; the others for the whole equity at most, however large the forecasts."""
    means = np.clip(drawn(seed), -0.2, 0.2) if name == "allocation" else scale * drawn(seed)
    weights = weigh(name, forecast(means))
    assert np.isfinite(weights).all()
    assert np.abs(weights).sum(axis=1).max() <= 1 + 1e-9


@every_signal
def test_the_sign_of_all_forecasts_turned_is_the_sign_of_all_weights_turned(name):
    means = drawn(0)
    assert weigh(name, forecast(-means)) == pytest.approx(-weigh(name, forecast(means)), abs=1e-12)


@every_signal
def test_every_option_has_an_effect(name):
    frame, options = forecast(drawn(1)), EXAMPLES[name].options
    assert set(options) == set(signal_options(name))
    for option, value in options.items():
        assert not np.array_equal(weigh(name, frame, {**options, option: value / 10}), weigh(name, frame))


@every_signal
def test_options_that_are_none_are_refused_when_the_document_is_made(name):
    options = EXAMPLES[name].options
    with pytest.raises(UserError, match="unknown option 'nonsense'"):
        SignalConfig(name=name, options={**options, "nonsense": 1.0})
    for option, default in signal_options(name).items():
        for value in (math.nan, math.inf, "many"):
            with pytest.raises(UserError, match="signal"):
                SignalConfig(name=name, options={**options, option: value})
        if default is None:
            with pytest.raises(UserError, match=f"needs its option '{option}'"):
                SignalConfig(name=name, options={key: v for key, v in options.items() if key != option})
