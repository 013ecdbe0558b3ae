"""Errors over time and by the clock, and the standing beside baselines."""

import numpy as np
import polars as pl
import pytest

from longtape.evaluation.errors import by_clock, by_forecast, over_time, with_errors
from longtape.evaluation.skill import MODEL, P_VALUE
from longtape.evaluation.standing import standing


def frame(kind, mean, actual, hours=1, **more):
    times = pl.Series(np.arange(len(mean)) * hours * 3_600_000 + 1_704_067_200_000).cast(
        pl.Datetime("ms", "UTC")
    )
    columns = {
        "timestamp": times,
        "known_at": times,
        "kind": [kind] * len(mean),
        "mean": mean,
        "actual": actual,
    }
    return pl.DataFrame(columns | more)


def test_errors_are_those_of_the_kind_of_target():
    returns = with_errors(frame("return", [0.1, 0.2, 0.3], [0.4, -0.1, None]))
    assert np.allclose(returns["error"], [0.3, 0.3])
    assert np.allclose(returns["beside"], [0.4, 0.1])
    volatility = with_errors(frame("volatility", [0.1, 0.2], [0.2, 0.1]))
    assert np.allclose(volatility["error"], np.log(2))
    up = with_errors(frame("up", [0.0, 0.0], [1.0, 0.0], p0=[0.25, 0.5], p1=[0.75, 0.5]))
    assert np.allclose(up["error"], -np.log([0.75, 0.5]))
    assert np.allclose(up["beside"], np.log(2))
    assert with_errors(frame("weight", [1.0], [0.1])).height == 0


def test_stretches_and_hours_hold_every_error_once():
    rng = np.random.default_rng(0)
    errors = with_errors(frame("return", np.zeros(500), rng.normal(size=500)))
    stretches = over_time(errors, 10)
    assert stretches.height == 10
    assert stretches["error"].mean() == pytest.approx(errors["error"].mean())
    names, mean, spread = by_clock(errors)
    assert list(names) == [f"{hour:02}" for hour in range(24)]
    noon = errors.filter(pl.col("known_at").dt.hour() == 12)["error"]
    assert mean[12] == pytest.approx(noon.mean())
    assert spread[12] == pytest.approx(noon.std() / np.sqrt(len(noon)))
    assert list(by_clock(with_errors(frame("return", np.zeros(9), np.ones(9), hours=24)))[0])[:2] == [
        "Mon",
        "Tue",
    ]


def test_groups_go_from_the_smallest_forecast_up():
    forecast = np.arange(100.0)[::-1]
    groups = by_forecast(forecast, 2 * forecast, 10)
    assert groups["forecast"].is_sorted()
    assert np.allclose(groups["actual"], 2 * groups["forecast"])
    assert by_forecast(np.ones(3), np.ones(3), 10).height == 3


def test_a_standing_beside_baselines_that_are_not_defined_is_none():
    rows = [{"model": MODEL, "QLIKE": 0.4}, {"model": "zero", "QLIKE": float("nan"), P_VALUE: float("nan")}]
    found = standing("X volatility(1)", rows)
    assert not found.is_scored
    assert "no training row to fit a baseline on" in found.words
