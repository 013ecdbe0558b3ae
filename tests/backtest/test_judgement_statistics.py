"""Bootstrap, deflated Sharpe and overfitting against theory, the papers' worked examples and cases by hand."""

from __future__ import annotations

import numpy as np
import pytest

from longtape.backtest import statistics
from longtape.backtest.bootstrap import (
    block_length,
    bootstrap_metrics,
    stationary_bootstrap,
    strategy_block_length,
)
from longtape.backtest.metrics import sharpe
from longtape.backtest.overfitting import TrialSet, deflate, overfitting
from longtape.core.errors import UserError


def autoregression(n, phi, draw):
    noise, out = draw.normal(size=n + 100), np.zeros(n + 100)
    for t in range(1, n + 100):
        out[t] = phi * out[t - 1] + noise[t]
    return out[100:]


# Stationary bootstrap


def test_a_resample_is_made_of_runs_of_the_series_wrapped_round_of_the_asked_mean_length():
    n, block = 500, 20.0
    drawn = stationary_bootstrap(np.arange(n), np.copy, block=block, resamples=200)
    steps = (np.diff(drawn, axis=1) % n) == 1
    # A new block begins by chance where the old would have gone on, once in n.
    assert 1 / (~steps).mean() == pytest.approx(block, rel=0.05)
    counts = np.bincount(drawn.astype(int).ravel(), minlength=n)
    assert counts.min() > 100
    assert counts.max() < 320


def test_blocks_of_one_are_independent_draws_and_endless_blocks_are_shifts():
    n = 50
    single = stationary_bootstrap(np.arange(n), np.copy, block=1, resamples=400)
    assert ((np.diff(single, axis=1) % n) == 1).mean() == pytest.approx(1 / n, abs=0.01)
    endless = stationary_bootstrap(np.arange(n), np.copy, block=1e9, resamples=20)
    assert ((np.diff(endless, axis=1) % n) == 1).all()


