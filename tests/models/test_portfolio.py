"""The portfolio model: assets permuted in are permuted out, what is absent is not seen, and all share their weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from longtape.attention import MECHANISMS
from longtape.core.errors import UserError
from longtape.experiment import parse_experiment
from longtape.features.build import FeaturesConfig, build
from longtape.models.portfolio import Portfolio, PortfolioConfig
from longtape.training.batches import BatchSource
from tests.candles import candles
from tests.models.inputs import inputs_of

TRAIN, VALID, ROWS = np.arange(100, 300), np.arange(310, 400), np.array([410, 411, 450])
OPTIONS = {
    "bigbird": {"block_size": 3, "n_random": 1},
    "local": {"window_size": 5},
    "longformer": {"window_size": 5},
    "linformer": {"k": 4},
    "reformer": {"bucket_size": 4},
    "probsparse": {"factor": 1},
}
JOINT = ("full", "flash", "performer", "bigbird", "local")


def panel_of(names, features=("log_return", "volatility(10)", "hour")):
    bars = {name: candles(500, seed, name) for seed, name in enumerate("ABCDE")}
    config = FeaturesConfig(features=list(features), targets=["return(3)", "volatility(3)", "up(2)"])
    return build([bars[name] for name in names], config)


@pytest.fixture(scope="module")
def panel():
    return panel_of("ABCDE")


def make(panel, **options):
    """A fitted model; its network is the same function whatever the assets."""
    torch.manual_seed(0)
    given = {"lookback": 20, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 2, **options}
    model = Portfolio(PortfolioConfig(**given), inputs_of(panel, TRAIN)).eval()
    model.fit(panel, TRAIN, VALID)
    torch.manual_seed(1)
    for head in model.heads.values():
        torch.nn.init.normal_(head.linear.weight)
    return model


def forecasts(model, panel, **changes):
    """Means [B, n] of each asset."""
    batch = replace(BatchSource(model, panel).batch(ROWS), **changes)
    with torch.no_grad():
        mean = model(batch).mean()
    columns = {a: [k for k, t in enumerate(panel.target_columns) if t.asset == a] for a in panel.assets}
    return {asset: mean[:, own] for asset, own in columns.items()}


@pytest.mark.parametrize(
    ("layout", "name"), [*(("joint", name) for name in JOINT), *(("axial", name) for name in MECHANISMS)]
)
@pytest.mark.parametrize("head", ["regression", "allocation"])
def test_permuted_assets_give_permuted_forecasts(panel, layout, name, head):
    options = {"layout": layout, "attention": name, "attention_options": OPTIONS.get(name, {})}
    options |= {"heads": {"return": head}, "calendar": True, "patch": 2, "pooling": "attention"}
    other = panel_of("DAECB")
    first, second = (forecasts(make(one, **options), one) for one in (panel, other))
    for asset in "ABCDE":
        assert (first[asset] - second[asset]).abs().max() <= 1e-6
    assert (first["A"] - first["B"]).abs().max() > 1e-3


@pytest.mark.parametrize("layout", ["joint", "axial"])
def test_an_asset_sees_the_others(panel, layout):
    model = make(panel, layout=layout, skip=False)
    batch = BatchSource(model, panel).batch(ROWS)
    x = batch.x.clone()
    x[:, 5, :2] += 0.05  # asset A, long before
    before, after = forecasts(model, panel), forecasts(model, panel, x=x)
    assert all((before[asset] - after[asset]).abs().max() > 1e-6 for asset in "ABCDE")


@pytest.mark.parametrize("layout", ["joint", "axial"])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("patch", [1, 3])
def test_what_is_absent_is_not_seen(panel, layout, pooling, patch):
    model = make(panel, layout=layout, pooling=pooling, patch=patch, skip=False)
    batch = BatchSource(model, panel).batch(ROWS)
    present = batch.present.clone()
    present[:, 4:11, 1] = False  # asset B is not there for a while
    x = batch.x.clone()
    x[:, 4:11, 2:4] = torch.nan
    wild = batch.x.clone()
    wild[:, 4:11, 2:4] += 3.0
    there = forecasts(model, panel)
    absent, other = (forecasts(model, panel, present=present, x=values) for values in (x, wild))
    for asset in "ABCDE":
        assert torch.equal(absent[asset], other[asset])
        assert torch.isfinite(absent[asset]).all()
        assert (absent[asset] - there[asset]).abs().max() > 1e-6


@pytest.mark.parametrize("layout", ["joint", "axial"])
def test_an_asset_that_is_never_there_might_as_well_not_be_listed(panel, layout):
    few = panel_of("ABDE")
    model, without = (make(one, layout=layout, skip=False) for one in (panel, few))
    present = torch.ones(3, 20, 5, dtype=torch.bool)
    present[:, :, 2] = False
    with_it, alone = forecasts(model, panel, present=present), forecasts(without, few)
    for asset in "ABDE":
        assert torch.allclose(with_it[asset], alone[asset], atol=1e-6)


def test_the_size_of_the_model_does_not_grow_with_the_assets(panel):
    sizes = [sum(p.numel() for p in make(one).parameters()) for one in (panel, panel_of("AB"))]
    assert sizes[0] == sizes[1]


def test_one_ridge_serves_all_assets(panel):
    """Against a direct solution: rows of all assets, each from its own and the shared columns, labels in deviations."""
    model = make(panel)
    ridge = model.baselines["return"]
    scaled = model.scaling(torch.from_numpy(panel.values)).double().numpy()
    own, shared = scaled[:, :10].reshape(-1, 5, 2), scaled[:, 10:]
    columns = model.inputs.kinds["return"][:, 0]

    def rows(origins):
        spans = (1, 4, 16)
        x, y = [], []
        for asset in range(5):
            joined = np.concatenate([own[:, asset], shared], axis=1)
            means = [[joined[t + 1 - s : t + 1].mean(0) for s in spans] for t in origins]
            x.append(np.array(means).reshape(len(origins), -1))
            y.append(panel.targets[origins, columns[asset]] / model.inputs.target_deviation[columns[asset]])
        return np.concatenate(x), np.concatenate(y)

    (x, y), (v, check) = rows(TRAIN), rows(VALID)
    errors = {}
    for penalty in (0.01, 0.1, 1.0, 10.0, 100.0):
        centred = x - x.mean(0)
        gram = centred.T @ centred + penalty * len(x) * np.eye(x.shape[1])
        w = np.linalg.solve(gram, centred.T @ (y - y.mean()))
        errors[float((((v - x.mean(0)) @ w + y.mean() - check) ** 2).mean())] = w
    errors[float(((y.mean() - check) ** 2).mean())] = np.zeros(x.shape[1])
    # Within an asset the intercept is penalised by nobody, so that the centred problem is the same one.
    assert np.allclose(ridge.weights[:, 0].numpy(), errors[min(errors)], atol=1e-5)
    batch = BatchSource(model, panel).batch(ROWS)
    found = ridge(model.scaling(batch.x), batch.rows)[:, :, 0].numpy()
    deviation = model.inputs.target_deviation[columns]
    design = rows(ROWS)[0].reshape(5, 3, -1)
    expected = (design @ ridge.weights[:, 0].numpy() + float(ridge.intercept[0])) * deviation[:, None]
    assert np.allclose(found, expected.T, atol=1e-6)


@pytest.mark.parametrize("layout", ["joint", "axial"])
def test_a_marked_bar_is_seen_from_everywhere(panel, layout):
    options = {"block_size": 1, "window_size": 1, "n_random": 0, "n_global": 0}
    given = {
        "layout": layout,
        "attention": "bigbird",
        "attention_options": options,
        "n_layers": 1,
        "skip": False,
    }
    model = make(panel, **given)
    batch = BatchSource(model, panel).batch(ROWS)
    x = batch.x.clone()
    x[:, 5, :2] += 0.05
    for marks, reached in (([[5, -1]] * 3, True), ([[-1, -1]] * 3, False), ([[9, -1]] * 3, False)):
        before, after = (
            forecasts(model, panel, x=values, marks=torch.tensor(marks)) for values in (batch.x, x)
        )
        assert (not torch.equal(before["A"], after["A"])) == reached
        assert (not torch.equal(before["D"], after["D"])) == reached


DOCUMENT = {
    "data": {"source": "file", "path": "{symbol}.parquet", "symbols": ["X", "Y"], "interval": "1h"},
    "features": ["log_return"],
    "targets": ["return(3)"],
}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        *(
            ({"attention": name}, "the order of assets would matter")
            for name in MECHANISMS
            if name not in JOINT
        ),
        ({"attention": "flash", "attention_options": {"causal": True}}, "assets of a moment in order"),
        ({"attention": "bigbird", "attention_options": {"global_tokens": [0]}}, "single assets'"),
        ({"pooling": "class"}, "pooling"),
        ({"layout": "joined"}, "layout"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(model, said):
    with pytest.raises(UserError) as error:
        parse_experiment(DOCUMENT | {"model": {"kind": "portfolio", **model}}, "x.yaml")
    assert said in str(error.value)
