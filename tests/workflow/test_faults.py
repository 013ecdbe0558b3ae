"""Whole runs that once went wrong without a word: each fault has its test."""

import numpy as np
import polars as pl
import pytest

from longtape.core.clock import HOUR, Interval, iso
from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.core.instrument import Instrument
from longtape.experiment import load_experiment, parse_experiment
from longtape.features.splits import WalkForwardConfig
from longtape.market.bars import Bars
from longtape.workflow import load_run, run, train
from longtape.workflow.folds import run_walk_forward
from tests.candles import START, candle_frame, candles

DOCUMENT = {
    "data": {"source": "file", "symbols": ["TEST"], "interval": "1h"},
    "features": ["log_return", "volatility(20)"],
    "targets": ["return(3)", "volatility(3)"],
    "model": {"lookback": 16, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1},
    "training": {"epochs": 0},
    "audit": False,
}


def experiment(folder, frame=None, **changes):
    """A small experiment on candles of its own; `changes` replace sections, or keys of a section that is a mapping."""
    (candle_frame(900) if frame is None else frame).write_parquet(folder / "candles.parquet")
    document = {**DOCUMENT, "data": {**DOCUMENT["data"], "path": str(folder / "candles.parquet")}}
    for key, value in changes.items():
        document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_experiment(document, "test.yaml")


def refused(word, folder, **changes):
    """The document is refused in one line, before a file is read or a folder made."""
    with pytest.raises(UserError, match=word) as raised:
        experiment(folder, **changes)
    assert "\n" not in str(raised.value)


def metrics(made):
    return read_json(made.path("metrics.json"))


def test_the_end_of_the_test_bounds_account_coverage_and_scores(tmp_path):
    until = iso(START + 800 * HOUR)
    dates = [iso(START + row * HOUR) for row in (500, 650)]
    split = {"train_until": dates[0], "validation_until": dates[1], "test_until": until}
    made = run(experiment(tmp_path, split=split), tmp_path / "out")
    equity = pl.read_parquet(made.path("backtest/equity.parquet"))
    stop = pl.lit(until.removesuffix("Z")).str.to_datetime(time_unit="ms", time_zone="UTC")
    assert equity.filter(pl.col("timestamp") >= stop).height == 0
    assert equity.height == 150
    scored = {row["target"]: row["forecasts"] for row in metrics(made)["coverage"]}
    assert scored == {"return(3)": 147, "volatility(3)": 147}
    frame = made.forecasts
    assert set(frame.filter(pl.col("timestamp") >= stop)["period"]) == {"after the test"}


def test_a_reopened_run_scores_nothing_that_it_was_trained_on(tmp_path):
    described = experiment(tmp_path)
    made = run(described, tmp_path / "out")
    border = made.folder.periods.validation_until
    candle_frame(1400).write_parquet(
        tmp_path / "candles.parquet"
    )  # by fractions, the test would begin elsewhere
    again = load_run(made.root)
    again.backtest()
    frame = again.forecasts.filter(pl.col("period") == "test")
    assert frame["timestamp"].dt.timestamp("ms").min() == border
    assert frame["timestamp"].n_unique() == 1400 - np.searchsorted(candles(1400).timestamps, border)
    assert again.results.required_account.clock[0] == border


def test_data_that_end_before_the_test_period_are_said(tmp_path):
    made = run(experiment(tmp_path), tmp_path / "out")
    candle_frame(400).write_parquet(tmp_path / "candles.parquet")
    with pytest.raises(UserError, match="no window of the test period"):
        load_run(made.root).backtest()


def test_forecasts_of_other_data_are_never_used_again(tmp_path, capsys):
    made = run(experiment(tmp_path), tmp_path / "out")
    kept = pl.read_parquet(made.path("forecast.parquet"))
    candle_frame(900, seed=7).write_parquet(tmp_path / "candles.parquet")
    again = load_run(made.root)
    assert not again.forecasts["mean"].equals(kept["mean"])
    assert "the data have changed" in capsys.readouterr().err
    candle_frame(900).write_parquet(tmp_path / "candles.parquet")
    assert load_run(made.root).forecasts.equals(kept)  # made again from the first data


@pytest.mark.parametrize("method", ["forecast", "backtest"])
def test_other_bars_must_be_of_the_runs_own_kind(tmp_path, method):
    act = getattr(run(experiment(tmp_path), tmp_path / "out"), method)
    five = Bars.checked(
        Instrument("x", "spot", "TEST"), Interval.parse("5m"), candle_frame(900, step=300_000)
    )
    with pytest.raises(UserError, match="bars of 5m"):
        act(five)
    with pytest.raises(UserError, match="OTHER"):
        act(candles(900, symbol="OTHER"))
    with pytest.raises(UserError, match="category 'linear'"):
        act(candles(900, category="linear"))


