"""`model.assets: pooled`, the whole way: one network for many symbols, and for some that it has never seen."""

import numpy as np
import polars as pl
import pytest
import torch

from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.evaluation.perturbation import change_after
from longtape.experiment import load_experiment
from longtape.training.loop import Trainer
from longtape.training.run_folder import RunFolder
from longtape.workflow import load_run, run
from longtape.workflow.pipeline import ExperimentPipeline
from longtape.workflow.varied import varied
from tests.candles import candle_frame, candles

EXPERIMENT = """
name: pooled
data: {source: file, path: "{symbol}.parquet", symbols: [AAA, BBB, CCC], interval: 1h}
features: [log_return, volatility(10), others(volatility(10)), hour]
targets: [return(2), volatility(4)]
model: {assets: pooled, own_past: 60, lookback: 12, attention: flash, d_model: 8, n_heads: 2, n_layers: 1, patch: 3}
training: {epochs: 1, stride: 4, seeds: 2, learning_rate: 0.01, checkpoint_seconds: 1.0e-9}
backtest: {signal: {target: return(2)}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """BBB is listed later; NEW is CCC a thousand times as dear."""
    folder = tmp_path_factory.mktemp("pooled")
    frames = {"AAA": candle_frame(900), "BBB": candle_frame(900, 1).tail(700), "CCC": candle_frame(900, 2)}
    prices = pl.col("open", "high", "low", "close")
    frames["NEW"] = frames["CCC"].with_columns(prices * 1000, pl.col("volume") / 50)
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
    (folder / "pooled.yaml").write_text(EXPERIMENT)
    return folder


@pytest.fixture(scope="module")
def made(folder):
    return run(folder / "pooled.yaml", folder / "out")


def bars_of(folder, *symbols):
    return [candles(2, 0, name).with_frame(pl.read_parquet(folder / f"{name}.parquet")) for name in symbols]


def test_it_goes_from_the_file_to_the_report(made):
    assert read_json(made.path("audit.json"))["passed"]
    metrics = read_json(made.path("metrics.json"))
    symbols = ["AAA", "BBB", "CCC"]
    named = [f"{symbol} {target}" for symbol in symbols for target in ("return(2)", "volatility(4)")]
    assert list(metrics["skill"])[:6] == named
    rows = metrics["skill"]["mean of 3 symbols volatility(4)"]
    assert [row["model"] for row in rows] == [row["model"] for row in metrics["skill"]["AAA volatility(4)"]]
    each = [metrics["skill"][f"{symbol} volatility(4)"][0]["QLIKE"] for symbol in symbols]
    assert rows[0]["QLIKE"] == pytest.approx(np.mean(each))
    assert 0 <= rows[1]["p, differs from longtape"] <= 1
    assert metrics["metrics"]["n_fills"] > 0
    assert "mean of 3 symbols" in made.path("report.html").read_text("utf-8")


def test_what_it_keeps_does_not_grow_with_the_symbols(made):
    assert made.folder.inputs.assets == ("any",)
    assert {len(one) for one in made.fitted.calibration.to_dict().values()} == {1, 2}  # levels, targets
    assert load_run(made.root).forecast().equals(made.forecast())


def test_forecasts_are_in_original_units(made):
    frame = made.forecasts.drop_nulls("actual").filter(pl.col("target") == "volatility(4)")
    closes = made.data.bars[0].column("close")
    own = frame.filter(pl.col("symbol") == "AAA")
    rows = np.searchsorted(made.data.panel.timestamps, own["timestamp"].dt.timestamp("ms").to_numpy())
    moves = np.diff(np.log(closes)) ** 2
    actual = [np.sqrt(moves[row : row + 4].sum()) for row in rows]
    assert own["actual"].to_numpy() == pytest.approx(np.array(actual))
    assert 0.5 < (own["mean"] / own["actual"]).median() < 2
    assert (own["lower"] < own["mean"]).all()
    assert (own["mean"] < own["upper"]).all()


def test_equal_symbols_have_equal_forecasts_whatever_their_order(made, folder):
    given = bars_of(folder, "AAA", "BBB", "CCC")
    for order in ([0, 1, 2], [2, 0, 1]):
        frame = made.forecast([given[i] for i in order])
        assert frame.sort("symbol", "target").equals(made.forecast().sort("symbol", "target"))
    twin = candles(2, 0, "TWIN").with_frame(given[0].frame)
    frame = made.forecast([*given, twin])
    one, other = (frame.filter(pl.col("symbol") == name).drop("symbol") for name in ("AAA", "TWIN"))
    assert one.equals(other)


def test_it_forecasts_a_symbol_that_it_has_never_seen(made, folder):
    """Among the run's own symbols, whose market it reads; of its level nothing is known to the model."""
    new = varied(load_run(made.root), folder / "NEW.parquet", (), "forecast")
    frame = new.forecast(history=True)
    assert frame["symbol"].unique().to_list() == ["NEW"]
    assert frame.equals(made.forecast(bars_of(folder, "NEW"), history=True).filter(pl.col("period") != "training")
                        .filter(pl.col("timestamp") >= frame["timestamp"].min()))  # fmt: skip
    others = list(bars_of(folder, "AAA", "BBB"))
    moved = bars_of(folder, "CCC")[0]
    like = made.forecast([*others, candles(2, 0, "CCC").with_frame(moved.frame)], history=True)
    like = like.filter(pl.col("symbol") == "CCC").filter(pl.col("timestamp") >= frame["timestamp"].min())
    # Its market is that of CCC, and CCC itself: the same but for one of three that it reads.
    together = like.join(frame, on=["timestamp", "target"]).filter(pl.col("target") == "volatility(4)")
    assert (together["mean"] / together["mean_right"] - 1).abs().max() < 0.2
    new.score()
    assert "NEW volatility(4)" in new.results.skills


