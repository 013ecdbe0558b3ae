"""Intervals hold as often as they say: conformal ones on exchangeable data, adaptive ones whatever the data do."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import betabinom

from longtape.core import scoring
from longtape.core.errors import UserError
from longtape.evaluation.coverage import coverage, share_bounds
from longtape.features.build import FeaturesConfig, build
from longtape.features.panel import TargetColumn
from longtape.forecasting.config import ForecastConfig
from longtape.forecasting.conformal import adaptive_bounds, conformal_quantile, error_bounds
from longtape.forecasting.dropout import dropout_samples, only_dropout, sample_windows
from longtape.forecasting.intervals import Course, calibrate, intervals
from longtape.forecasting.predict import Predicted
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from longtape.training.batches import BatchSource
from tests.candles import candles
from tests.models.inputs import inputs_of

RETURN = TargetColumn("return(6)", "return", "TEST", 6)
STEPS = np.arange(1_000)


def normal(seed, n):
    return np.random.default_rng(seed).standard_normal(n)


# --- conformal ---


@pytest.mark.parametrize("method", ["conformal", "cqr"])
@pytest.mark.parametrize(("rows", "level"), [(40, 0.9), (199, 0.8), (999, 0.9)])
def test_coverage_lies_within_its_beta_binomial_bounds(method, rows, level):
    """Of exchangeable data the count of covered labels has that law (Vovk 2012, "Conditional validity")."""
    n = 2_000
    for seed in range(5):
        y = np.random.default_rng(seed).standard_t(4, rows + n)[:, None]
        low, high = np.full_like(y, -0.4), np.full_like(y, 0.7)
        below, above = (1 - level) / 2, (1 + level) / 2
        given = Predicted(np.zeros_like(y), {round(below, 12): low, round(above, 12): high}, None)
        kept = calibrate([RETURN], [method], given.at(slice(0, rows)), y[:rows], [level])
        lower, upper = intervals([RETURN], given.at(slice(rows, None)), kept)[level]
        covered = int(((lower <= y[rows:]) & (y[rows:] <= upper)).sum())
        rank = int(np.ceil(round((rows + 1) * level, 9)))
        law = betabinom(n, rank, rows + 1 - rank)
        assert law.ppf(1e-5) <= covered <= law.ppf(1 - 1e-5)


def test_several_levels_at_once_lie_inside_one_another():
    y = normal(0, 500)[:, None]
    kept = calibrate([RETURN], ["conformal"], Predicted(np.zeros_like(y), {}, None), y, [0.9, 0.5, 0.99])
    found = intervals([RETURN], Predicted(np.zeros((1, 1)), {}, None), kept)
    assert list(found) == [0.9, 0.5, 0.99]
    assert found[0.5][1] < found[0.9][1] < found[0.99][1]
    for level, (lower, upper) in found.items():
        assert upper[0, 0] == -lower[0, 0] == conformal_quantile(np.abs(y[:, 0]), level)


def test_conformal_bounds_are_those_of_crepes():
    crepes = pytest.importorskip("crepes")
    errors, sigma = normal(1, 250), np.random.default_rng(2).uniform(0.5, 2, 250)
    plain = crepes.ConformalRegressor().fit(residuals=errors)
    scaled = crepes.ConformalRegressor().fit(residuals=errors * sigma, sigmas=sigma)
    for level in (0.5, 0.8, 0.9, 0.95):
        own = error_bounds(errors, level, two_sided=False)
        assert np.allclose(plain.predict_int(y_hat=np.zeros(3), confidence=level), own)
        theirs = scaled.predict_int(y_hat=np.zeros(2), sigmas=np.array([1.0, 3.0]), confidence=level)
        assert np.allclose(theirs, np.outer([1, 3], own))


@pytest.mark.parametrize("two_sided", [False, True])
def test_errors_are_bounded_by_the_rank_of_each_side(two_sided):
    errors = np.arange(-10.0, 30.0)
    low, high = error_bounds(errors, 0.8, two_sided)
    if two_sided:  # the 37th of 40 on each side: ⌈41 · 0.9⌉
        assert (low, high) == (np.sort(errors)[3], np.sort(errors)[36])
    else:
        assert (low, high) == (-np.sort(np.abs(errors))[32], np.sort(np.abs(errors))[32])


# --- adaptive ---


def adaptive(errors, calibration, level=0.9, delay=1, **options):
    return adaptive_bounds(
        errors, STEPS[: len(errors)], STEPS[: len(errors)] + delay, calibration, level, **options
    )


@pytest.mark.parametrize("delay", [1, 24])
def test_adaptive_intervals_hold_again_after_volatility_has_doubled(delay):
    """Over 200 seeds, in steps 501 to 1,000 after the change, where the plain interval does not hold."""
    shares = {"adaptive": [], "plain": []}
    for seed in range(200):
        calibration, errors = normal(seed, 500), 2 * normal(seed + 1_000, 1_000)
        found = adaptive(errors, calibration, delay=delay)
        plain = np.tile(error_bounds(calibration, 0.9, two_sided=False), (1_000, 1))
        for name, bounds in (("adaptive", found), ("plain", plain)):
            shares[name].append(((bounds[:, 0] <= errors) & (errors <= bounds[:, 1]))[500:].mean())
    assert abs(np.mean(shares["adaptive"]) - 0.9) < 0.02
    assert np.mean(shares["plain"]) < 0.7


@pytest.mark.parametrize("rate", [0.01, 0.1])
@pytest.mark.parametrize("series", ["growing", "still", "alternating"])
def test_the_share_of_misses_keeps_its_bound_whatever_the_data_do(series, rate):
    """Gibbs & Candès 2021, proposition 4.1, which holds only where the level is not clipped."""
    errors = {
        "growing": np.exp(STEPS / 50),
        "still": np.zeros(1_000),
        "alternating": np.where(STEPS % 100 < 50, 1e-3, 1e3),
    }[series]
    found = adaptive(errors, normal(0, 100), rate=rate)
    missed = ~((found[:, 0] <= errors) & (errors <= found[:, 1]))
    assert abs(missed.mean() - 0.1) <= (0.9 + rate) / (rate * len(errors))


def test_a_level_below_zero_gives_everything_and_one_above_gives_nothing():
    wide = adaptive(np.full(300, 1e9) * 2.0 ** np.arange(300), normal(0, 50), rate=0.1)
    assert np.isinf(wide[:, 1]).any()
    still = adaptive(np.zeros(1_000), np.zeros(300), rate=0.05)
    assert (still[:, 0] > still[:, 1]).any()


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_label_moves_nothing_before_it_is_known(two_sided):
    errors, calibration = normal(0, 300), normal(1, 50)
    other = errors.copy()
    other[100] = 50.0
    before, after = (adaptive(e, calibration, delay=24, two_sided=two_sided) for e in (errors, other))
    moved = (before != after).any(axis=1)
    assert not moved[:124].any()
    assert moved[124]


def test_the_window_of_adaptive_errors_gives_what_sorting_them_gives():
    errors, calibration = normal(3, 400), normal(4, 260)
    for two_sided in (False, True):
        found = adaptive(errors, calibration, rate=1e-12, two_sided=two_sided)
        joined = np.concatenate([calibration, errors])
        for now in (0, 1, 57, 399):
            recent = joined[now : now + 260]
            assert np.allclose(found[now], error_bounds(recent, 0.9, two_sided))


def test_adaptive_bounds_are_plain_ones_before_the_calibration_period_has_ended():
    y = np.concatenate([normal(0, 200), 3 * normal(1, 100)])[:, None]
    given = Predicted(np.zeros_like(y), {}, None)
    kept = calibrate([RETURN], ["adaptive"], given.at(slice(0, 100)), y[:100], [0.9])
    times = np.arange(300)
    course = Course(times, times[:, None] + 6, y, times >= 200)
    upper = intervals([RETURN], given, kept, course)[0.9][1]
    assert len(np.unique(upper[:200])) == 1
    assert upper[299] > upper[0]


# --- dropout ---


@pytest.fixture(scope="module")
def panel():
    return build(
        [candles(400)], FeaturesConfig(features=["log_return"], targets=["return(6)", "volatility(6)"])
    )


def dropping(panel, **options):
    torch.manual_seed(0)
    config = EncoderConfig(lookback=32, d_model=16, n_heads=2, attention="full", **options)
    model = EncoderForecaster(config, inputs_of(panel, np.arange(50, 350)))
    model.fit(panel, np.arange(50, 300), np.arange(310, 350))
    for head in model.heads.values():
        torch.nn.init.normal_(head.linear.weight)
    return model.eval()


def test_only_dropout_is_switched_on_and_no_generator_moves(panel):
    model = dropping(panel, dropout=0.3, attention_options={"attention_dropout": 0.2})
    model.norm = torch.nn.BatchNorm1d(16)
    model.eval()
    before = torch.get_rng_state()
    with only_dropout(model):
        on = {type(module).__name__ for module in model.modules() if module.training}
    assert {"Dropout", "FullAttention"} <= on
    assert not on & {"BatchNorm1d", "EncoderForecaster", "Transformer", "LayerNorm"}
    batch = BatchSource(model, panel).batch(np.array([300]))
    first, second = (dropout_samples(model, batch, 20, seed) for seed in (1, 1))
    assert torch.equal(first, second)
    assert first.shape == (20, 2)
    assert (first.std(0) > 0).all()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.modules())


def test_the_passes_of_a_window_are_one_batch_and_the_same_in_any_company(panel, monkeypatch):
    model, seen = dropping(panel, dropout=0.3), []
    forward = EncoderForecaster.forward
    monkeypatch.setattr(EncoderForecaster, "forward", lambda self, b: seen.append(len(b)) or forward(self, b))
    many = list(sample_windows(model, panel, np.array([300, 350, 399]), 25))
    assert seen == [25, 25, 25]
    assert np.array_equal(next(iter(sample_windows(model, panel, np.array([350]), 25))), many[1])


@pytest.mark.parametrize("kind", ["return", "volatility"])
def test_without_spread_between_passes_the_errors_alone_make_the_interval(kind):
    target = replace(RETURN, kind=kind)
    errors = normal(0, 400) * 0.1
    f = np.full((400, 1), 2.0)
    y = (f[:, 0] + errors if kind == "return" else 2.0 * np.exp(errors))[:, None]
    kept = calibrate([target], ["mc_dropout"], Predicted(f, {}, None), y, [0.8])
    one = Predicted(f[:1], {}, None)
    lower, upper = intervals([target], one, kept, draws=[np.full((50, 1), 2.0)])[0.8]
    wanted = np.quantile(errors, [0.1, 0.9])
    wanted = 2 + wanted if kind == "return" else 2 * np.exp(wanted)
    assert np.allclose([lower[0, 0], upper[0, 0]], wanted, atol=5e-3)
    wider = intervals([target], one, kept, draws=[2.0 + 0.3 * normal(1, 50)[:, None]])[0.8]
    assert wider[0] < lower
    assert wider[1] > upper


def test_dropout_intervals_of_too_few_rows_are_infinite():
    kept = calibrate(
        [RETURN], ["mc_dropout"], Predicted(np.zeros((8, 1)), {}, None), normal(0, 8)[:, None], [0.9]
    )
    lower, upper = intervals([RETURN], Predicted(np.zeros((1, 1)), {}, None), kept, draws=[np.zeros((5, 1))])[
        0.9
    ]
    assert (lower, upper) == (-np.inf, np.inf)


# --- options ---


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"samples": 50}, "samples has an effect with intervals 'mc_dropout' only"),
        ({"rate": 0.1, "intervals": "cqr"}, "rate has an effect with intervals 'adaptive' only"),
        ({"levels": [0.5, 0.5]}, "named once"),
        ({"levels": [1.0]}, "between 0 and 1"),
    ],
)
def test_an_option_without_effect_is_refused(options, why):
    with pytest.raises(ValueError, match=why):
        ForecastConfig(**options)


def test_what_a_head_or_a_model_cannot_give_is_refused():
    with pytest.raises(UserError, match=r"up to 0\.95, not 0\.99; lower the level"):
        ForecastConfig(level=0.99).method("quantile")
    assert ForecastConfig(level=0.99).method("student_t") == "student_t"
    with pytest.raises(UserError, match="dropout above 0"):
        ForecastConfig(intervals="mc_dropout").method("regression", EncoderConfig(dropout=0.0))
    assert ForecastConfig(intervals="mc_dropout").method("regression", EncoderConfig()) == "mc_dropout"


# --- scores ---


def test_the_interval_score_is_the_pinball_loss_of_its_bounds():
    y, lower, upper = normal(0, 50), -1 - normal(1, 50) ** 2, normal(2, 50) ** 2
    both = scoring.pinball(y, lower, 0.1) + scoring.pinball(y, upper, 0.9)
    assert np.allclose(scoring.interval_score(y, lower, upper, 0.8), 2 / 0.2 * both)
    outside = scoring.interval_score(np.array([3.0]), np.array([0.0]), np.array([1.0]), 0.8)
    assert outside == pytest.approx(1 + 10 * 2)


def test_coverage_has_a_row_for_each_level_with_its_own_columns():
    n = 400
    frame = pl.DataFrame(
        {"symbol": "A", "target": "return(1)", "horizon": 1, "actual": normal(0, n), "lower": -1.64, "upper": 1.64,
         "q0.25": -0.674, "q0.75": 0.674}
    )  # fmt: skip
    usual, narrow = coverage(frame, 0.9, [0.5])
    assert (usual["level"], narrow["level"]) == (0.9, 0.5)
    assert usual["from"] < 0.9 < usual["to"]
    assert narrow["from"] < 0.5 < narrow["to"]
    assert usual["pinball"] == pytest.approx(0.1 / 4 * usual["interval score"])


def test_bounds_of_a_share_are_wider_where_misses_cluster():
    apart = np.tile([1.0, 1, 1, 1, 0], 200)
    together = np.repeat(np.tile([1.0, 1, 1, 1, 0], 10), 20)
    narrow, wide = (np.diff(share_bounds(flags, 1))[0] for flags in (apart, together))
    assert wide > 2 * narrow
    assert np.isnan(share_bounds(np.ones(50), 1)).all()


def test_errors_of_every_step_are_scaled_by_the_volatility_forecast_of_the_nearest_horizon():
    sigma, n = np.random.default_rng(0).uniform(0.5, 2, 400), 400
    steps = [replace(RETURN, name="path(24)", kind="path", horizon=h) for h in (1, 8, 24)]
    volatilities = [replace(RETURN, name=f"volatility({h})", kind="volatility", horizon=h) for h in (24, 4)]
    other = replace(volatilities[0], asset="OTHER", horizon=1)
    targets = [*steps, *volatilities, other]
    mean = np.column_stack([np.zeros((n, 3)), sigma, sigma, sigma])
    y = np.column_stack([normal(h, n) * sigma for h in range(3)] + [sigma] * 3)
    kept = calibrate(targets, ["conformal"] * 6, Predicted(mean, {}, None), y, [0.9])
    assert [one.scaled_by for one in kept.targets] == [4, 4, 3, None, None, None]