def test_other_bars_give_their_history_and_say_what_was_trained_on(tmp_path):
    made = run(experiment(tmp_path), tmp_path / "out")
    frame = made.forecast(candles(900, seed=3), history=True)
    assert frame["timestamp"].n_unique() == 900 - made.fitted.reach + 1
    assert made.fitted.reach == 73  # the lags that 580 training rows hold four times over
    assert set(frame["period"]) == {"training", "validation", "calibration", "test"}
    assert made.forecast(candles(900, seed=3))["timestamp"].n_unique() == 1
    assert any("fitted on" in note for note in made.backtest(candles(900, seed=3)).notes)


def test_the_steps_of_a_path_are_kept_apart(tmp_path):
    made = run(
        experiment(tmp_path, targets=["path(4)"], backtest={"signal": {"horizon": 2}}), tmp_path / "out"
    )
    assert sorted(made.forecasts["horizon"].unique()) == [1, 2, 3, 4]
    covered = {row["horizon"]: row["coverage"] for row in metrics(made)["coverage"]}
    assert sorted(covered) == [1, 2, 3, 4]
    rows = metrics(made)["skill"]["TEST path(4)"]
    known = made.forecasts.filter(pl.col("timestamp").is_in(_scored_times(made).to_list()))
    squares = ((known["mean"] - known["actual"]) ** 2).sum() / (known["actual"] ** 2).sum()
    assert rows[0]["R² against zero"] == pytest.approx(1 - squares, rel=1e-5)


def _scored_times(made):
    return pl.Series(made.data.panel.timestamps[made.data.split.test]).cast(pl.Datetime("ms", "UTC"))


def test_a_volatility_alone_is_scored_and_not_traded(tmp_path):
    made = run(experiment(tmp_path, targets=["volatility(3)"]), tmp_path / "out")
    found = metrics(made)
    assert (found["account"], found["metrics"], found["judgement"]) == (None, None, None)
    assert any("nothing is traded" in line for line in found["verdict"])
    assert not made.path("backtest").exists()
    page = made.path("report.html").read_text("utf-8")
    assert "Skill: TEST volatility(3)" in page
    assert "Nothing is traded" in page
    assert ">Equity<" not in page
    with pytest.raises(UserError, match="nothing is traded"):
        made.backtest()


@pytest.mark.parametrize("target", ["direction(2, 0.001)", "up(2)"])
def test_classes_are_forecast_by_their_probabilities(tmp_path, target):
    made = run(experiment(tmp_path, targets=[target], training={"epochs": 1}), tmp_path / "out")
    names = ["p0", "p1", "p2"][: 3 if "direction" in target else 2]
    assert np.allclose(made.forecasts.select(pl.sum_horizontal(names)).to_series(), 1.0, atol=1e-6)
    assert made.forecasts["lower"].null_count() == made.forecasts.height
    rows = metrics(made)["skill"][f"TEST {target}"]
    assert [row["model"] for row in rows] == ["longtape", "training mean"]
    assert {"log loss", "Brier", "accuracy"} <= set(rows[0])


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("inverse", {"data": {"category": "inverse"}, "backtest": {"costs": {"funding": "excluded"}}}),
        ("did you mean 'linear'", {"data": {"category": "perp"}}),
        ("unknown category", {"data": {"category": "nonsense"}}),
        ("funding must be named", {"data": {"category": "linear"}}),
        ("'gain'", {"backtest": {"signal": {"name": "tanh"}}}),
        ("name one of return", {"targets": ["return(1)", "return(5)"]}),
        ("unknown target", {"backtest": {"signal": {"target": "return(9)"}}}),
        ("compares symbols", {"backtest": {"signal": {"name": "rank"}}}),
        ("there are none; name some", {"split": {"validation": 0}}),
        ("did you mean 'regression'", {"model": {"heads": {"return": "regresion"}}}),
        ("does not go with", {"model": {"heads": {"volatility": "huber"}}}),
        ("needs the head 'quantile'", {"forecast": {"intervals": "quantile"}}),
        ("did you mean 'return'", {"targets": ["retrun(1)"]}),
        ("at least 1", {"features": ["volatility(0)"]}),
        ("listed twice", {"features": ["close", "close"]}),
        ("funding_path", {"data": {"category": "linear"}, "backtest": {"costs": {"funding": "history"}}}),
        ("unknown model", {"model": {"kind": "informr"}}),
        ("forecasts targets of kind return or path", {"model": {"kind": "zero"}}),
    ],
)
def test_what_the_file_alone_can_tell_is_said_before_anything_is_read(tmp_path, word, changes):
    if changes.get("model", {}).get("kind"):
        document = {**DOCUMENT, "model": changes["model"], "data": {**DOCUMENT["data"], "path": "nowhere"}}
        with pytest.raises(UserError, match=word):
            parse_experiment(document, "test.yaml")
    else:
        refused(word, tmp_path, **changes)


