"""The forecaster begins where the baseline ends, takes any length and patch, and says what it cannot do."""

import numpy as np
import pytest
import torch

from longtape.core.errors import UserError
from longtape.features.build import FeaturesConfig, build
from longtape.features.scaling import Standardizer
from longtape.features.windows import Windows
from longtape.models.baselines import BASELINES, log_har
from longtape.models.config import ModelConfig
from longtape.models.forecaster import Forecaster, ModelInputs
from longtape.training.loop import batches, in_order
from tests.candles import candles

NO_MARKS = torch.empty(1, 0, dtype=torch.int64)
FEATURES = ["log_return", "volatility(20)", "hour"]


@pytest.fixture(scope="module")
def panel():
    return build([candles(1500)], FeaturesConfig(features=FEATURES, targets=["return(6)", "volatility(6)"]))


def make(panel, **options):
    torch.manual_seed(0)
    config = ModelConfig(**{"lookback": 64, "attention": "flash", "d_model": 16, "n_heads": 2, **options})
    rows = np.arange(100, min(900, len(panel)))
    scaler = Standardizer.fit(panel.values, rows)
    deviation = panel.targets[rows].std(axis=0)
    inputs = ModelInputs(
        panel.columns, panel.target_columns, panel.interval, scaler.mean, scaler.std, deviation
    )
    return Forecaster(config, inputs).eval()


def windows(panel, rows, lookback=64):
    return Windows(panel, lookback, rows)


def fitted(panel, **options):
    model = make(panel, **options)
    train, valid = (
        windows(panel, np.arange(a, b), model.config.lookback) for a, b in ((200, 900), (910, 1100))
    )
    model.fit_skips(batches(train, in_order(len(train), 128)), batches(valid, in_order(len(valid), 128)))
    return model


