"""The baselines that stand beside a result by name: each against a slow reference, and none that sees what comes."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from longtape.core.clock import Interval
from longtape.core.errors import UserError
from longtape.core.scoring import qlike
from longtape.features.build import FeaturesConfig, build
from longtape.features.panel import Column
from longtape.features.splits import SplitConfig, chronological
from longtape.features.target_kinds import target_kind
from longtape.forecasting.baselines import Training, baseline_forecast
from longtape.models.closed_forms import season_rows
from longtape.models.dlinear import moving_average
from longtape.models.garch import GarchFit, fit_garch
from longtape.models.registry import MODELS, build_model, config_of
from longtape.models.transformer import TransformerConfig
from longtape.models.window_ridge import window_products
from longtape.training.batches import BatchSource
from longtape.training.config import TrainingConfig
from tests.candles import candles
from tests.models.inputs import inputs_of

LOOKBACK = 5
FEATURES = ["log_return", "range"]


@pytest.fixture(scope="module")
def panel():
    bars = [candles(900, 1, "AAA"), candles(900, 2, "BBB")]
    targets = ["return(2)", "volatility(3)", "up(2)"]
    return build(bars, FeaturesConfig(features=[*FEATURES, "hour"], targets=targets))


@pytest.fixture(scope="module")
def split(panel):
    return chronological(panel, LOOKBACK, SplitConfig())


def of_kind(panel, split, kind):
    """The panel with the targets of a kind alone, and what a model must know of it."""
    at = [k for k, target in enumerate(panel.target_columns) if target.kind == kind]
    columns = tuple(panel.target_columns[k] for k in at)
    own = replace(
        panel, targets=panel.targets[:, at], target_columns=columns, target_ends=panel.target_ends[:, at]
    )
    return own, inputs_of(own, split.train)


def fitted(name, panel, split, kind, **options):
    own, inputs = of_kind(panel, split, kind)
    torch.manual_seed(0)
    model = build_model(config_of(name)(kind=name, **options), inputs).eval()
    model.fit(own, split.train, split.validation)
    return own, model


def forecasts(model, panel, rows):
    with torch.no_grad():
        return model(BatchSource(model, panel).batch(rows)).mean().double().numpy()


def windows(model, panel, rows):
    """Scaled windows [m, L·C], written out one by one."""
    scaled = model.scaling(torch.from_numpy(panel.values)).numpy().astype(np.float64)
    return np.stack([scaled[row - LOOKBACK + 1 : row + 1].ravel() for row in rows])


# --- ridge and least squares ---


@pytest.mark.parametrize(
    ("m", "lookback", "n_columns"), [(1, 1, 1), (1, 4, 2), (7, 3, 2), (3, 6, 1), (40, 5, 3)]
)
def test_products_of_windows_are_those_of_the_windows_written_out(m, lookback, n_columns):
    rows = np.random.default_rng(m).normal(size=(m + lookback - 1, n_columns))
    written = np.stack([rows[at : at + lookback].ravel() for at in range(m)])
    assert np.allclose(window_products(rows, lookback), written.T @ written, atol=1e-12)


def solved(x, y, penalty):
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    diagonal = np.r_[0.0, np.full(x.shape[1] - 1, penalty * len(x))]
    return np.linalg.solve(x.T @ x + np.diag(diagonal), x.T @ y)


def holed(split):
    """Origins in several runs, as purging leaves them."""
    keep = (split.train % 97 > 5) & (split.train % 31 != 0)
    return replace(split, train=split.train[keep])


def test_ridge_has_the_penalty_of_least_validation_error(panel, split):
    split = holed(split)
    own, model = fitted("ridge", panel, split, "return", lookback=LOOKBACK)
    x, tested = windows(model, own, split.train), windows(model, own, split.test)
    checked = windows(model, own, split.validation)
    found = forecasts(model, own, split.test)
    for k in range(2):
        y, grid = own.targets[split.train, k], (0.01, 0.1, 1.0, 10.0, 100.0)
        tried = [solved(x, y, penalty) for penalty in grid] + [np.r_[y.mean(), np.zeros(x.shape[1])]]
        errors = [((own.targets[split.validation, k] - w[0] - checked @ w[1:]) ** 2).sum() for w in tried]
        best = tried[int(np.argmin(errors))]
        assert np.allclose(found[:, k], best[0] + tested @ best[1:], rtol=1e-5, atol=1e-9)


def test_a_named_penalty_is_taken(panel, split):
    own, model = fitted("ridge", panel, split, "return", lookback=LOOKBACK, penalty=0.3)
    weights = solved(windows(model, own, split.train), own.targets[split.train], 0.3)
    expected = weights[0] + windows(model, own, split.test) @ weights[1:]
    assert np.allclose(forecasts(model, own, split.test), expected, rtol=1e-4, atol=1e-8)


def test_ols_is_the_least_squares_of_least_norm(panel, split):
    """Hours at five lags are alike: the sine and cosine of one tell those of all."""
    own, model = fitted("ols", panel, split, "return", lookback=LOOKBACK)
    x = np.concatenate([np.ones((len(split.train), 1)), windows(model, own, split.train)], axis=1)
    weights, _, rank, _ = np.linalg.lstsq(x, own.targets[split.train], rcond=1e-13**0.5)
    assert rank == 1 + 4 * LOOKBACK + 2
    expected = weights[0] + windows(model, own, split.test) @ weights[1:]
    assert np.allclose(forecasts(model, own, split.test), expected, rtol=1e-4, atol=1e-8)


def test_of_a_volatility_the_logarithm_is_regressed_and_smeared(panel, split):
    own, model = fitted("ridge", panel, split, "volatility", lookback=LOOKBACK, penalty=0.1)
    squares = own.targets[split.train] ** 2
    y = np.log(np.maximum(squares, 1e-4 * squares.mean(axis=0)))
    x = windows(model, own, split.train)
    weights = solved(x, y, 0.1)
    smearing = np.log(np.exp(y - weights[0] - x @ weights[1:]).mean(axis=0))
    expected = np.exp((weights[0] + smearing + windows(model, own, split.test) @ weights[1:]) / 2)
    assert np.allclose(forecasts(model, own, split.test), expected, rtol=1e-5)


def test_labels_that_one_asset_lacks_leave_the_other_its_rows(panel, split):
    targets = panel.targets.copy()
    targets[split.train[40:90], 0] = np.nan
    own, model = fitted(
        "ridge", replace(panel, targets=targets), split, "return", lookback=LOOKBACK, penalty=0.1
    )
    for k in range(2):
        rows = split.train[np.isfinite(own.targets[split.train, k])]
        weights = solved(windows(model, own, rows), own.targets[rows, k], 0.1)
        expected = weights[0] + windows(model, own, split.test) @ weights[1:]
        assert np.allclose(forecasts(model, own, split.test)[:, k], expected, rtol=1e-4, atol=1e-8)


def test_a_window_of_too_many_numbers_is_refused(panel, split):
    with pytest.raises(UserError, match=r"look back over 1000 bars or name fewer features"):
        fitted("ridge", panel, split, "return", lookback=1_001)


# --- the value a season ago ---


@pytest.mark.parametrize("season", [2, 7, "day"])
def test_a_season_ago_is_the_last_time_it_was_known(panel, split, season):
    rows = 24 if season == "day" else season
    for kind, width in (("return", 2), ("volatility", 3)):
        own, model = fitted("seasonal_naive", panel, split, kind, season=season)
        found = forecasts(model, own, split.test)
        back = rows
        while back < width:
            back += rows
        assert model.reach == back + 1
        assert np.allclose(found, own.targets[split.test - back], rtol=1e-5, atol=1e-12)


def test_a_season_ago_of_an_open_ends_with_the_close_before_it():
    bars = candles(300, 3)
    own = build([bars], FeaturesConfig(features=FEATURES, targets=["open_return(2)"]))
    split = chronological(own, 1, SplitConfig())
    own, model = fitted("seasonal_naive", own, split, "return", season=2)
    closes = np.log(bars.column("close"))
    rows = split.test + len(closes) - len(own)
    assert model.reach == 3
    assert np.allclose(
        forecasts(model, own, split.test)[:, 0], closes[rows] - closes[rows - 2], rtol=1e-4, atol=1e-8
    )


@pytest.mark.parametrize(
    ("season", "interval", "calendar", "rows"),
    [
        (None, "1h", "24/7", 24), ("week", "1h", "24/7", 168), (None, "1d", "24/7", 7), (None, "1d", "XNYS", 5),
        ("day", "5m", "24/5", 288), ("week", "1h", "XNYS", 35), (12, "1d", "24/7", 12),
    ],
)  # fmt: skip
def test_a_season_is_a_number_of_rows(season, interval, calendar, rows):
    assert season_rows(season, Interval.parse(interval), calendar) == rows


@pytest.mark.parametrize(("season", "interval"), [("day", "1d"), (None, "1w"), (None, "event")])
def test_what_makes_no_season_is_refused(season, interval):
    kept = Interval(0, "event") if interval == "event" else Interval.parse(interval)
    with pytest.raises(UserError, match=r"model.season: .* make no (day|week); name a number of rows"):
        season_rows(season, kept, "24/7")


def test_a_season_longer_than_training_is_refused(panel, split):
    with pytest.raises(UserError, match="name a shorter season or load more data"):
        fitted("seasonal_naive", panel, split, "return", season=700)


# --- DLinear ---


def test_dlinear_is_two_linear_maps_of_trend_and_remainder(panel, split):
    own, model = fitted("dlinear", panel, split, "return", lookback=LOOKBACK, kernel=3)
    head = model.heads["return"].linear
    with torch.no_grad():
        head.weight.normal_()
    window = model.scaling(BatchSource(model, own).batch(split.test[:1]).x)[0].double().numpy()
    padded = np.concatenate([window[:1], window, window[-1:]])
    trend = np.stack([padded[at : at + 3].mean(axis=0) for at in range(LOOKBACK)])
    weights = head.weight.detach().double().numpy()[0]
    found = forecasts(model, own, split.test[:1])[0]
    for asset, own_columns in enumerate([[0, 1, 4, 5], [2, 3, 4, 5]]):
        maps = weights.reshape(2, LOOKBACK, 4)
        total = (maps[0] * trend[:, own_columns] + maps[1] * (window - trend)[:, own_columns]).sum()
        start = own.targets[split.train, asset].mean()
        unit = own.targets[split.train, asset].std()
        assert found[asset] == pytest.approx(start + unit * total, rel=1e-4)


def test_a_moving_average_repeats_the_ends():
    series = torch.tensor([1.0, 2.0, 6.0])[None, :, None]
    assert moving_average(series, 5)[0, :, 0].tolist() == pytest.approx(
        [(1 + 1 + 1 + 2 + 6) / 5, 16 / 5, 21 / 5]
    )


def test_dlinear_refuses_an_average_without_a_middle():
    with pytest.raises(ValueError, match="name an odd number"):
        config_of("dlinear")(kernel=24)


# --- EWMA and GARCH ---


def moves_of(panel, asset):
    return np.diff(np.log(panel.closes[:, asset]), prepend=np.nan)


def test_ewma_is_a_mean_with_fading_weights(panel, split):
    own, model = fitted("ewma", panel, split, "volatility", decay=0.9)
    moves, rows = moves_of(own, 1), model.reach - 1
    assert 0.9**rows < 1e-5 < 0.9 ** (rows - 1)
    weights = 0.9 ** np.arange(rows)
    expected = [
        np.sqrt(3 * (weights * moves[row - rows + 1 : row + 1][::-1] ** 2).sum() / weights.sum())
        for row in split.test
    ]
    assert np.allclose(forecasts(model, own, split.test)[:, 1], expected, rtol=1e-5)


def test_ewma_fits_its_decay_on_the_training_rows_alone(panel, split):
    own, model = fitted("ewma", panel, split, "volatility")
    labels = own.targets[split.train, 0]
    losses = {}
    for half_life in (2, 4, 8, 16, 32):
        decay = 0.5 ** (1 / half_life)
        _, other = fitted("ewma", panel, split, "volatility", decay=decay)
        losses[decay] = qlike(labels, forecasts(other, own, split.train)[:, 0]).mean()
    assert float(model.decay[0]) == pytest.approx(min(losses, key=losses.get))


def test_riskmetrics_at_days():
    days = candles(900, 4)
    frame = days.frame.with_columns(days.frame["timestamp"].dt.epoch("ms") * 24)
    frame = frame.with_columns(frame["timestamp"].cast(days.frame["timestamp"].dtype))
    own = build(
        [replace(days, frame=frame, interval=Interval.parse("1d"))],
        FeaturesConfig(features=["log_return"], targets=["volatility(5)"]),
    )
    _, model = fitted("ewma", own, chronological(own, 1, SplitConfig()), "volatility")
    assert model.decay.tolist() == [0.94]
    assert model.reach == 1 + 187  # 186 bars leave 0.001 % (RiskMetrics 1996, table 5.7), to the whole bar


def test_bars_that_are_missing_do_not_count(panel, split):
    present, closes = panel.present.copy(), panel.closes.copy()
    gone = slice(split.test[0] + 3, split.test[0] + 9)
    present[gone, 0], closes[gone, 0] = False, closes[gone.start - 1, 0]
    own, model = fitted(
        "ewma", replace(panel, present=present, closes=closes), split, "volatility", decay=0.8
    )
    found = forecasts(model, own, np.arange(gone.start - 1, gone.stop))[:, 0]
    assert np.allclose(found, found[0], rtol=1e-3)  # and no calm that nobody saw


def simulated_garch(n, omega, alpha, beta, seed=0):
    draw, out = np.random.default_rng(seed), np.empty(n)
    variance = omega / (1 - alpha - beta)
    for t in range(n):
        out[t] = np.sqrt(variance) * draw.standard_normal()
        variance = omega + alpha * out[t] ** 2 + beta * variance
    return out


def test_garch_is_found_again():
    found = fit_garch(simulated_garch(20_000, 2e-6, 0.08, 0.9))
    assert (found.alpha, found.beta) == (pytest.approx(0.08, abs=0.015), pytest.approx(0.9, abs=0.02))
    assert found.omega / (1 - found.alpha - found.beta) == pytest.approx(1e-4, rel=0.1)


def test_returns_without_memory_have_one_variance():
    for seed in range(4):
        found = fit_garch(np.random.default_rng(seed).normal(0, 0.01, 3_000))
        sums = found.summed(np.array([found.omega / (1 - found.beta)]), 24)
        assert sums[0] == pytest.approx(24e-4, rel=0.15)


def test_garch_forecasts_are_those_of_the_recursion(panel, split):
    own, model = fitted("garch", panel, split, "volatility")
    omega, alpha, beta = model.found[0].tolist()
    assert alpha > 0
    moves = np.nan_to_num(moves_of(own, 0))
    variance, following = omega / (1 - alpha - beta), np.empty(len(own))
    for t in range(len(own)):
        variance = following[t] = omega + alpha * moves[t] ** 2 + beta * variance
    total, expected = np.zeros(len(own)), following
    for _ in range(3):
        total, expected = total + expected, omega + (alpha + beta) * expected
    assert np.allclose(forecasts(model, own, split.test)[:, 0], np.sqrt(total)[split.test], rtol=1e-4)


def test_a_sum_of_expected_variances_comes_to_its_level():
    fit = GarchFit(1e-6, 0.1, 0.8)
    assert fit.summed(np.array([5e-5]), 1) == pytest.approx(5e-5)
    assert fit.summed(np.array([5e-5]), 4_000)[0] / 4_000 == pytest.approx(1e-5, rel=0.02)


def test_too_few_returns_for_garch(panel, split):
    with pytest.raises(UserError, match="AAA has moved in 60 training rows, and a fit of GARCH takes 100"):
        fitted("garch", panel, replace(split, train=split.train[:60]), "volatility")


@pytest.mark.parametrize(
    ("name", "package", "kind"), [("garch", "arch", "volatility"), ("lightgbm", "lightgbm", "up")]
)
def test_a_missing_package_names_the_extra(panel, split, monkeypatch, name, package, kind):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"package '{package}': pip install 'longtape\[baselines\]'"):
        fitted(name, panel, split, kind)


# --- trees ---


TREES = {"lookback": LOOKBACK, "rounds": 30, "least_rows": 20, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("kind", "objective"), [("return", "regression"), ("volatility", "gamma"), ("up", "multiclass")]
)
def test_the_tensors_say_what_the_trees_say(panel, split, kind, objective):
    """LightGBM itself on windows that are written out."""
    lightgbm = pytest.importorskip("lightgbm")
    own, model = fitted("lightgbm", panel, split, kind, **TREES)
    x, checked, tested = (windows(model, own, rows) for rows in (split.train, split.validation, split.test))
    parameters = model.config.parameters(
        {"regression": "mean", "gamma": "log_variance"}.get(objective, "logits"), 2
    )
    assert parameters["objective"] == objective
    y, unit = own.targets[:, 1], float(model.inputs.target_deviation[1])
    y = {"return": y / unit, "volatility": (y / unit) ** 2, "up": y}[kind]
    learnt = lightgbm.Dataset(
        x, y[split.train], params={"verbosity": -1, "use_missing": False, "min_data_in_leaf": 20}
    )
    stop = lightgbm.early_stopping(20, verbose=False)
    booster = lightgbm.train(
        parameters,
        learnt,
        30,
        valid_sets=[learnt.create_valid(checked, y[split.validation])],
        callbacks=[stop],
    )
    expected = booster.predict(tested, num_iteration=booster.best_iteration)
    assert np.ptp(expected) > 0
    if kind == "up":
        with torch.no_grad():
            found = model(BatchSource(model, own).batch(split.test)).probabilities()[:, 1].numpy()
        assert np.allclose(found, expected, atol=1e-5)
        return
    expected = expected * unit if kind == "return" else np.sqrt(expected) * unit
    assert np.allclose(forecasts(model, own, split.test)[:, 1], expected, rtol=1e-4, atol=1e-8)


def test_trees_are_the_same_again_and_others_with_another_seed(panel, split):
    states = [
        fitted("lightgbm", panel, split, "volatility", seed=seed, **TREES)[1].state_dict()
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["value"], states[2]["value"])


# --- what holds for every one of them ---


def beside(kind):
    """Every model of the registry without layers of attention that forecasts a kind of target."""
    for name in MODELS:
        config = config_of(name)
        if config.reads_market and not issubclass(config, TransformerConfig):
            try:
                config(kind=name).refuse_targets({kind: target_kind(kind)})
            except UserError:
                continue
            if not config(kind=name).gives_weights(target_kind(kind)):
                yield name


ONES = [(kind, name) for kind in ("return", "volatility") for name in beside(kind)]


def test_the_registry_is_walked():
    new = {"seasonal_naive", "ridge", "ols", "dlinear", "lightgbm"}
    assert new <= {name for kind, name in ONES if kind == "return"}
    assert new | {"ewma", "garch"} <= {name for kind, name in ONES if kind == "volatility"}


@pytest.mark.parametrize(("kind", "name"), ONES)
def test_nothing_after_the_origin_is_seen(panel, split, kind, name):
    """Rows, closes and labels that are not yet known at the last origin are others, and no forecast moves."""
    cut = int(split.test[20])
    split = replace(split, test=split.test[:21])
    own, inputs = of_kind(panel, split, kind)
    values, closes, targets = own.values.copy(), own.closes.copy(), own.targets.copy()
    values[cut + 1 :] += 3
    closes[cut + 1 :] *= 3
    targets[own.target_ends > own.known_at[cut]] = 7.0
    changed = replace(own, values=values, closes=closes, targets=targets)
    given = config_of(name).model_validate(
        {"kind": name} | ({"lookback": LOOKBACK} if reads_windows(name) else {})
    )
    training = Training(TrainingConfig(epochs=1, stride=8))
    before, after = (baseline_forecast(given, inputs, each, split, training).mean for each in (own, changed))
    assert np.isfinite(before).all()
    assert np.array_equal(before, after)


def reads_windows(name):
    return config_of(name).model_fields["lookback"].default != 1


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("seasonal_naive", "up", "return or path or volatility, not 'up'"),
        ("ridge", "direction", "return or path or volatility, not 'direction'"),
        ("ols", "up", "return or path or volatility, not 'up'"),
        ("ewma", "return", "volatility, not 'return'"),
        ("garch", "path", "volatility, not 'path'"),
        ("lightgbm", "weight", "terciles, not 'weight'"),
    ],
)
def test_targets_that_do_not_fit_are_refused(name, kind, said):
    with pytest.raises(UserError, match=f"model.kind: '{name}' forecasts targets of kind .*{said}"):
        config_of(name)(kind=name).refuse_targets({kind: target_kind(kind)})


def test_columns_of_the_panel_stand_as_the_tests_say(panel):
    assert [str(column) for column in panel.columns[:4]] == [
        "AAA log_return",
        "AAA range",
        "BBB log_return",
        "BBB range",
    ]
    assert all(isinstance(column, Column) and column.asset is None for column in panel.columns[4:])