def test_a_level_does_not_matter(made, folder):
    """Prices a thousand times as high, volume a fiftieth, in the place of the symbol itself."""
    own, dear = bars_of(folder, "AAA", "BBB", "CCC"), bars_of(folder, "AAA", "BBB", "NEW")
    dear[2] = candles(2, 0, "CCC").with_frame(dear[2].frame)
    one, other = made.forecast(own), made.forecast(dear)
    assert one["mean"].to_numpy() == pytest.approx(other["mean"].to_numpy(), rel=1e-3, abs=1e-7)


def test_no_bit_moves_when_the_future_changes(made, folder):
    bars = bars_of(folder, "AAA", "BBB", "CCC")
    panel = made.pipeline.panel(bars)
    row = len(panel) - 40
    changed = made.pipeline.panel(change_after(bars, int(panel.known_at[row]), 5))
    origins = np.arange(row - 20, row + 1)
    one, other = (made.fitted.forecast(each, origins).drop("actual", "crps") for each in (panel, changed))
    assert one.height == 3 * 2 * 21
    assert one.equals(other)


def test_other_intervals_and_categories_are_refused(made, folder):
    with pytest.raises(UserError, match="category 'linear', and the run was trained on 'spot'"):
        made.forecast([candles(300, 5, "NEW", "linear")])
    daily = candle_frame(300, 5, step=86_400_000)
    from longtape.market.bars import Bars

    with pytest.raises(UserError, match="bars of 1d, and the run was trained on bars of 1h"):
        made.forecast(Bars.of(daily, "NEW", "1d"))


def test_a_joint_run_still_asks_for_its_own_symbols(folder):
    joint = [
        "model.assets=joint",
        "model.own_past=null",
        "training.epochs=0",
        "training.seeds=1",
        "audit=false",
    ]
    made = run(folder / "pooled.yaml", folder / "joint", overrides=[*joint, "data.symbols=[AAA, CCC]"])
    with pytest.raises(UserError, match="bars of NEW were given, and the run was trained on AAA, CCC"):
        made.forecast(bars_of(folder, "NEW"))


@pytest.mark.parametrize("at", [2, 12])
def test_it_resumes_to_the_same_bits(made, folder, tmp_path, monkeypatch, at):
    class Killed(Exception):
        pass

    step, seen = Trainer._step, []

    def dies(self, *args):
        seen.append(1)
        if len(seen) == at:
            raise Killed
        return step(self, *args)

    def fit():
        pipeline = ExperimentPipeline(made.experiment)
        panel = pipeline.panel(made.data.bars)
        return pipeline.fit_in(RunFolder(tmp_path), panel, pipeline.split(panel))

    monkeypatch.setattr(Trainer, "_step", dies)
    with pytest.raises(Killed):
        fit()
    monkeypatch.undo()
    found, whole = fit().model.state_dict(), made.fitted.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def test_a_symbol_that_is_absent_for_a_while_is_masked(folder, tmp_path):
    frame = pl.read_parquet(folder / "CCC.parquet")
    frame.filter(~pl.int_range(900).is_between(820, 849)).write_parquet(tmp_path / "CCC.parquet")
    for name in ("AAA", "BBB"):
        pl.read_parquet(folder / f"{name}.parquet").write_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "masked.yaml").write_text(EXPERIMENT + "missing: mask\n")
    made = run(
        tmp_path / "masked.yaml", tmp_path / "out", overrides=["training.epochs=0", "training.seeds=1"]
    )
    gone = made.forecasts.filter((pl.col("symbol") == "CCC") & (pl.col("target") == "return(2)"))
    rows = np.searchsorted(made.data.panel.timestamps, gone["timestamp"].dt.timestamp("ms").to_numpy())
    assert gone.filter(pl.Series((rows >= 818) & (rows < 850)))["actual"].null_count() == 32
    assert read_json(made.path("audit.json"))["passed"]


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["model.kind=portfolio", "model.patch=1"], "portfolio cannot be pooled: .* all symbols share"),
        (["model.kind=channels"], "channels cannot be pooled: it sees all symbols side by side"),
        (["model.assets=joint"], "own_past has no effect without assets: pooled"),
        (["model.heads={return: allocation}"], "do not know of each other; kind: portfolio divides"),
    ],
)
def test_what_cannot_be_pooled_is_refused(folder, overrides, why):
    with pytest.raises(UserError, match=why):
        load_experiment(folder / "pooled.yaml", overrides)