def test_the_seed_decides_the_resamples():
    series = np.random.default_rng(0).normal(size=100)
    first, same, other = (
        stationary_bootstrap(series, np.mean, block=5, resamples=10, seed=s) for s in (1, 1, 2)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_variance_of_the_mean_is_that_of_the_dependent_series():
    draw = np.random.default_rng(3)
    phi, n = 0.5, 4000
    series = autoregression(n, phi, draw)
    drawn = stationary_bootstrap(series, np.mean, block=block_length(series), resamples=1000)
    long_run = 1 / (1 - phi) ** 2  # 4; independent draws would give 1 / (1 − φ²) = 1.33
    assert n * drawn.var() == pytest.approx(long_run, rel=0.2)


@pytest.mark.parametrize("phi", [0.3, 0.6, 0.85, -0.5])
def test_block_length_is_that_of_theory_for_an_autoregression(phi):
    n = 2000
    found = [block_length(autoregression(n, phi, np.random.default_rng(seed))) for seed in range(20)]
    # G = 2γ₀φ/(1 − φ)² and g(0) = γ₀(1 + φ)/(1 − φ): b = (2φ/(1 − φ²))^(2/3) n^(1/3) (Patton, Politis, White 2009).
    theory = (2 * abs(phi) / (1 - phi**2)) ** (2 / 3) * n ** (1 / 3)
    assert np.mean(found) == pytest.approx(theory, rel=0.25)


def test_noise_needs_no_blocks_and_clustered_variance_does():
    draw = np.random.default_rng(0)
    noise = draw.normal(size=3000)
    clustered = noise * np.exp(autoregression(3000, 0.97, draw) / 5)
    assert np.mean([block_length(draw.normal(size=3000)) for _ in range(20)]) < 2.5
    assert strategy_block_length(clustered) > 3 * block_length(clustered)


@pytest.mark.parametrize("series", [[0.1], [0.1, 0.2], [0.0] * 50, [0.01] * 50])
def test_block_length_of_what_has_no_dependence_to_measure_is_one(series):
    assert block_length(series) == 1.0


def test_intervals_of_independent_normal_returns_cover_the_truth_as_often_as_they_say():
    draw, truth, inside = np.random.default_rng(5), 0.1, 0
    for seed in range(200):
        returns = draw.normal(0.001, 0.01, 250)
        found = bootstrap_metrics(returns, 1.0, resamples=200, level=0.9, seed=seed)["sharpe"]
        inside += found.lower <= truth <= found.upper
    # 180 expected; binomial standard error 4.2.
    assert 165 <= inside <= 193


def test_intervals_hold_the_figures_they_belong_to():
    returns = np.random.default_rng(6).normal(0.0005, 0.01, 750)
    found = bootstrap_metrics(returns, 252.0)
    assert set(found) == {"annual_return", "sharpe", "max_drawdown"}
    for one in found.values():
        assert one.lower < one.value < one.upper
        assert (one.level, one.resamples) == (0.95, 1000)
    assert found["sharpe"].value == sharpe(returns, 252.0)
    # Lo's standard error and the bootstrap agree on independent returns.
    width = 2 * 1.96 * statistics.sharpe_standard_error(returns, 252.0)
    assert found["sharpe"].upper - found["sharpe"].lower == pytest.approx(width, rel=0.15)


@pytest.mark.parametrize(
    ("series", "block", "resamples"),
    [([1.0], 1, 9), ([1.0, np.nan], 1, 9), ([1.0, 2.0], 0.5, 9), ([1.0, 2.0], 1, 0)],
)
def test_a_bootstrap_of_nothing_is_refused(series, block, resamples):
    with pytest.raises(UserError, match="bootstrap"):
        stationary_bootstrap(series, np.mean, block=block, resamples=resamples)


# Probabilistic and deflated Sharpe


def test_the_worked_example_of_probabilistic_sharpe():
    """Bailey and López de Prado 2012: 24 monthly returns, Sharpe 0.458, with and without their shape."""
    assert statistics.probabilistic_sharpe_of(0.458, 24, -2.448, 10.164) == pytest.approx(0.913, abs=5e-4)
    assert statistics.probabilistic_sharpe_of(0.458, 24, 0.0, 3.0) == pytest.approx(0.982, abs=5e-4)


@pytest.mark.parametrize(
    ("trials", "skew", "kurt", "expected"), [(100, -3, 10, 0.9004), (46, -3, 10, 0.9505), (88, 0, 3, 0.9505)]
)
def test_the_worked_example_of_deflated_sharpe(trials, skew, kurt, expected):
    """Bailey and López de Prado 2014: annual Sharpe 2.5 over 1,250 days, variance 1/2 a year among the trials."""
    found = statistics.deflated_sharpe(2.5 / np.sqrt(250), 1250, skew, kurt, trials, 0.5 / 250)
    assert found == pytest.approx(expected, abs=5e-5)


def test_expected_best_sharpe_is_the_mean_of_the_best_of_that_many_normals():
    best = np.random.default_rng(0).normal(0, 0.2, (20_000, 50)).max(axis=1).mean()
    assert statistics.expected_best_sharpe(50, 0.04) == pytest.approx(best, rel=0.02)


def test_deflating_by_hand():
    returns = np.random.default_rng(1).normal(0.001, 0.01, 500)
    trials = TrialSet.of_sharpes(["a", "b", "c"], [0.10, 0.04, 0.01])
    found = deflate(returns, trials)
    assert found.trials == 3
    assert found.variance == pytest.approx(0.0021)  # mean 0.05: (25 + 1 + 16)e-4 / 2
    assert found.expected_best == statistics.expected_best_sharpe(3, trials.variance)
    assert found.deflated_sharpe == statistics.probabilistic_sharpe(returns, found.expected_best)
    assert found.probabilistic_sharpe == statistics.probabilistic_sharpe(returns)


# Probability of backtest overfitting


def noise(trials, bars, seed):
    table = np.random.default_rng(seed).normal(size=(bars, trials))
    return {f"t{i}": table[:, i] for i in range(trials)}


def test_choosing_among_noise_is_overfitting_half_the_time():
    found = [overfitting(TrialSet.of_returns(noise(10, 320, seed)), 8).probability for seed in range(60)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)


def test_a_truly_better_trial_is_not_overfitting():
    table = noise(10, 2000, 0)
    found = overfitting(TrialSet.of_returns({**table, "good": table["t0"] + 0.3}))
    assert found.probability == 0
    assert found.loss == 0
    assert len(found.logits) == 12_870


def test_trials_that_swap_places_are_all_overfitting():
    """Two trials, two stretches: the best of each stretch is the worst of the other."""
    wiggle = np.tile([0.01, -0.01], 10)
    first = np.concatenate([wiggle + 0.01, wiggle - 0.01])
    found = overfitting(TrialSet.of_returns({"a": first, "b": -first}), blocks=2)
    assert found.probability == 1
    assert found.loss == 1
    assert found.logits == pytest.approx(np.log([1 / 2, 1 / 2]))  # rank 1 of 2: ω = 1/3


def test_every_partition_ranks_by_the_sharpe_ratios_of_its_bars():
    table = np.column_stack(list(noise(5, 103, 2).values()))
    found = overfitting(TrialSet.of_returns(noise(5, 103, 2)), blocks=4)
    parts = np.array_split(np.arange(103), 4)
    by_hand = []
    for inside in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        seen = np.concatenate([parts[i] for i in inside])
        left = np.setdiff1d(np.arange(103), seen)
        best = (table[seen].mean(0) / table[seen].std(0)).argmax()
        scores = table[left].mean(0) / table[left].std(0)
        omega = ((scores < scores[best]).sum() + 1) / 6
        by_hand.append(np.log(omega / (1 - omega)))
    assert found.logits == pytest.approx(by_hand)
    assert found.probability == np.mean(np.array(by_hand) <= 0)


def test_a_trial_that_never_traded_has_a_sharpe_of_zero_there():
    found = overfitting(TrialSet.of_returns({**noise(3, 64, 1), "flat": np.zeros(64)}), blocks=4)
    assert np.isfinite(found.logits).all()


def test_overfitting_is_refused_where_it_cannot_be_known():
    bare = TrialSet.of_sharpes(["a", "b"], [0.1, 0.2])
    with pytest.raises(UserError, match="were not kept; keep them"):
        overfitting(bare)
    with pytest.raises(UserError, match="one trial was not chosen among others"):
        overfitting(TrialSet.of_returns(noise(1, 100, 0)))


@pytest.mark.parametrize("blocks", [0, 3, 22, 52])
def test_overfitting_needs_an_even_number_of_blocks_that_the_record_can_fill(blocks):
    with pytest.raises(UserError, match=f"blocks {blocks} must be even"):
        overfitting(TrialSet.of_returns(noise(3, 100, 0)), blocks)


def test_trials_of_other_lengths_or_with_holes_are_refused():
    with pytest.raises(UserError, match="returns of the same bars"):
        TrialSet.of_returns({"a": [0.1, 0.2], "b": [0.1]})
    with pytest.raises(UserError, match="missing or not finite"):
        TrialSet.of_returns({"a": [0.1, 0.2], "b": [0.1, np.nan]})
    with pytest.raises(UserError, match="one finite per-bar Sharpe"):
        TrialSet.of_sharpes(["a"], [0.1, 0.2])