def test_the_spelling_of_a_signals_target_does_not_matter(tmp_path):
    targets = ["return( 1 )", "return(5)"]
    assert experiment(tmp_path, targets=targets, backtest={"signal": {"target": "return(1 )"}})


@pytest.mark.parametrize("missing", ["forward_fill", "mask", "drop"])
def test_bars_missing_in_the_test_period_are_not_traded_on(tmp_path, missing):
    frame = candle_frame(900).filter(~pl.int_range(900).is_in([780, 781, 782, 850]))
    made = run(experiment(tmp_path, frame, missing=missing), tmp_path / "out")
    fills = pl.read_parquet(made.path("backtest/fills.parquet"))
    assert fills.height > 0
    assert fills["timestamp"].is_in(frame["timestamp"].to_list()).all()


def test_costs_left_out_entirely_are_a_tenth_of_a_percent(tmp_path):
    made = run(experiment(tmp_path), tmp_path / "out")
    fills = pl.read_parquet(made.path("backtest/fills.parquet"))
    assert np.allclose(fills["fee"], 0.001 * (fills["units"] * fills["price"]).abs())
    assert any("fee 0.1%" in line and "Paid" in line for line in metrics(made)["verdict"])
    named = experiment(tmp_path, backtest={"costs": {"spread": 0.0002}})
    assert named.backtest.costs.fee == 0.0


def test_every_choice_of_the_account_is_in_the_document(tmp_path):
    choices = {
        "limits": {"stop_loss": 0.01, "max_leverage": 1.0},
        "rebalance": "every_bar",
        "zero_volume": "fill",
        "risk_free_rate": 0.03,
        "close_at_end": True,
        "lot_size": 0.5,
    }
    made = run(experiment(tmp_path, backtest=choices), tmp_path / "out")
    fills = pl.read_parquet(made.path("backtest/fills.parquet"))
    assert "stop_loss" in set(fills["reason"])
    assert np.allclose(fills["units"] / 0.5, (fills["units"] / 0.5).round())
    assert metrics(made)["metrics"]["risk_free_rate"] == 0.03


def test_recorded_funding_reaches_the_account_and_a_hole_is_said_before_training(tmp_path):
    times = START + 8 * HOUR * np.arange(120)
    funding = pl.DataFrame({"timestamp": times, "symbol": "TEST", "rate": 0.001})
    funding = funding.with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC")))
    funding.write_parquet(tmp_path / "funding.parquet")
    data = {"category": "linear", "funding_path": str(tmp_path / "funding.parquet")}
    described = experiment(tmp_path, data=data, backtest={"costs": {"funding": "history"}})
    made = run(described, tmp_path / "out")
    assert metrics(made)["account"]["funding"] != 0
    funding.filter(pl.int_range(120) != 105).write_parquet(tmp_path / "funding.parquet")
    with pytest.raises(UserError, match=iso(int(times[105]))[:10]):
        train(described, tmp_path / "holed")
    assert not (tmp_path / "holed").exists()


def test_a_walk_forward_keeps_to_the_split_and_fits_its_baselines_in_every_fold(tmp_path, monkeypatch):
    import longtape.evaluation.skill as skill

    seen = []
    forecast = skill.baseline_forecast
    monkeypatch.setattr(
        skill,
        "baseline_forecast",
        lambda config, inputs, panel, split, training: (
            seen.append((config.kind, len(split.train))) or forecast(config, inputs, panel, split, training)
        ),
    )
    dates = [iso(START + row * HOUR) for row in (500, 650, 800)]
    names = ("train_until", "validation_until", "test_until")
    described = experiment(tmp_path, split=dict(zip(names, dates, strict=True)))
    walked = run_walk_forward(described, WalkForwardConfig(n_folds=3), tmp_path / "folds")
    tested = walked.walked.forecasts["timestamp"].dt.timestamp("ms")
    assert tested.min() == START + 650 * HOUR
    assert tested.max() == START + (800 - 4) * HOUR
    zero = sorted({size for name, size in seen if name == "zero"})
    assert len(zero) == 3
    assert read_json(tmp_path / "folds" / "metrics.json")["folds"][2]["fold"] == 3


