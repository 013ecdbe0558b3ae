"""The encoder begins where the closed form ends, takes any length and patch, and says what it cannot do."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from longtape.core.errors import UserError
from longtape.features.build import FeaturesConfig, build
from longtape.features.target_kinds import target_kind
from longtape.models import transformer
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from longtape.models.har import HarDesign, fit_log_har
from longtape.models.linear_baseline import LogHar, SpanRidge
from longtape.models.transformer import Transformer, TransformerConfig
from longtape.training.batches import BatchSource
from tests.candles import candles
from tests.models.inputs import inputs_of

FEATURES = ["log_return", "volatility(20)", "hour"]
TRAIN, VALID = np.arange(200, 900), np.arange(910, 1100)


@pytest.fixture(scope="module")
def panel():
    return build([candles(1500)], FeaturesConfig(features=FEATURES, targets=["return(6)", "volatility(6)"]))


def make(panel, **options):
    torch.manual_seed(0)
    given = {"lookback": 64, "attention": "flash", "d_model": 16, "n_heads": 2, **options}
    return EncoderForecaster(EncoderConfig(**given), inputs_of(panel, TRAIN)).eval()


def fitted(panel, **options):
    model = make(panel, **options)
    model.fit(panel, TRAIN, VALID)
    return model


def batch_at(model, panel, rows):
    return BatchSource(model, panel).batch(np.asarray(rows))


@pytest.mark.parametrize("pooling", ["last", "mean", "class", "attention"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
@pytest.mark.parametrize("patch", [1, 7])
def test_every_shape_of_model_gives_one_prediction_per_target(panel, pooling, positions, patch):
    norm = "post" if patch == 7 else "pre"
    model = fitted(panel, pooling=pooling, positions=positions, patch=patch, norm=norm)
    with torch.no_grad():
        out = model(batch_at(model, panel, range(300, 305))).mean()
    assert out.shape == (5, 2)
    assert torch.isfinite(out).all()
    assert (out[:, 1] > 0).all()


def test_an_untrained_model_is_the_closed_form_baseline(panel):
    """Returns by a ridge, volatility by a log-HAR, both made anew from the panel alone."""
    model, rows = fitted(panel), np.arange(1150, 1200)
    with torch.no_grad():
        out = model(batch_at(model, panel, rows)).mean().double().numpy()
    weights, intercept = ridge_by_hand(panel)
    assert np.allclose(out[:, 0], span_means(panel, rows) @ weights + intercept, atol=1e-6)
    design = HarDesign.of(panel.interval, panel.calendar)
    har = fit_log_har(design, panel, 0, [1], TRAIN)
    variance = np.exp(har.log_variance(design.lagged(panel, 0)[rows], design.cells(panel)[rows]))
    assert np.allclose(out[:, 1], np.sqrt(variance[:, 0]), rtol=1e-5)


def span_means(panel, rows):
    """[n, F]: means of the scaled columns over the last 1, 4, 16 and 64 bars."""
    values = panel.values.astype(np.float64)
    scaled = np.clip((values - values[TRAIN].mean(0)) / values[TRAIN].std(0), -8, 8)
    means = [[scaled[row + 1 - span : row + 1].mean(axis=0) for span in (1, 4, 16, 64)] for row in rows]
    return np.array(means, np.float64).reshape(len(rows), -1)


def ridge_by_hand(panel):
    """Weights [F] and intercept by a direct solution of the centred problem, the penalty chosen by validation."""
    x, v = (span_means(panel, rows) for rows in (TRAIN, VALID))
    y, y_valid = panel.targets[TRAIN, 0], panel.targets[VALID, 0]
    found = {}
    for penalty in (0.01, 0.1, 1.0, 10.0, 100.0, np.inf):
        x0, gram = x - x.mean(0), np.eye(x.shape[1]) * penalty * len(x)
        w = np.linalg.solve(x0.T @ x0 + gram, x0.T @ (y - y.mean())) if penalty < np.inf else 0 * x[0]
        found[((v - x.mean(0)) @ w + y.mean() - y_valid).__pow__(2).mean()] = (w, y.mean() - x.mean(0) @ w)
    return found[min(found)]


@pytest.mark.parametrize("lookback", [2, 64])
def test_sums_over_rows_are_the_windows_that_the_model_sees(panel, lookback):
    """The ridge is fitted from running sums and applied to windows: one design."""
    model = fitted(panel, lookback=lookback)
    ridge, rows = model.baselines["return"], np.array([150, 151, 400, 1300])
    assert isinstance(ridge, SpanRidge)
    design = ridge.design(panel, rows, model.scaling)
    scaled = model.scaling(batch_at(model, panel, rows).x)
    windows = torch.cat([scaled[:, -span:].mean(1) for span in ridge.spans], 1).numpy()
    assert np.allclose(design[:, 1:], windows, atol=1e-5)


def test_the_ridge_is_the_least_squares_solution_of_its_penalty(panel):
    ridge = fitted(panel).baselines["return"]
    weights, intercept = ridge_by_hand(panel)
    assert np.abs(weights).max() > 0
    assert np.allclose(ridge.weights[:, 0, 0].numpy(), weights, atol=1e-9)
    assert float(ridge.intercept[0, 0]) == pytest.approx(intercept, abs=1e-9)


@pytest.mark.parametrize("lookback", [2, 170])
def test_the_start_of_volatility_reads_its_lags_at_every_lookback(panel, lookback):
    model = fitted(panel, lookback=lookback)
    har = model.baselines["volatility"]
    assert isinstance(har, LogHar)
    assert har.har.lags == (3, 6, 12, 24, 72, 168, 720)
    assert model.reach == max(169, lookback)  # 700 training rows hold four weeks, not four months
    squares = np.diff(np.log(panel.closes[:, 0])) ** 2
    rows = np.arange(1150, 1200)
    for inputs, origin in zip(batch_at(model, panel, rows).rows.numpy(), rows, strict=True):
        by_hand = [np.log(squares[origin - lag : origin].mean()) for lag in har.har.lags]
        assert np.allclose(inputs[:-1], by_hand, atol=1e-9)


def test_two_lookbacks_start_volatility_from_the_same_forecast(panel):
    rows = np.arange(1150, 1200)
    with torch.no_grad():
        short, long = (
            model(batch_at(model, panel, rows)).mean()[:, 1]
            for model in (fitted(panel, lookback=2), fitted(panel, lookback=96))
        )
    assert torch.allclose(short, long, rtol=1e-6)


def test_without_baseline_it_begins_at_the_training_mean(panel):
    model = fitted(panel, skip=False)
    assert float(model.baselines["return"].value) == pytest.approx(panel.targets[TRAIN, 0].mean(), rel=1e-9)
    variance = (panel.targets[TRAIN, 1] ** 2).mean()
    assert float(model.baselines["volatility"].value) == pytest.approx(np.log(variance), rel=1e-9)


def test_volatility_needs_no_feature_for_its_start():
    bare = build([candles(300)], FeaturesConfig(features=["volatility(20)"], targets=["volatility(6)"]))
    torch.manual_seed(0)
    config = EncoderConfig(lookback=16, attention="flash", d_model=8, n_heads=2)
    model = EncoderForecaster(config, inputs_of(bare, np.arange(60, 200)))
    model.fit(bare, np.arange(60, 200), np.arange(210, 250))
    assert torch.isfinite(model.eval()(batch_at(model, bare, [280])).mean()).all()


def test_a_head_that_does_not_fit_the_target_is_refused():
    kinds = {"return": target_kind("return")}
    with pytest.raises(UserError, match="does not go with"):
        EncoderConfig(heads={"return": "volatility"}).refuse_targets(kinds)
    with pytest.raises(UserError, match="did you mean 'regression'"):
        EncoderConfig(heads={"return": "regresion"}).refuse_targets(kinds)
    with pytest.raises(UserError, match="no target is of kind 'volatility'"):
        EncoderConfig(heads={"volatility": "volatility"}).refuse_targets(kinds)


def test_several_assets_have_a_row_each_and_one_head_for_each_kind():
    bars = [candles(600, seed, name) for seed, name in enumerate(("A", "B", "C"))]
    config = FeaturesConfig(
        features=["log_return", "hour"], targets=["return(6)", "return(1)", "volatility(6)"]
    )
    panel = build(bars, config)
    rows = np.arange(100, 400)
    model = EncoderForecaster(
        EncoderConfig(lookback=32, attention="flash", d_model=8, n_heads=2), inputs_of(panel, rows)
    )
    model.fit(panel, rows, np.arange(410, 500))
    assert set(model.heads) == {"return", "volatility"}
    assert model.heads["return"].linear.out_features == 6
    with torch.no_grad():
        mean = model.eval()(batch_at(model, panel, [550])).mean()
    alone = build(bars[1:2], config)
    single = EncoderForecaster(model.config, inputs_of(alone, rows))
    single.fit(alone, rows, np.arange(410, 500))
    with torch.no_grad():
        own = single.eval()(batch_at(single, alone, [550])).mean()
    columns = [k for k, t in enumerate(panel.target_columns) if (t.asset, t.kind) == ("B", "volatility")]
    assert torch.allclose(mean[:, columns], own[:, 2:], rtol=1e-5)  # log-HAR reads its own asset alone


def test_labels_that_an_asset_lacks_do_not_spoil_the_others():
    bars = [candles(600, seed, name) for seed, name in enumerate(("A", "B"))]
    panel = build(bars, FeaturesConfig(features=["log_return"], targets=["return(6)", "volatility(6)"]))
    holed = replace(panel, targets=panel.targets.copy())
    holed.targets[150:250, 2:] = np.nan  # B's labels
    rows, valid = np.arange(100, 400), np.arange(410, 500)
    made = []
    for each in (panel, holed):
        model = EncoderForecaster(
            EncoderConfig(lookback=32, attention="flash", d_model=8, n_heads=2), inputs_of(panel, rows)
        )
        model.fit(each, rows, valid)
        made.append(model.baselines["return"])
    assert torch.allclose(made[0].weights[:, 0], made[1].weights[:, 0], atol=1e-12)
    assert not torch.equal(made[0].intercept[1], made[1].intercept[1])
    assert torch.isfinite(made[1].weights).all()


@pytest.mark.parametrize("patch", [1, 6])
def test_a_marked_bar_is_seen_from_everywhere(panel, patch):
    """With one narrow layer, a change of a distant bar reaches the last token only where that bar is marked."""
    options = {"attention": "bigbird", "patch": patch, "n_layers": 1, "skip": False}
    options["attention_options"] = {"block_size": 1, "window_size": 3, "n_random": 0, "n_global": 0}
    model = make(panel, **options)
    torch.nn.init.normal_(model.heads["return"].linear.weight)
    batch = batch_at(model, panel, [300])
    changed = batch.x.clone()
    changed[:, 20] += 0.01
    with torch.no_grad():
        for marks, reaches in (([[20, -1]], True), ([[-1, -1]], False), ([[40, -1]], False)):
            before, after = (
                model(replace(batch, x=x, marks=torch.tensor(marks))).mean() for x in (batch.x, changed)
            )
            assert (not torch.equal(before, after)) == reaches


def test_hidden_states_end_in_what_the_head_sees_and_change_nothing(panel):
    model = fitted(panel, n_layers=3)
    batch = batch_at(model, panel, [300, 301])
    with torch.no_grad():
        before = model(batch).mean()
        states = model.hidden_states(batch)
        assert torch.equal(model(batch).mean(), before)
    assert [tuple(s.shape) for s in states] == [(2, 64, 16)] * 3


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("attention", ["flash", "full", "bigbird"])
def test_a_forecast_from_the_last_token_alone_is_that_from_all_tokens(panel, attention, norm):
    options = {"block_size": 8} if attention == "bigbird" else {}
    model = fitted(panel, attention=attention, attention_options=options, norm=norm, positions="rotary")
    for head in model.heads.values():
        torch.nn.init.normal_(head.linear.weight)
    batch = batch_at(model, panel, range(300, 305))
    with torch.no_grad():
        scaled = model.scaling(batch.x)
        whole = model.predict(model.pooling(model.hidden_states(batch)[-1]), scaled, batch.rows).mean()
        assert torch.allclose(model(batch).mean(), whole, rtol=1e-5, atol=1e-7)


def test_a_long_sequence_is_fed_forward_in_parts_to_the_same_bits(monkeypatch):
    """Without gradients the wide layer takes some tokens at a time, and what came in stays as it is."""
    config = TransformerConfig(
        kind="encoder", lookback=64, attention="full", d_model=16, n_heads=2, n_layers=2
    )
    torch.manual_seed(0)
    layers, x = Transformer(config).eval(), torch.randn(2, 64, 16)
    before, whole = x.clone(), layers(x)[-1]
    monkeypatch.setattr(transformer, "_TOKENS_AT_A_TIME", 24)
    with torch.no_grad():
        assert torch.equal(layers(x)[-1], whole)
    assert torch.equal(x, before)
