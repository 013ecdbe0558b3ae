"""Raw trades as tokens, many at the same moment, from an experiment file to the scores."""

import numpy as np
import polars as pl
import pytest

from longtape.core.files import read_json
from longtape.core.instrument import Instrument
from longtape.experiment import parse_experiment
from longtape.features.build import FeaturesConfig, build
from longtape.market.trades import Trades
from longtape.workflow import run
from tests.shared_data import shared

CONFIG = FeaturesConfig(features=["tape(0.1, 0.5)"], targets=["smoothed_direction(5)"])


def trade_frame(rows: int = 900, seed: int = 0) -> pl.DataFrame:
    """Takers come in runs and push the price; two thirds of the trades share their moment with the one before."""
    draw = np.random.default_rng(seed)
    side = np.where(np.cumsum(draw.random(rows) < 0.05) % 2 == 0, 1, -1)
    price = np.round(100 + 0.1 * np.cumsum(side * (draw.random(rows) < 0.3)), 1)
    times = 1_723_161_600_000 + np.cumsum((draw.random(rows) < 1 / 3) * draw.integers(1, 200, rows))
    stamps = pl.Series("timestamp", times).cast(pl.Datetime("ms", "UTC"))
    named = np.where(side > 0, "buy", "sell")
    return pl.DataFrame(
        {
            "timestamp": stamps,
            "price": price,
            "size": draw.lognormal(0, 1, rows),
            "side": named,
            "id": np.arange(rows),
        }
    )


def panel_of(frame: pl.DataFrame):
    return build([Trades.checked(Instrument("file", "spot", "X"), frame)], CONFIG)


def test_a_trade_is_a_token_of_four_numbers():
    frame = trade_frame(300)
    panel = panel_of(frame)
    assert [c.name for c in panel.columns] == [
        f"tape(0.1, 0.5).{name}" for name in ("ticks", "log_size", "side", "log_wait")
    ]
    rows = np.arange(panel.warm_up, 300)
    price, ms = frame["price"].to_numpy(), frame["timestamp"].dt.timestamp("ms").to_numpy()
    assert np.allclose(panel.values[rows, 0], (price[rows] - price[rows - 1]) / 0.1, atol=1e-4)
    assert np.allclose(panel.values[rows, 1], np.log1p(frame["size"].to_numpy()[rows] / 0.5))
    assert (panel.values[rows, 2] == np.where(frame["side"].to_numpy()[rows] == "buy", 1, -1)).all()
    assert np.allclose(panel.values[rows, 3], np.log1p(ms[rows] - ms[rows - 1]))
    assert (panel.values[rows, 3] == 0).mean() > 0.5


def test_where_nobody_recorded_who_took_the_tick_rule_says_it():
    frame = trade_frame(300)
    unknown = np.arange(300) % 2 == 0
    some = frame.with_columns(pl.when(~pl.Series(unknown)).then("side").alias("side"))
    panels = [panel_of(one) for one in (frame, some, frame.drop("side"))]
    whole, mixed, guessed = (panel.values[panel.warm_up :, 2] for panel in panels)
    gone = unknown[panels[0].warm_up :]
    assert (mixed[~gone] == whole[~gone]).all()
    assert (mixed[gone] == guessed[gone]).all()


def test_takers_are_counted_over_the_last_hundred_trades():
    frame = trade_frame(300)
    signed = np.where(frame["side"].to_numpy() == "buy", 1.0, -1.0) * frame["size"].to_numpy()
    tape = panel_of(frame).tape
    for row in (150, 299):
        expected = signed[row - 99 : row + 1].sum() / frame["size"].to_numpy()[row - 99 : row + 1].sum()
        assert tape[row].tolist() == pytest.approx([np.sign(signed[row]), expected])


def document(path, symbol, **model):
    return {
        "data": {"source": "file", "kind": "trades", "path": str(path), "symbols": [symbol]},
        "features": ["tape(0.1, 0.01)"],
        "targets": ["smoothed_direction(20)"],
        "model": {"lookback": 32, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1} | model,
        "training": {"epochs": 1, "stride": 8},
    }


@pytest.mark.parametrize("model", [{}, {"kind": "tape_logit", "lookback": 1}])
def test_trades_are_forecast_scored_and_audited(tmp_path, model):
    trade_frame(1_500).write_parquet(tmp_path / "tape.parquet")
    given = document(tmp_path / "tape.parquet", "X")
    given["model"] = model or given["model"]
    made = run(parse_experiment(given, "tape.yaml"), tmp_path / "run")
    rows = read_json(made.path("metrics.json"))["skill"]["X smoothed_direction(20)"]
    assert [row["model"] for row in rows] == ["longtape", "training mean", "logit of takers"]
    assert rows[2]["macro F1"] > rows[1]["macro F1"], "takers come in runs"
    assert read_json(made.path("audit.json"))["passed"], made.path("audit.json").read_text()
    times = made.forecasts["timestamp"]
    assert times.n_unique() < len(times)


def test_real_trades_go_the_whole_way(tmp_path):
    given = document(shared("trades/BTCUSDT_binance_perp_2024-08-08.parquet"), "BTCUSDT")
    given["data"] |= {"category": "linear", "until": "2024-08-08T23:54:45"}
    made = run(parse_experiment(given, "tape.yaml"), tmp_path / "run")
    assert read_json(made.path("audit.json"))["passed"]
    assert made.forecasts["timestamp"].is_duplicated().mean() > 0.5