def test_infinite_intervals_are_said(tmp_path):
    split = {"train": 0.8, "validation": 0.02}
    made = run(experiment(tmp_path, split=split), tmp_path / "out")
    assert any("infinite" in line and "too few" in line for line in metrics(made)["verdict"])
    assert made.forecasts.filter(pl.col("target") == "return(3)")["upper"].is_infinite().all()
    assert all(row["mean width"] is None for row in metrics(made)["coverage"])


def test_seeds_that_are_averaged_give_the_mean_of_their_variances(tmp_path):
    several = train(experiment(tmp_path, training={"epochs": 1, "seeds": 2}), tmp_path / "two")
    single = [
        train(experiment(tmp_path, training={"epochs": 1}, seed=s), tmp_path / f"one{s}") for s in (0, 1)
    ]
    mean, parts = several.forecast()["mean"], [one.forecast()["mean"] for one in single]
    assert mean[0] == pytest.approx((parts[0][0] + parts[1][0]) / 2, rel=1e-5)
    assert mean[1] == pytest.approx(np.sqrt((parts[0][1] ** 2 + parts[1][1] ** 2) / 2), rel=1e-5)
    assert len(several.folder.histories) == 2
    assert load_run(several.root).forecast().equals(several.forecast())


def test_a_run_of_an_older_version_is_refused(tmp_path):
    made = train(experiment(tmp_path), tmp_path / "out")
    path = made.path("run.json")
    path.write_text(path.read_text().replace('"version": 3', '"version": 1'))
    with pytest.raises(UserError, match="version 1"):
        load_run(made.root)


def test_books_are_forecast_and_not_traded(tmp_path):
    """Snapshots of a made-up book, through an experiment file: panel, training, scores, audit, report."""
    draw = np.random.default_rng(0)
    mid = 100 + np.cumsum(draw.normal(0, 0.02, 700))
    frame = pl.DataFrame(
        {"timestamp": START + np.cumsum(draw.integers(0, 300, 700)), "update_id": np.arange(700) * 7}
    )
    levels = {
        f"{side}_price_{i}": mid + sign * (0.01 + 0.02 * i)
        for side, sign in (("bid", -1), ("ask", 1))
        for i in (1, 2)
    }
    sizes = {name.replace("price", "size"): draw.lognormal(0, 1, 700) for name in levels}
    frame = frame.with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC")), **levels, **sizes)
    frame.write_parquet(tmp_path / "book.parquet")
    document = {
        "data": {"source": "file", "kind": "books", "path": str(tmp_path / "book.parquet"), "symbols": ["X"]},
        "features": ["book_imbalance(2)", "micro_price_distance", "log_return"],
        "targets": ["mid_direction(10, 0.0001)", "return(10)"],
        "model": DOCUMENT["model"],
        "training": {"epochs": 1},
    }
    made = run(parse_experiment(document, "books.yaml"), tmp_path / "out")
    assert metrics(made)["account"] is None
    assert set(metrics(made)["skill"]) == {"X mid_direction(10, 0.0001)", "X return(10)"}
    assert read_json(made.path("audit.json"))["passed"], made.path("audit.json").read_text()


def test_an_experiment_reads_back_what_it_writes(tmp_path):
    for changes in ({}, {"targets": ["volatility(3)"]}, {"model": {"kind": "log_har", "lookback": 1}}):
        if "model" in changes:
            document = {**DOCUMENT, "targets": ["volatility(3)"], "model": changes["model"]}
            document["data"] = {**DOCUMENT["data"], "path": str(tmp_path / "candles.parquet")}
            described = parse_experiment(document, "test.yaml")
        else:
            described = experiment(tmp_path, **changes)
        (tmp_path / "again.yaml").write_text(described.to_yaml())
        assert load_experiment(tmp_path / "again.yaml") == described


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"signal": {}}, "test.yaml: unknown key 'signal'; did you mean 'backtest.signal'?"),
        ({"featurs": []}, "test.yaml: unknown key 'featurs'; did you mean 'features'?"),
        ({"model": {"epochs": 1}}, "test.yaml: model: unknown key 'epochs'; did you mean 'training.epochs'?"),
    ],
)
def test_an_unknown_key_names_the_place_where_it_stands(changes, said, tmp_path):
    with pytest.raises(UserError) as raised:
        experiment(tmp_path, **changes)
    assert str(raised.value) == said
