"""From candles to the report: what a run leaves, that it repeats, and that nothing is left of one that fails."""

import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

import longtape
from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.experiment import load_experiment
from longtape.workflow import load_run, run, train
from tests.candles import candle_frame, candles

EXPERIMENT = """
name: small
seed: 1
data: {{source: file, path: {path}, symbols: [TEST], interval: 1h, category: linear}}
features: [log_return, volatility(20), hour]
targets: [return(6), volatility(6)]
model: {{lookback: 64, attention: bigbird, attention_options: {{block_size: 8}}, d_model: 16, n_heads: 2, n_layers: 1}}
training: {{epochs: {epochs}, batch_size: 32}}
backtest:
  signal: {{target: return(6), options: {{threshold: 0.0}}}}
  costs: {{fee: 0.0005, funding: excluded}}
"""


def write_experiment(folder, frame, epochs=2):
    frame.write_parquet(folder / "candles.parquet")
    (folder / "small.yaml").write_text(EXPERIMENT.format(path="candles.parquet", epochs=epochs))
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run(write_experiment(folder, candle_frame(900)), folder / "out")


def test_a_run_folder_holds_what_it_takes_to_repeat_it(made):
    present = {str(path.relative_to(made.root)) for path in made.root.rglob("*") if path.is_file()}
    kept = {"equity", "positions", "trades", "fills"}
    assert present == {
        "experiment.yaml", "run.json", "model.safetensors", "model.json", "calibration.json", "history.jsonl",
        "forecast.parquet", "metrics.json", "audit.json", "report.html", "report.png",
        "report.svg", *(f"backtest/{name}.parquet" for name in kept),
    }  # fmt: skip
    facts = read_json(made.path("run.json"))
    assert facts["status"] == "finished"
    assert facts["seed"] == 1
    assert facts["fingerprints"] == {"file/linear/TEST": candles_fingerprint(made)}
    assert facts["versions"]["torch"].startswith("2.")


def candles_fingerprint(made):
    return longtape.read_bars(
        made.experiment.data.path, symbol="TEST", interval="1h", category="linear"
    ).fingerprint()


def test_the_same_experiment_gives_the_same_numbers(made, tmp_path):
    again = run(load_experiment(made.path("experiment.yaml")), tmp_path / "again")
    assert again.path("model.safetensors").read_bytes() == made.path("model.safetensors").read_bytes()
    assert again.path("metrics.json").read_bytes() == made.path("metrics.json").read_bytes()
    for name in ("forecast.parquet", "backtest/equity.parquet"):
        assert pl.read_parquet(again.path(name)).equals(pl.read_parquet(made.path(name)))


def test_the_resolved_experiment_is_the_experiment(made):
    assert load_experiment(made.path("experiment.yaml")) == made.experiment


def test_train_validation_and_test_keep_apart(made):
    panel, split = made.data.panel, made.data.split
    assert panel.target_ends[split.train].max() <= panel.known_at[split.validation[0]]
    assert panel.target_ends[split.validation].max() <= panel.known_at[split.calibration[0]]
    assert panel.target_ends[split.calibration].max() <= panel.known_at[split.test[0]]
    rows = split.training_rows(64)
    assert np.allclose(made.fitted.model.scaling.mean.numpy(), panel.values[rows].mean(axis=0), atol=1e-6)


def test_the_newest_forecast_lies_in_the_future(made):
    newest = load_run(made.root).forecast()
    assert newest.height == 2
    assert newest["actual"].null_count() == 2
    assert (newest["end"] > made.data.bars[0].frame["timestamp"].max()).all()
    history = pl.read_parquet(made.path("forecast.parquet"))
    assert newest.equals(history.filter(pl.col("timestamp") == newest["timestamp"][0]))


def test_new_bars_are_forecast_by_a_kept_model(made):
    more = candles(950, symbol="TEST", category="linear")
    frame = load_run(made.root).forecast(more)
    assert frame["timestamp"][0] == more.frame["timestamp"][-1]


