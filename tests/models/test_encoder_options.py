"""Every option of the encoder: off by default, of effect where named, refused with a reason where it makes no sense."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from longtape.attention import MECHANISMS
from longtape.core.errors import UserError
from longtape.experiment import experiment_type, parse_experiment
from longtape.features.build import FeaturesConfig, build
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from longtape.training.batches import BatchSource
from tests.candles import candles
from tests.models.inputs import inputs_of

CAUSAL = {"attention_options": {"causal": True}}
OPTIONS = {
    "positions": {"positions": "rotary"},
    "calendar": {"calendar": True},
    "window_norm": {"window_norm": True},
    "reversible": {"window_norm": True, "reversible": True},
    "static": {"static": ["volatility(20)", "hour"]},
    "pooling": {"pooling": "class"},
    "clip": {"clip": 0.5},
    "patch": {"patch": 4},
    "norm": {"norm": "post"},
}
TRAIN, VALID = np.arange(200, 500), np.arange(510, 600)
WEIGHTS = {"volatility(6)": 0.5, "up(2)": 0.1}


@pytest.fixture(scope="module")
def panel():
    config = FeaturesConfig(
        features=["log_return", "volatility(20)", "hour"],
        targets=["return(3)", "volatility(3)"],
        auxiliary=list(WEIGHTS),
    )
    return build([candles(700, 1, "AAA"), candles(700, 2, "BBB")], config)


def make(panel, **options):
    """A fitted model, its network away from zero."""
    torch.manual_seed(0)
    given = {"lookback": 32, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1, **options}
    model = EncoderForecaster(EncoderConfig(auxiliary=WEIGHTS, **given), inputs_of(panel, TRAIN)).eval()
    model.fit(panel, TRAIN, VALID)
    torch.manual_seed(1)
    for head in model.heads.values():
        torch.nn.init.normal_(head.linear.weight)
    return model


def batch_of(model, panel, rows=(550, 551, 600), **more):
    return BatchSource(model, panel, **more).batch(np.asarray(rows))


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_an_option_is_off_by_default_and_changes_what_is_forecast(panel, name):
    default = EncoderConfig.model_fields[name].get_default(call_default_factory=True)
    assert OPTIONS[name][name] != default
    others = {key: value for key, value in OPTIONS[name].items() if key != name}
    plain, changed = (make(panel, **given) for given in (others, OPTIONS[name]))
    a, b = (model(batch_of(model, panel)).mean() for model in (plain, changed))
    assert torch.isfinite(b).all()
    assert not torch.allclose(a, b, rtol=1e-4)


@torch.no_grad()
def test_the_calendar_is_that_of_the_windows_own_rows(panel):
    model = make(panel, calendar=True, patch=3)
    batch = batch_of(model, panel)
    assert np.array_equal(batch.calendar[0].numpy(), panel.calendar_values[519:551])
    moved = model(replace(batch, calendar=batch.calendar.flip(1))).mean()
    assert not torch.allclose(moved, model(batch).mean())
    assert batch_of(make(panel), panel).calendar.shape == (3, 32, 0)


@torch.no_grad()
def test_static_inputs_are_read_of_the_newest_row_alone(panel):
    model = make(panel, static=["volatility(20)"], skip=False)
    columns = [i for i, c in enumerate(panel.columns) if c.name == "volatility(20)"]
    assert model.static.tolist() == columns
    batch = batch_of(model, panel)
    before, base = batch.x.clone(), model(batch).mean()
    before[:, :-1, columns] += 1.0
    assert torch.equal(model(replace(batch, x=before)).mean(), base)
    newest = batch.x.clone()
    newest[:, -1, columns] *= 1.5
    assert not torch.equal(model(replace(batch, x=newest)).mean(), base)


@torch.no_grad()
def test_reversible_outputs_scale_with_the_window(panel):
    """Returns three times as large in the same window: the network sees the same, and forecasts three times as much."""
    model = make(panel, window_norm=True, reversible=True, skip=False, clip=100.0)
    start = model.baselines["return"].value.float()
    batch = batch_of(model, panel)
    mean = torch.tensor(model.inputs.mean).float()
    wider = mean + 3 * (batch.x - mean)
    columns = [k for k, t in enumerate(panel.target_columns) if t.kind == "return"]
    narrow, wide = (model(replace(batch, x=x)).mean()[:, columns] - start.flatten() for x in (batch.x, wider))
    assert torch.allclose(wide, 3 * narrow, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in MECHANISMS if name != "linformer"])
@torch.no_grad()
def test_rotary_positions_go_with_every_mechanism_whose_keys_have_a_place(panel, name):
    options = {"bigbird": {"block_size": 4}, "local": {"window_size": 9}, "longformer": {"window_size": 9}}
    model = make(panel, attention=name, attention_options=options.get(name, {}), positions="rotary")
    assert torch.isfinite(model(batch_of(model, panel)).mean()).all()


def test_auxiliary_targets_count_in_training_and_not_where_the_model_is_judged(panel):
    model = make(panel, dropout=0.0)
    auxiliary = torch.tensor([one.auxiliary for one in model.inputs.targets])
    assert auxiliary.sum() == 4
    batch = batch_of(model, panel)
    losses = model(batch).losses(batch.y).detach()
    judged = losses[:, ~auxiliary].mean().item()
    assert model(batch).training_loss(batch).item() == pytest.approx(judged, rel=1e-5)
    weights = torch.tensor([WEIGHTS.get(target.name, 1.0) for target in model.inputs.targets])
    expected = (losses * weights).sum() / (weights.sum() * len(batch))
    assert model.train()(batch).training_loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("patch", [1, 5])
def test_a_dense_loss_is_that_of_every_token_on_the_labels_of_its_own_row(panel, patch):
    model = make(panel, dense=0.5, patch=patch, dropout=0.0, **CAUSAL).train()
    rows = np.array([300, 430])
    batch = batch_of(model, panel, rows, trained=np.arange(290, 425))
    ends = rows[:, None] - patch * np.arange(model.config.n_tokens)[::-1]
    labels = panel.targets[ends]
    labels[(ends < 290) | (ends >= 425)] = np.nan
    assert np.array_equal(batch.y_rows.numpy(), labels.astype(np.float32), equal_nan=True)
    made = model(batch)
    dense = made.dense.losses(torch.nan_to_num(batch.y_rows.flatten(0, 1)))
    weights = model.trained_weights * torch.isfinite(batch.y_rows.flatten(0, 1))
    expected = made.loss(batch.y, batch.y_present) + 0.5 * (dense * weights).sum() / weights.sum()
    assert made.training_loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.eval()(batch).dense is None


def test_a_dense_output_sees_nothing_later(panel):
    model = make(panel, dense=0.5, dropout=0.0, **CAUSAL).train()
    torch.nn.init.normal_(model.dense_heads["return"].linear.weight)
    batch = batch_of(model, panel, [300], trained=TRAIN)
    later = batch.x.clone()
    later[:, 20:] += 0.05
    first, second = (model(replace(batch, x=x)).dense.mean() for x in (batch.x, later))
    assert torch.equal(first[:20], second[:20])
    assert not torch.equal(first[20:], second[20:])


DOCUMENT = {
    "data": {"source": "file", "path": "x.parquet", "symbols": ["X"], "interval": "1h"},
    "features": ["log_return", "hour"],
    "targets": ["return(3)"],
}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"pooling": "class", "attention": "local"}, "does not let it see"),
        ({"pooling": "class", "attention_options": {"n_global": 0}}, "does not let it see"),
        ({"pooling": "class", "attention": "flash", **CAUSAL}, "sees nothing"),
        ({"positions": "rotary", "attention": "linformer"}, "mixtures of positions"),
        ({"attention_options": {"rotary": True}}, "positions: rotary"),
        ({"positions": "rotary", "d_model": 6, "n_heads": 2}, "odd"),
        ({"reversible": True}, "window_norm, which is off"),
        ({"dense": 0.1}, "causal: true"),
        ({"dense": 0.1, "window_norm": True, "attention": "flash", **CAUSAL}, "later bars included"),
        (
            {"dense": 0.1, "attention": "probsparse", "attention_options": {"causal": "masked"}},
            "causal: true",
        ),
        (
            {"dense": 0.1, "attention": "flash", **CAUSAL, "heads": {"return": "allocation"}},
            "at the origin alone",
        ),
        ({"static": ["huor"]}, "did you mean 'hour'"),
        ({"static": ["hour", "log_return"]}, "no feature is left"),
        ({"auxiliary": {"return(3)": 1.0}}, "'return(3)' is listed twice"),
        ({"auxiliary": {"retrun(4)": 1.0}}, "did you mean 'return'"),
        ({"auxiliary": {"return(4)": 0.0}}, "must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(model, said):
    document = DOCUMENT | {"model": model}
    if "heads" in model:
        document["backtest"] = {"signal": {"name": "allocation"}}
    with pytest.raises(UserError) as error:
        parse_experiment(document, "x.yaml")
    assert said in str(error.value)


def test_reversible_needs_a_return_to_undo_and_its_feature():
    model = {"window_norm": True, "reversible": True}
    with pytest.raises(UserError, match="nothing else has a unit"):
        parse_experiment(DOCUMENT | {"targets": ["volatility(3)"], "model": model}, "x.yaml")
    with pytest.raises(UserError, match="name it"):
        parse_experiment(DOCUMENT | {"features": ["hour"], "model": model}, "x.yaml")


def test_events_have_no_calendar():
    data = {"kind": "trades", "source": "file", "path": "x.csv", "symbols": ["X"]}
    document = DOCUMENT | {"data": data, "features": ["log_return"], "model": {"calendar": True}}
    with pytest.raises(UserError, match="no fixed time"):
        parse_experiment(document, "x.yaml")


def test_the_document_says_what_every_option_is_for():
    schema = experiment_type("encoder").model_json_schema()["$defs"]["EncoderConfig"]["properties"]
    for name in ("calendar", "static", "reversible", "dense", "auxiliary", "heads", "window_norm"):
        assert schema[name].get("description"), name
