"""Losses, skill and the Diebold–Mariano test: by hand, against tables, and by how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from longtape.core.errors import UserError
from longtape.core.scoring import absolute_error, pinball, qlike, squared_error
from longtape.evaluation.statistics import (
    compare,
    diebold_mariano,
    long_run_variance,
    mean_difference_interval,
    skill_score,
    student_two_sided,
)
from longtape.features.target_kinds import target_kind

A = np.array


def noisy_pair(draw, n, horizon=1):
    """Squared errors of two forecasts, equally bad, of overlapping sums over `horizon` steps."""
    label = np.convolve(draw.normal(size=n + horizon - 1), np.ones(horizon), "valid")
    first, second = draw.normal(0, 0.5, (2, n)) * np.sqrt(horizon)
    return (label - first) ** 2, (label - second) ** 2


# Losses


def test_losses_by_hand():
    assert squared_error(A([1.0, -2.0]), A([3.0, -2.0])).tolist() == [4, 0]
    assert absolute_error(A([1.0, -2.0]), A([3.0, -2.0])).tolist() == [2, 0]
    # Above the quantile a unit costs the level, below it the rest.
    assert pinball(A([2.0, 0.0, 1.0]), A([1.0, 1.0, 1.0]), 0.9) == pytest.approx([0.9, 0.1, 0.0])
    # y² / f² = 4 and 1.
    assert qlike(A([2.0, 3.0]), A([1.0, 3.0])) == pytest.approx([3 - np.log(4), 0.0])


def test_a_volatility_is_judged_by_qlike_and_a_return_by_squared_error():
    actual, forecast = A([0.02, 0.01]), A([0.01, 0.02])
    assert np.array_equal(target_kind("volatility").loss(actual, forecast), qlike(actual, forecast))
    assert np.array_equal(target_kind("return").loss(actual, forecast), squared_error(actual, forecast))


@pytest.mark.parametrize(
    ("loss", "best"),
    [
        (squared_error, np.mean),
        (absolute_error, np.median),
        (lambda y, f: pinball(y, f, 0.2), lambda y: np.quantile(y, 0.2)),
        (qlike, lambda y: np.sqrt((y**2).mean())),
    ],
    ids=["mean", "median", "quantile", "variance"],
)
def test_each_loss_is_smallest_for_the_figure_it_asks_for(loss, best):
    actual = np.random.default_rng(0).lognormal(0, 0.6, 4001)
    at = best(actual)
    means = [loss(actual, np.full(4001, at * f)).mean() for f in (0.9, 0.97, 1, 1.03, 1.1)]
    assert means.index(min(means)) == 2


def test_skill_is_one_less_the_ratio_of_mean_losses():
    assert skill_score([1.0, 2.0], [2.0, 4.0]) == 0.5
    assert skill_score([2.0, 4.0], [1.0, 2.0]) == -1.0
    assert np.isnan(skill_score([1.0, 2.0], [0.0, 0.0]))


# Student's t


@pytest.mark.parametrize(
    ("statistic", "freedom", "p_value"),
    [
        # Two-sided critical values of the printed tables.
        (12.706, 1, 0.05),
        (4.303, 2, 0.05),
        (3.182, 3, 0.05),
        (4.032, 5, 0.01),
        (2.228, 10, 0.05),
        (2.756, 29, 0.01),
        (1.671, 60, 0.10),
        (1.962, 1000, 0.05),
    ],
)
def test_p_values_of_the_printed_tables(statistic, freedom, p_value):
    assert student_two_sided(statistic, freedom) == pytest.approx(p_value, rel=2e-3)
    assert student_two_sided(-statistic, freedom) == student_two_sided(statistic, freedom)


def test_many_degrees_of_freedom_are_the_normal_distribution():
    assert student_two_sided(1.959964, 1_000_001) == pytest.approx(0.05, abs=1e-5)
    assert student_two_sided(0.0, 7) == 1.0
    assert student_two_sided(float("inf"), 7) == 0.0


# Diebold–Mariano


def test_one_step_ahead_by_hand():
    # Differences 1, 2, 3, 4, 5: mean 3, variance 2, so 3/√(2/5) = 4.743; √((5 − 1)/5) of it is 4.2426 = 3√2.
    found = diebold_mariano([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5, lags=0)
    assert found.difference == 3
    assert found.statistic == pytest.approx(3 * np.sqrt(2))
    assert found.p_value == pytest.approx(0.0132, abs=1e-4)  # t with 4 degrees of freedom
    assert (found.lags, found.pairs) == (0, 5)


def test_one_step_ahead_without_lags_is_the_paired_t_test():
    own, other = np.random.default_rng(1).random((2, 40))
    difference = own - other
    student = difference.mean() / (difference.std(ddof=1) / np.sqrt(40))
    assert diebold_mariano(own, other, lags=0).statistic == pytest.approx(student)


def test_two_steps_ahead_by_hand():
    # Differences 3, 3, 0, 0, 3, 3: mean 2, deviations 1, 1, −2, −2, 1, 1; γ₀ = 2, γ₁ = (1 − 2 + 4 − 2 + 1)/6 = 1/3.
    differences = A([3.0, 3.0, 0.0, 0.0, 3.0, 3.0])
    factor = np.sqrt((6 + 1 - 4 + 2 / 6) / 6)
    equal = diebold_mariano(differences, np.zeros(6), horizon=2, kernel="rectangular")
    assert equal.lags == 1
    assert equal.statistic == pytest.approx(2 / np.sqrt((2 + 2 / 3) / 6) * factor)
    falling = diebold_mariano(differences, np.zeros(6), horizon=2, lags=1)
    assert falling.statistic == pytest.approx(2 / np.sqrt((2 + 1 / 3) / 6) * factor)


def test_long_run_variance_by_hand():
    values = A([1.0, -1.0, 1.0, -1.0])  # γ₀ = 1, γ₁ = −3/4, γ₂ = 1/2
    assert long_run_variance(values, 2, "rectangular") == pytest.approx(1 + 2 * (-0.75 + 0.5))
    assert long_run_variance(values, 2, "bartlett") == pytest.approx(1 + 2 * (-0.75 * 2 / 3 + 0.5 / 3))


def test_swapping_the_forecasts_turns_the_sign_alone():
    own, other = noisy_pair(np.random.default_rng(2), 300, 6)
    one, two = diebold_mariano(own, other, horizon=6), diebold_mariano(other, own, horizon=6)
    assert (one.statistic, one.difference) == (-two.statistic, -two.difference)
    assert one.p_value == two.p_value


@pytest.mark.parametrize(
    ("n", "horizon", "kernel", "low", "high"),
    [
        (100, 1, "bartlett", 0.03, 0.12),
        (500, 1, "bartlett", 0.03, 0.09),
        (500, 24, "bartlett", 0.03, 0.14),
        (500, 24, "rectangular", 0.02, 0.12),
        (4000, 24, "bartlett", 0.03, 0.09),
    ],
)
def test_equal_forecasts_are_rarely_told_apart(n, horizon, kernel, low, high):
    draw = np.random.default_rng(n + horizon)
    wrong = [
        diebold_mariano(*noisy_pair(draw, n, horizon), horizon=horizon, kernel=kernel).p_value < 0.05
        for _ in range(400)
    ]
    assert low <= np.mean(wrong) <= high


def test_overlapping_horizons_make_a_test_without_lags_wrong_and_the_test_knows_it():
    draw, naive, heeding = np.random.default_rng(7), [], []
    for _ in range(300):
        label = np.convolve(draw.normal(size=523), np.ones(24), "valid")
        first, second = 0.5 * np.repeat(draw.normal(size=(2, 50)), 10, axis=1) * np.sqrt(24)
        own, other = (label - first) ** 2, (label - second) ** 2
        naive.append(diebold_mariano(own, other, horizon=1, lags=0).p_value < 0.05)
        heeding.append(diebold_mariano(own, other, horizon=24).p_value < 0.05)
    assert np.mean(naive) > 0.3
    assert np.mean(heeding) < 0.15


def test_a_better_forecast_is_found():
    draw = np.random.default_rng(3)
    label, signal = draw.normal(size=(2, 500))
    label = label + signal
    found = diebold_mariano((label - signal) ** 2, label**2)
    assert found.difference < 0
    assert found.statistic < -5
    assert found.p_value < 1e-6


def test_the_same_forecast_twice_is_no_difference_and_a_constant_one_is_certain():
    own = np.random.default_rng(4).random(50)
    same = diebold_mariano(own, own)
    assert (same.statistic, same.p_value) == (0.0, 1.0)
    always = diebold_mariano(np.ones(50), np.full(50, 2.0))
    assert (always.statistic, always.p_value) == (-np.inf, 0.0)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("loss", [squared_error, absolute_error, qlike])
def test_a_model_that_equals_its_baseline_but_for_rounding_ties_with_it(loss, precision):
    """The same figure reached two ways; rounding has a sign of its own and so a large statistic."""
    draw = np.random.default_rng(5)
    baseline = np.exp(draw.normal(-4, 0.5, 2000))
    actual = baseline * np.exp(draw.normal(0, 0.5, 2000))
    model = np.exp(np.log(baseline).astype(precision)).astype(precision).astype(np.float64)
    model *= 1 + 3 * np.finfo(precision).eps
    own, other = loss(actual, model), loss(actual, baseline)
    assert np.any(own != other)
    test = diebold_mariano(own, other, horizon=3)
    assert (test.difference, test.statistic, test.p_value) == (0.0, 0.0, 1.0)
    row = compare(own, other)
    assert (row["lower"], row["upper"], row["statistic"]) == (0.0, 0.0, 0.0)


def test_a_small_difference_that_is_more_than_rounding_is_still_found():
    own = np.random.default_rng(6).random(4000)
    found = diebold_mariano(own, own + np.tile([0.5e-4, 1.5e-4], 2000))
    assert found.difference == pytest.approx(-1e-4)
    assert found.p_value < 1e-6


def test_labels_not_yet_known_are_left_out():
    own, other = np.random.default_rng(5).random((2, 60))
    holes = own.copy()
    holes[-5:] = np.nan
    assert diebold_mariano(holes, other) == diebold_mariano(own[:55], other[:55])


def test_a_negative_rectangular_variance_is_refused_and_bartlett_is_not():
    values = np.tile([1.0, -0.9], 20)
    with pytest.raises(UserError, match="take kernel='bartlett'"):
        diebold_mariano(values, np.zeros(40), horizon=2, kernel="rectangular")
    assert np.isfinite(diebold_mariano(values, np.zeros(40), horizon=2).statistic)


@pytest.mark.parametrize(
    ("own", "other", "options", "message"),
    [
        (np.ones(5), np.ones(4), {}, r"\(5,\) and \(4,\)"),
        (np.ones(8), np.ones(8), {"horizon": 4}, "8 pairs are too few for a horizon of 4"),
        (np.ones(8), np.ones(8), {"lags": 8}, "lags 8 must be from 0 to 7"),
        (np.full(8, np.nan), np.ones(8), {}, "no label has a loss of both"),
    ],
)
def test_what_cannot_be_tested_is_refused(own, other, options, message):
    with pytest.raises(UserError, match=message):
        diebold_mariano(own, other, **options)


# Bootstrap of the mean difference


def test_the_interval_of_a_mean_difference_covers_the_truth_as_often_as_it_says():
    draw, inside = np.random.default_rng(8), 0
    for seed in range(200):
        own, other = noisy_pair(draw, 300)
        found = mean_difference_interval(own, other, resamples=200, level=0.9, seed=seed)
        inside += found.lower <= 0 <= found.upper
    # 180 expected; binomial standard error 4.2.
    assert 165 <= inside <= 193


def test_blocks_are_at_least_as_long_as_the_horizon():
    own, other = noisy_pair(np.random.default_rng(9), 300)
    assert mean_difference_interval(own, other, resamples=5).block < 24
    assert mean_difference_interval(own, other, horizon=24, resamples=5).block == 24


def test_a_comparison_holds_what_its_parts_say():
    own, other = noisy_pair(np.random.default_rng(10), 400, 6)
    row, test = compare(own, other, horizon=6, seed=1), diebold_mariano(own, other, horizon=6)
    interval = mean_difference_interval(own, other, horizon=6, seed=1)
    assert row["loss"] - row["baseline"] == pytest.approx(test.difference)
    assert row["skill"] == skill_score(own, other)
    assert (row["statistic"], row["p_value"], row["pairs"]) == (test.statistic, test.p_value, 400)
    assert (row["lower"], row["upper"]) == (interval.lower, interval.upper)
    assert row["lower"] < test.difference < row["upper"]
