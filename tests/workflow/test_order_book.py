"""An order book from an experiment file to the report: classes, baselines, intervals of scores, the account, resume."""

import numpy as np
import polars as pl
import pytest

from longtape.cli.main import execute
from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.experiment import parse_experiment
from longtape.training import loop
from longtape.workflow import load_run, run, train
from tests.books import book_frame
from tests.shared_data import shared

TARGETS = ["smoothed_direction(5)", "smoothed_direction(20)"]
MODEL = {"kind": "order_book", "lookback": 8, "levels": 3, "attention": "flash"}
SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 1}


def document(folder, **changes):
    return {
        "data": {"source": "file", "kind": "books", "path": str(folder / "book.parquet"), "symbols": ["X"]},
        "features": ["book(3, 0.01, 0.1)", "book_imbalance(2)"],
        "targets": TARGETS,
        "split": {"train": 0.6, "validation": 0.2},
        "model": {**MODEL, **SMALL},
        "training": {"epochs": 1, "stride": 4},
        "backtest": {
            "mid_bars": "1s",
            "signal": {"target": TARGETS[1], "holding": "newest", "options": {"threshold": 0.1}},
            "costs": {"spread": 0.0001},
        },
        **changes,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("books")
    book_frame(1_200).write_parquet(made / "book.parquet")
    return made


@pytest.fixture(scope="module")
def made(folder):
    return run(parse_experiment(document(folder), "books.yaml"), folder / "run")


def test_classes_are_judged_beside_what_anyone_could_say(made):
    found = read_json(made.path("metrics.json"))
    for target in TARGETS:
        rows = found["skill"][f"X {target}"]
        assert [row["model"] for row in rows] == [
            "longtape",
            "training mean",
            "sign of the imbalance",
            "logit of imbalance and micro-price",
        ]
        for row in rows:
            for name in ("macro F1", "weighted F1", "MCC"):
                assert row[f"{name} 2.5 %"] <= row[name] + 0.1
                assert row[name] - 0.1 <= row[f"{name} 97.5 %"]
        constant, _, logit = rows[1:]
        assert constant["MCC"] == 0.0
        assert logit["macro F1"] > constant["macro F1"], "the made-up market follows its imbalance"
    assert read_json(made.path("audit.json"))["passed"]
    assert made.path("report.html").stat().st_size > 100_000


def test_labels_are_classes_by_the_borders_of_the_training_rows(made):
    [own, _] = made.fitted.model.inputs.targets
    train, panel = made.data.split.train, made.data.panel
    assert tuple(dict(own.options).values()) == tuple(np.quantile(panel.targets[train, 0], [1 / 3, 2 / 3]))
    assert set(made.forecasts["actual"].drop_nulls()) <= {0.0, 1.0, 2.0}
    assert (panel.target_ends[train].max() <= panel.timestamps[made.data.split.validation].min()).all()
    assert load_run(made.root).forecast().equals(made.forecast())


def test_the_account_fills_at_the_mid_after_the_decision_with_half_the_spread(made):
    fills = pl.read_parquet(made.path("backtest/fills.parquet"))
    assert fills.height > 0
    books = made.data.bars[0]
    mid = (books.column("bid_price_1") + books.column("ask_price_1")) / 2
    for fill in fills.iter_rows(named=True):
        time = int(fill["timestamp"].timestamp() * 1_000)
        in_force = mid[np.searchsorted(books.known_at, time) - 1]
        assert fill["price"] == pytest.approx(in_force, rel=1e-12)
    assert read_json(made.path("metrics.json"))["account"]["spread"] > 0


def test_an_interrupted_run_goes_on_to_the_same_numbers(folder, tmp_path, monkeypatch):
    experiment = parse_experiment(
        document(folder, training={"epochs": 2, "stride": 4, "patience": 9}), "e.yaml"
    )
    whole = train(experiment, tmp_path / "whole")
    judge = loop.Trainer._judge

    def stop(self, at):
        if at.epoch == 1:
            raise KeyboardInterrupt
        return judge(self, at)

    monkeypatch.setattr(loop.Trainer, "_judge", stop)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "stopped")
    monkeypatch.undo()
    resumed = train(experiment, tmp_path / "stopped", resume=True)
    assert resumed.path("model.safetensors").read_bytes() == whole.path("model.safetensors").read_bytes()


def test_folds_share_the_borders_of_the_first(folder, tmp_path):
    """A model that stands beside itself as a baseline, fold by fold, from the command line."""
    given = document(folder, model={"kind": "book_logit", "lookback": 1})
    (tmp_path / "e.yaml").write_text(parse_experiment(given, "e.yaml").to_yaml())
    words = [
        "walk-forward",
        str(tmp_path / "e.yaml"),
        "--folds",
        "3",
        "--out",
        str(tmp_path / "walk"),
        "--quiet",
    ]
    assert execute(words) == 0
    for rows in read_json(tmp_path / "walk" / "metrics.json")["skill"].values():
        own, logit = rows[0], rows[3]
        assert all(
            own[name] == pytest.approx(logit[name], rel=1e-6)
            for name in own
            if name in logit and name != "model"
        )
    assert set(pl.read_parquet(tmp_path / "walk" / "forecast.parquet")["actual"].drop_nulls()) == {
        0.0,
        1.0,
        2.0,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": ["return(5)"]}, "forecasts classes such as"),
        ({"model": {**MODEL, **SMALL, "levels": 5}}, r"name the feature book\(5"),
        ({"features": ["book(9, 0.01, 0.1)"]}, "3 levels deep"),
        ({"backtest": {"mid_bars": "1s"}}, "signal.holding: newest"),
        ({"backtest": {"mid_bars": "soon"}}, "interval 'soon'"),
        ({"model": {"kind": "book_logit"}, "targets": ["volatility(5)"]}, "not 'volatility'"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as caught:
        train(parse_experiment(document(folder, **changes), "e.yaml"), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_candles_have_no_mid_and_no_imbalance(tmp_path):
    daily = {"data": {"source": "sample"}, "features": ["log_return"], "targets": ["smoothed_direction(5)"]}
    with pytest.raises(UserError, match="only with books"):
        parse_experiment({**daily, "backtest": {"mid_bars": "1s", "signal": {"holding": "newest"}}}, "e.yaml")
    experiment = parse_experiment({**daily, "model": {"kind": "book_logit", "lookback": 1}}, "e.yaml")
    with pytest.raises(UserError, match=r"data\.kind: books"):
        train(experiment, tmp_path / "out")


def test_a_real_book_goes_the_whole_way(tmp_path):
    path = shared("lob/binance_perp_BTCUSDT_2024-08-08_top20.parquet")
    given = document(tmp_path)
    given["data"] |= {
        "path": str(path),
        "symbols": ["BTCUSDT"],
        "category": "linear",
        "until": "2024-08-08T23:55:30",
    }
    given["features"] = ["book(5, 0.1, 0.001)"]
    given["model"] |= {
        "levels": 5,
        "tokens": "level",
        "attention": "local",
        "attention_options": {"window_size": 11},
    }
    given["backtest"]["costs"] = {"fee": 0.0002, "spread": 0.0000008, "funding": "excluded"}
    made = run(parse_experiment(given, "real.yaml"), tmp_path / "run")
    rows = read_json(made.path("metrics.json"))["skill"][f"BTCUSDT {TARGETS[0]}"]
    assert len(rows) == 4
    assert 0 < rows[0]["macro F1"] < 1
    assert read_json(made.path("audit.json"))["passed"]
