"""Models that an experiment names to stand beside its result: where they apply, fitted under the same protocol."""

import numpy as np
import pytest
import yaml

from longtape.cli.main import execute
from longtape.core.clock import iso
from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.evaluation.walk_forward import WalkForwardConfig
from longtape.experiment import load_experiment, parse_experiment
from longtape.forecasting.baselines import Training, baseline_forecast
from longtape.models.registry import config_of
from longtape.workflow import load_run, run, train
from longtape.workflow.folds import run_walk_forward
from tests.candles import candle_frame

NAMED = [
    "seasonal_naive",
    {"kind": "ridge", "lookback": 6},
    "ridge",
    "ols",
    {"kind": "dlinear", "kernel": 3},
    {"kind": "lightgbm", "rounds": 10},
    {"kind": "ewma", "decay": 0.9},
    "garch",
    "log_har",  # which stands there anyway
]
OF_MOVES = ["zero", "always long (training mean)", "last value", "AR(1)"]
MORE = [
    "seasonal naive", "ridge on the window (lookback 6)", "ridge on the window", "OLS on the window",
    "DLinear (kernel 3)", "LightGBM (rounds 10)",
]  # fmt: skip


def document(folder, **changes):
    return {
        "data": {"source": "file", "path": f"{folder}/{{symbol}}.parquet", "symbols": ["AAA", "BBB"], "interval": "1h"},
        "features": ["log_return", "range"],
        "targets": ["return(2)", "volatility(4)"],
        "model": {"kind": "encoder", "lookback": 8, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1,
                  "auxiliary": {"volatility(2)": 0.3}},
        "baselines": NAMED,
        "training": {"epochs": 1, "stride": 8},
        "backtest": {"signal": {"target": "return(2)"}},
        "audit": False,
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    for seed, symbol in enumerate(("AAA", "BBB")):
        candle_frame(900, seed).write_parquet(folder / f"{symbol}.parquet")
    return folder


@pytest.fixture(scope="module")
def made(folder):
    return run(parse_experiment(document(folder), "named.yaml"), folder / "run")


def test_each_stands_beside_every_target_that_it_forecasts(made):
    skill = read_json(made.path("metrics.json"))["skill"]
    assert set(skill) == {f"{s} {t}" for s in ("AAA", "BBB") for t in ("return(2)", "volatility(4)")}
    for symbol in ("AAA", "BBB"):
        assert [row["model"] for row in skill[f"{symbol} return(2)"]] == ["longtape", *OF_MOVES, *MORE]
        names = [row["model"] for row in skill[f"{symbol} volatility(4)"]]
        assert names[-len(MORE) - 2 :] == [*MORE, "EWMA (decay 0.9)", "GARCH(1, 1)"]
        assert names.count("log-HAR") == 1
    assert all(np.isfinite(row["MSE"]) for rows in skill.values() for row in rows)
    assert "DLinear (kernel 3)" in made.path("report.html").read_text("utf-8")


def test_its_scores_are_those_of_the_model_by_itself(made, folder, tmp_path):
    """The same rows, scores and forecasts as where `model.kind` names it."""
    model = {"kind": "lightgbm", "rounds": 10, "lookback": 8}
    alone = run(parse_experiment(document(folder, model=model, baselines=[]), "alone.yaml"), tmp_path / "run")
    skills = [read_json(one.path("metrics.json"))["skill"]["AAA return(2)"] for one in (made, alone)]
    beside = next(row for row in skills[0] if row["model"] == "LightGBM (rounds 10)")
    assert beside["RMSE"] == pytest.approx(skills[1][0]["RMSE"], rel=1e-5)


def test_the_run_says_the_same_when_it_is_scored_again(made):
    again = load_run(made.root)
    assert again.experiment.baselines == NAMED
    assert again.score().to_dict()["skill"] == read_json(made.path("metrics.json"))["skill"]


def test_what_trains_is_trained_from_the_seed_of_the_experiment(made):
    """And leaves the random numbers of the run where they were."""
    data = made.data
    inputs, config = made.fitted.model.inputs.only("return"), config_of("dlinear")(lookback=8, kernel=3)
    panel = data.panel
    each = [
        baseline_forecast(config, inputs, panel, data.split, Training(made.experiment.training, seed)).mean
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(each[0], each[1])
    assert not np.array_equal(each[0], each[2])


def test_a_walk_forward_fits_them_in_every_fold(folder, tmp_path):
    described = document(folder, model={"kind": "mean", "lookback": 8}, baselines=["ridge", "garch"])
    walked = run_walk_forward(
        parse_experiment(described, "walk.yaml"), WalkForwardConfig(n_folds=2), tmp_path / "walk"
    )
    assert [row["model"] for row in walked.results.skills["AAA volatility(4)"]][-2:] == [
        "ridge on the window",
        "GARCH(1, 1)",
    ]


def test_beside_a_pooled_model_they_are_each_symbols_own(folder, tmp_path):
    """As it would be alone, which has 59 more windows to learn from. And DLinear is pooled like any network."""
    model = {"kind": "dlinear", "kernel": 3, "lookback": 8, "assets": "pooled", "own_past": 60}
    given = document(folder, model=model, baselines=["ridge", "garch", "lightgbm"])
    made = run(parse_experiment(given, "pooled.yaml"), tmp_path / "run")
    alone = document(folder, model={"kind": "ridge", "lookback": 8}, targets=["volatility(4)"], baselines=[])
    alone["data"] = alone["data"] | {"symbols": ["AAA"]}
    del alone["backtest"]
    split = made.folder.periods
    assert [row["model"] for row in made.results.skills["mean of 2 symbols volatility(4)"]][-3:] == [
        "ridge on the window", "GARCH(1, 1)", "LightGBM",
    ]  # fmt: skip
    dates = {"train_until": iso(split.train_until), "validation_until": iso(split.validation_until)}
    by_itself = run(parse_experiment(alone | {"split": dates}, "alone.yaml"), tmp_path / "alone")
    beside = made.results.skills["AAA volatility(4)"][-3]
    assert beside["QLIKE"] == pytest.approx(
        by_itself.results.skills["AAA volatility(4)"][0]["QLIKE"], rel=0.1
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baselines": ["rigde"]}, "x.yaml: baselines: unknown model 'rigde'; did you mean 'ridge'?"),
        ({"baselines": [{"lookback": 3}]}, "write a name, or {kind: name} with options, not {'lookback': 3}"),
        ({"baselines": [{"kind": "ridge", "penalti": 1}]}, "ridge: unknown key 'penalti'; did you mean 'penalty'?"),
        ({"baselines": [{"kind": "ridge", "penalty": -1}]}, "ridge: penalty: Input should be greater than 0"),
        ({"baselines": [{"kind": "ridge", "lookback": 9}]}, "lookback 9 is longer than that of the model, 8"),
        ({"baselines": ["ridge", {"kind": "ridge"}]}, "baselines: 'ridge' is listed twice"),
        ({"baselines": ["ewma"], "targets": ["return(2)"]}, "'ewma' forecasts targets of kind volatility"),
        ({"baselines": ["tokens"]}, "'tokens' reads token ids and no market"),
        ({"baselines": [{"kind": "dlinear", "auxiliary": {"up(2)": 1}}]}, "auxiliary targets are those of the model"),
        ({"baselines": [{"kind": "dlinear", "assets": "pooled"}]}, "leave assets: pooled to the model"),
        ({"baselines": ["ridge"], "split": {"validation": 0}, "model": {"kind": "mean"}},
         "baselines: of 'ridge' the penalty of the ridge is chosen on validation windows, and there are none"),
        ({"baselines": [], "split": {"validation": 0}, "model": {"kind": "lightgbm"}},
         "split: the number of trees is chosen on validation windows, and there are none; name some (validation)"),
        ({"model": {"kind": "dliner"}}, "x.yaml: model.kind: unknown model 'dliner'; did you mean 'dlinear'?"),
        ({"model": {"kind": "tokens"}}, "x.yaml: model.kind: 'tokens' reads token ids and no market"),
    ],
)  # fmt: skip
def test_what_cannot_stand_there_is_refused_in_one_line(folder, changes, said):
    with pytest.raises(UserError) as refused:
        parse_experiment(document(folder, **changes), "x.yaml")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_beside_weights_no_label_is_forecast(folder):
    signal = {"signal": {"name": "allocation", "target": "return(2)"}}
    model = document(folder)["model"] | {"heads": {"return": "allocation"}, "auxiliary": {}}
    given = document(folder, targets=["return(2)"], model=model, backtest=signal, baselines=["ridge"])
    with pytest.raises(UserError, match="'ridge' says log return, and the model share of the equity"):
        parse_experiment(given, "x.yaml")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            {"kind": "seasonal_naive", "season": 800},
            "baselines: seasonal_naive: season: forecasts read 801 rows back",
        ),
        ({"kind": "seasonal_naive", "season": "year"}, "season"),
    ],
)
def test_what_takes_data_to_tell_is_said_before_anything_is_trained(folder, tmp_path, capsys, name, said):
    given = document(folder, baselines=[name])
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(given))
    assert execute(["run", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_said_before_anything_is_trained(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "arch", None)
    for given in (
        {"baselines": ["garch"]},
        {"model": {"kind": "garch"}, "targets": ["volatility(4)"], "baselines": []},
    ):
        described = document(folder, **given)
        if "targets" in given:
            del described["backtest"]
        with pytest.raises(UserError, match=r"pip install 'longtape\[baselines\]'"):
            train(parse_experiment(described, "x.yaml"), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_the_document_is_written_out_with_them(folder, tmp_path):
    experiment = parse_experiment(document(folder), "x.yaml")
    (tmp_path / "again.yaml").write_text(experiment.to_yaml())
    assert load_experiment(tmp_path / "again.yaml") == experiment