@pytest.mark.parametrize("pooling", ["last", "mean", "class", "attention"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
@pytest.mark.parametrize("patch", [1, 7])
def test_every_shape_of_model_gives_one_prediction_per_target(panel, pooling, positions, patch):
    model = make(
        panel, pooling=pooling, positions=positions, patch=patch, norm="post" if patch == 7 else "pre"
    )
    x, _ = windows(panel, np.arange(300, 305)).batch(np.arange(5))
    with torch.no_grad():
        out = model.predict(
            torch.from_numpy(x), torch.from_numpy(panel.known_at[300:305]), NO_MARKS.expand(5, 0)
        )
    assert out.shape == (5, 2)
    assert torch.isfinite(out).all()
    assert (out[:, 1] > 0).all()


def test_an_untrained_model_is_the_closed_form_baseline(panel):
    model = fitted(panel)
    rows = np.arange(1150, 1200)
    x, y = windows(panel, rows).batch(np.arange(50))
    with torch.no_grad():
        out = (
            model.predict(torch.from_numpy(x), torch.from_numpy(panel.known_at[rows]), NO_MARKS.expand(50, 0))
            .double()
            .numpy()
        )
    scaled = np.clip(model.scaling(torch.from_numpy(x)).numpy(), -8, 8)
    means = np.concatenate([scaled[:, -span:].mean(axis=1) for span in (1, 4, 16, 64)], axis=1)
    skip = model.groups[0].skip
    assert np.allclose(out[:, 0], means @ skip.weights.numpy()[:, 0] + float(skip.bias), atol=1e-6)
    qlike = ((y[:, 1] / out[:, 1]) ** 2 - 2 * np.log(y[:, 1] / out[:, 1]) - 1).mean()
    flat = ((y[:, 1] / 0.02) ** 2 - 2 * np.log(y[:, 1] / 0.02) - 1).mean()
    assert qlike < flat


def test_the_skip_of_volatility_is_log_har(panel):
    """One fit on the same rows gives the baseline's regression; they differ only in the lags that fit the window."""
    model = fitted(panel, lookback=170)
    skip = model.groups[1].skip
    assert skip.lags == (3, 6, 12, 24, 72, 168)
    rows = np.arange(1150, 1200)
    x, _ = windows(panel, rows, 170).batch(np.arange(50))
    features = skip.features(torch.from_numpy(x), torch.from_numpy(x), torch.from_numpy(panel.known_at[rows]))
    closes = panel.closes[:, 0]
    squares = np.diff(np.log(closes)) ** 2
    for row, origin in zip(features.numpy(), rows, strict=True):
        by_hand = [np.log(squares[origin - lag : origin].mean()) for lag in skip.lags]
        assert np.allclose(row[: len(skip.lags)], by_hand, atol=1e-4)
        hour = (panel.known_at[origin] // 3_600_000) % 168
        assert row[len(skip.lags) :].sum() == 1
        assert row[len(skip.lags) + hour] == 1


def test_without_skip_the_base_is_the_training_mean(panel):
    model = fitted(panel, skip=False)
    assert float(model.groups[0].skip.bias) == pytest.approx(panel.targets[200:900, 0].mean(), rel=1e-5)
    variance = (panel.targets[200:900, 1] ** 2).mean()
    assert float(model.groups[1].skip.bias) == pytest.approx(np.log(variance), rel=1e-5)


def test_volatility_without_log_return_says_what_to_add():
    bare = build([candles(300)], FeaturesConfig(features=["volatility(20)"], targets=["volatility(6)"]))
    with pytest.raises(UserError, match="log_return"):
        make(bare)


def test_a_head_that_does_not_fit_the_target_is_refused(panel):
    with pytest.raises(UserError, match="does not go with"):
        make(panel, heads={"return": "volatility"})


@pytest.mark.parametrize("kind", sorted(BASELINES))
def test_baselines_see_nothing_after_the_origin(panel, kind):
    """Change every close after a row: what baselines forecast up to it keeps its bits."""
    cut = 1200
    target = [t.kind for t in panel.target_columns].index(kind)
    train, origins = np.arange(200, 900), np.arange(1100, cut + 1)
    changed_closes = panel.closes.copy()
    changed_closes[cut + 1 :] *= 3
    targets = panel.targets.copy()
    targets[panel.target_ends > panel.known_at[cut]] = 7.0
    changed = type(panel)(**{**vars(panel), "closes": changed_closes, "targets": targets})
    for baseline in BASELINES[kind].values():
        assert np.array_equal(
            baseline(panel, target, train, origins), baseline(changed, target, train, origins)
        )


def test_log_har_refits_with_labels_known_by_then(panel):
    """In a market whose volatility doubles for good, the monthly refit follows."""
    rows = np.arange(1000, 1400)
    forecast = log_har(panel, 1, np.arange(200, 900), rows)
    assert np.corrcoef(forecast, panel.targets[rows, 1])[0, 1] > 0.3


@pytest.mark.parametrize("patch", [1, 6])
def test_a_marked_bar_is_seen_from_everywhere(panel, patch):
    """With one narrow layer, a change of a distant bar reaches the last token only where that bar is marked."""
    options = {"attention": "bigbird", "patch": patch, "n_layers": 1, "skip": False}
    options["attention_options"] = {"block_size": 1, "window_size": 3, "n_random": 0, "n_global": 0}
    model = make(panel, **options)
    torch.nn.init.normal_(model.groups[0].head.linear.weight)
    x = torch.from_numpy(windows(panel, np.arange(300, 301)).batch([0])[0])
    changed = x.clone()
    changed[:, 20] += 0.01
    when = torch.from_numpy(panel.known_at[300:301])
    with torch.no_grad():
        for marks, reaches in (([[20, -1]], True), ([[-1, -1]], False), ([[40, -1]], False)):
            before, after = (model.predict(v, when, torch.tensor(marks)) for v in (x, changed))
            assert (not torch.equal(before, after)) == reaches