def test_other_bars_are_traded_by_a_kept_model(made):
    account = load_run(made.root).backtest(candles(600, seed=9, category="linear"))
    assert account.history.equity.shape == (600 - 20 - 64 + 1,)
    assert account.fills.height > 0


def test_the_account_balances_and_fills_at_the_next_open(made):
    account = made.backtest()
    books = account.account
    spent = sum(books[name] for name in ("fees", "spread", "slippage", "funding", "borrow"))
    assert books["start"] + books["profit"] - spent == pytest.approx(books["end"], rel=1e-9)
    bars = made.data.bars[0].frame
    fills = account.fills.join(bars, on="timestamp")
    assert fills.height > 0
    assert (fills["price"] == fills["open"]).all()
    assert account.fills["timestamp"].min() > made.forecasts["timestamp"].min()
    assert account.periods_per_year == 8760


def test_overlapping_forecasts_never_hold_more_than_the_account(made):
    weights = made.pipeline.weights(made.forecasts)
    assert weights["TEST"].abs().max() <= 1 + 1e-12
    steps = weights["TEST"].diff().abs().drop_nulls()
    assert steps.max() <= 2 / 6 + 1e-12  # one of six tranches is turned over at a time


def test_the_verdict_names_funding_baselines_and_clock(made):
    text = made.results_table()
    for word in ("zero", "last value", "log-HAR", "buy & hold", "flat", "unding", "8,760"):
        assert word in text, word


class Links(HTMLParser):
    """Collects what a page would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.loaded = []

    def handle_starttag(self, tag, attrs):
        self.loaded += [v for k, v in attrs if k in ("src", "href") and tag != "a" and v != "data:,"]


def test_the_report_needs_no_network(made):
    page = made.path("report.html").read_text("utf-8")
    links = Links()
    links.feed(page)
    assert links.loaded == []
    assert made.path("report.html").stat().st_size < 2e6


def test_a_folder_that_exists_is_not_touched(made):
    with pytest.raises(UserError, match="name another folder"):
        train(made.experiment, made.root)


def test_resuming_a_finished_run_changes_nothing(made):
    before = made.path("model.safetensors").read_bytes()
    train(made.experiment, made.root, resume=True)
    assert made.path("model.safetensors").read_bytes() == before


def test_nothing_is_left_of_a_run_on_bad_data(tmp_path):
    path = write_experiment(tmp_path, candle_frame(60))
    with pytest.raises(UserError, match="lookback"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resume_refuses_other_data_or_another_experiment(tmp_path):
    path = write_experiment(tmp_path, candle_frame(900))
    train(path, tmp_path / "out")
    with pytest.raises(UserError, match="began with seed = 1, and is asked to go on with 2"):
        train(load_experiment(path, ["seed=2"]), tmp_path / "out", resume=True)
    write_experiment(tmp_path, candle_frame(900, seed=5))
    with pytest.raises(UserError, match="data are not"):
        train(path, tmp_path / "out", resume=True)


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_a_stopped_run_is_marked_and_goes_on_to_the_same_numbers(tmp_path, how):
    """As a user would: stop the command in the middle of training, then --resume."""
    path = write_experiment(tmp_path, candle_frame(900), epochs=40)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "longtape", "train", str(path), "--out", str(out)]
    settings = [
        "-o",
        "training.patience=3",
        "-o",
        "training.learning_rate=0.00001",
        "-o",
        "training.checkpoint_seconds=0.2",
    ]
    process = subprocess.Popen(
        [*command, *settings], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    checkpoint = out / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(getattr(__import__("signal"), how))
    _, errors = process.communicate(timeout=60)
    assert read_json(out / "run.json")["status"] == "unfinished"
    if how == "SIGINT":
        assert process.returncode == 130
        assert "Traceback" not in errors
    with pytest.raises(UserError, match="--resume"):
        load_run(out)
    refused = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    finished = [*command, *settings, "--resume"]
    assert subprocess.run(finished, capture_output=True, timeout=300).returncode == 0
    whole = train(load_experiment(path, settings[1::2]), tmp_path / "whole")
    assert whole.path("model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert not checkpoint.exists()
