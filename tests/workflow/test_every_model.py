"""Every model of the registry, trained small: its graph, and what can be seen of it, or one line that says why not."""

import json

import numpy as np
import pytest

from longtape.cli.main import execute
from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.experiment import parse_experiment
from longtape.forecasting.export import FORMATS
from longtape.models.registry import MODELS
from longtape.workflow import load_run, train
from tests.books import book_frame
from tests.candles import candle_frame
from tests.workflow.test_tape import trade_frame

BOOKS, TRADES = ("order_book", "imbalance_sign", "book_logit"), ("tape_logit",)
VOLATILITY = ("log_har", "log_har_mean", "ewma", "garch")
SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 1, "dropout": 0.0}
NETWORKS = {
    "encoder": {
        "lookback": 24,
        "attention": "bigbird",
        "attention_options": {"block_size": 4},
        "calendar": True,
    },
    "channels": {"lookback": 24, "attention": "performer"},
    "portfolio": {"lookback": 12, "attention": "local", "attention_options": {"window_size": 3}},
    "informer": {"lookback": 24, "n_layers": 2, "label_len": 8},
    "order_book": {"lookback": 8, "levels": 3, "attention": "reformer"},
}
READ_NOTHING = ("zero", "mean", "equal_weight")


def described(folder, kind):
    """An experiment of one kind of model that fits the kind."""
    symbols = ["AAA", "BBB"] if kind in ("portfolio", "channels") else ["AAA"]
    data = {"source": "file", "path": str(folder / "{symbol}.parquet"), "symbols": symbols, "interval": "1h"}
    features, targets = ["log_return", "range"], ["return(2)"]
    if kind in VOLATILITY:
        targets = ["volatility(4)"]
    if kind in ("encoder", "informer"):
        targets = ["return(2)", "volatility(4)"]
    if kind in BOOKS:
        data = {"source": "file", "kind": "books", "path": str(folder / "book.parquet"), "symbols": ["X"]}
        features, targets = ["book(3, 0.01, 0.1)"], ["smoothed_direction(5)"]
    if kind in TRADES:
        data = {"source": "file", "kind": "trades", "path": str(folder / "trades.parquet"), "symbols": ["X"]}
        features, targets = ["tape(0.1, 0.5)"], ["smoothed_direction(5)"]
    model = {"kind": kind} | (NETWORKS[kind] | SMALL if kind in NETWORKS else {})
    signal = {"backtest": {"signal": {"name": "allocation"}}} if kind == "equal_weight" else {}
    return {"data": data, "features": features, "targets": targets, "model": model, "audit": False,
            "training": {"epochs": 1, "stride": 8}} | signal  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every")
    for seed, symbol in enumerate(("AAA", "BBB")):
        candle_frame(1_200, seed).write_parquet(folder / f"{symbol}.parquet")
    book_frame(900).write_parquet(folder / "book.parquet")
    trade_frame(900).write_parquet(folder / "trades.parquet")
    return folder


@pytest.fixture(scope="module", params=[kind for kind in MODELS if kind != "tokens"])
def made(request, folder, tmp_path_factory):
    experiment = parse_experiment(described(folder, request.param), "every.yaml")
    return train(experiment, tmp_path_factory.mktemp(request.param) / "run")


@pytest.mark.parametrize("to", FORMATS)
def test_its_graph_gives_the_forecast_of_the_run_or_is_refused_in_one_line(made, to, tmp_path):
    kind, out = made.experiment.model.kind, tmp_path / f"model{FORMATS[to].ending}"
    if kind in READ_NOTHING or (kind == "order_book" and to == "onnx"):
        with pytest.raises(
            UserError, match="forecasts the same" if kind in READ_NOTHING else "reformer has no form"
        ):
            made.export(to, out)
        assert not list(tmp_path.iterdir())
        return
    made.export(to, out)
    described = read_json(out.with_suffix(".json"))
    given = made.export_inputs()
    wanted = {one["name"]: given[one["name"]] for one in described["inputs"]}
    assert {one["name"]: one["shape"] for one in described["inputs"]} == {
        n: list(v.shape) for n, v in wanted.items()
    }
    forecast = FORMATS[to].run(out, [wanted])[0][0]
    frame = load_run(made.root).forecast()
    own = [
        frame.filter(symbol=t["symbol"], target=t["target"], horizon=t["horizon"])["mean"]
        for t in described["targets"]
    ]
    assert np.allclose(forecast, np.concatenate(own), rtol=1e-4, atol=1e-7)


def test_it_sees_nothing_that_comes_after(made):
    found = made.audit(n_cuts=1, n_feature_cuts=1, n_origins=4)
    assert found.passed, found


def test_the_command_writes_both_files_and_names_mistakes_in_one_line(folder, tmp_path, capsys):
    made = train(parse_experiment(described(folder, "ar1"), "ar1.yaml"), tmp_path / "run")
    out = tmp_path / "model.onnx"
    assert execute(["export", str(made.root), "--to", "onnx", "--out", str(out)]) == 0
    assert "rows [1, 1] → forecast [1, 1]" in capsys.readouterr().out
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["targets"][0] == {
        "symbol": "AAA", "target": "return(2)", "kind": "return", "horizon": 2, "unit": "log return",
        "auxiliary": False,
    }  # fmt: skip
    assert found["fingerprints"] == made.folder.fingerprints
    assert execute(["export", str(made.root), "--to", "torch", "--out", str(out)]) == 2
    assert "ends in .pt2" in capsys.readouterr().err
    assert execute(["export", str(made.root), "--to", "onx", "--out", str(out)]) == 2
    assert "did you mean 'onnx'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"marks": {"kinds": ["day"]}}, "marks make other tokens global"),
        (
            {"missing": "mask", "model": {"kind": "portfolio", **NETWORKS["portfolio"], **SMALL}},
            "under missing: mask",
        ),
    ],
)
def test_what_differs_from_window_to_window_is_refused(folder, tmp_path, changes, why):
    given = described(folder, "encoder") | changes
    made = train(parse_experiment(given, "changed.yaml"), tmp_path / "run")
    with pytest.raises(UserError, match=why):
        made.export("torch", tmp_path / "model.pt2")


def test_what_can_be_seen_of_it_is_shown_and_the_rest_has_its_reason(made, tmp_path):
    from longtape.workflow.explain import PARTS

    found = made.explain(tmp_path, windows=8)
    assert set(found.parts) | set(found.missing) == set(PARTS)
    assert not set(found.parts) & set(found.missing)
    assert {"Occlusion by distance", "Features"} <= set(found.parts)
    assert all(len(reason) > 10 and "\n" not in reason for reason in found.missing.values())
    assert ("Levels that matter" in found.parts) == (made.experiment.model.kind in BOOKS)
    if made.experiment.model.kind in NETWORKS:
        assert {"Pattern", "Effective rank"} <= set(found.parts)
