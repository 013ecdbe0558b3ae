"""The Python interface: what there is, frames in and out, checks, reprs. With pandas 2 and 3."""

from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest

import longtape as lt
from longtape.backtest import run_backtest
from longtape.core.clock import HOUR
from longtape.core.errors import UserError
from longtape.features.build import FeaturesConfig, build
from longtape.market.align import align
from longtape.market.store import Store
from longtape.workflow import load_run, train
from tests.candles import START, candle_frame, candles

H1 = lt.Interval.parse("1h")


def pandas_frame(n=50):
    return candle_frame(n).to_pandas()


def test_dir_shows_what_there_is():
    assert {"Bars", "Store", "read_bars", "run_backtest", "train", "build_attention", "__version__"} <= {
        *dir(lt)
    }
    assert all(getattr(lt, name) is not None for name in dir(lt))


FORMS = {
    "a column": pandas_frame,
    "an index": lambda: pandas_frame().set_index("timestamp"),
    "an index without a name": lambda: pandas_frame().set_index("timestamp").rename_axis(None),
    "a column Date": lambda: pandas_frame().rename(columns=str.title).rename(columns={"Timestamp": "Date"}),
    "another zone": lambda: pandas_frame().assign(
        timestamp=lambda f: f["timestamp"].dt.tz_convert("America/New_York")
    ),
    "another zone in the index": lambda: pandas_frame().set_index("timestamp").tz_convert("Asia/Tokyo"),
    "no zone": lambda: pandas_frame().assign(timestamp=lambda f: f["timestamp"].dt.tz_localize(None)),
    "nanoseconds": lambda: pandas_frame().assign(
        timestamp=lambda f: f["timestamp"].astype("datetime64[ns, UTC]")
    ),
    "a symbol": lambda: pandas_frame().assign(symbol="TEST"),
    "fields over symbols": lambda: pd.concat(
        {"TEST": pandas_frame().set_index("timestamp").rename(columns=str.title)}, axis=1
    ),
    "symbols over fields": lambda: pd.concat(
        {"TEST": pandas_frame().set_index("timestamp").rename(columns=str.title)}, axis=1
    ).swaplevel(axis=1),
    "polars": lambda: candle_frame(50),
    "lazy": lambda: candle_frame(50).lazy(),
}


@pytest.mark.parametrize("form", FORMS)
def test_frames_are_bars(form):
    bars = lt.Bars.of(FORMS[form](), "TEST", "1h")
    assert bars.frame.equals(candle_frame(50))


def test_frames_that_lack_a_column():
    bars = lt.Bars.of(pandas_frame()[["timestamp", "close"]], "TEST", "1h")
    assert bars.absent == ("open", "high", "low", "volume")
    with pytest.raises(UserError, match="'low' is missing"):
        lt.Bars.of(pandas_frame().drop(columns="low"), "TEST", "1h")
    with pytest.raises(UserError, match="no column of times"):
        lt.Bars.of(pandas_frame().drop(columns="timestamp"), "TEST", "1h")
    with pytest.raises(UserError, match="no row of the frame is of 'OTHER'"):
        lt.Bars.of(pandas_frame().assign(symbol="TEST"), "OTHER", "1h")
    with pytest.raises(UserError, match="expected a polars or pandas frame, not dict"):
        lt.Bars.of({"timestamp": [1]}, "TEST", "1h")


def test_there_and_back_again():
    bars = candles(50)
    frame = bars.to_pandas()
    assert frame.index.name == "timestamp"
    assert str(frame.index.tz) == "UTC"
    assert lt.Bars.of(frame, "TEST", "1h").frame.equals(bars.frame)
    panel = build([bars], FeaturesConfig(features=["log_return"], targets=["return(1)"])).to_pandas()
    assert panel.shape == (50, 2)


def test_bars_are_checked_when_they_are_made():
    instrument = lt.Instrument("x", "spot", "TEST")
    spoiled = candle_frame(50).with_columns(low=pl.lit(-1.0))
    with pytest.raises(UserError, match="'low': a price must be above zero"):
        lt.Bars(instrument, H1, spoiled)
    with pytest.raises(UserError, match="'close' is missing"):
        lt.Bars(instrument, H1, candle_frame(50).drop("close"))
    assert lt.Bars(instrument, H1, pandas_frame()).frame.equals(candle_frame(50))


@pytest.mark.parametrize(
    ("since", "until"),
    [
        (START + HOUR * 24, START + HOUR * 48),
        ("2020-09-14", "2020-09-15"),
        ("2020-09-14T00:00Z", datetime(2020, 9, 15, tzinfo=UTC)),
        (date(2020, 9, 14), datetime(2020, 9, 15)),
    ],
)
def test_between_takes_times_in_any_form(since, until):
    assert candles(100).between(since, until).timestamps.tolist() == [START + HOUR * i for i in range(24, 48)]


def test_between_names_what_is_no_time():
    with pytest.raises(UserError, match="since: 'yesterday' is not a time"):
        candles(100).between("yesterday")


def test_frames_are_stored(tmp_path):
    store = Store(tmp_path)
    assert store.append(pandas_frame(), symbol="TEST", interval="1h", category="fx").added == 50
    assert store.read("TEST", "1h").instrument.key == "frame/fx/TEST"
    with pytest.raises(UserError, match="needs symbol and interval"):
        store.append(pandas_frame())
    with pytest.raises(UserError, match="of their own"):
        store.append(candles(50), symbol="OTHER")


WEIGHTS = {
    "polars": lambda w: w,
    "a column": lambda w: w.to_pandas(),
    "an index": lambda w: w.to_pandas().set_index("timestamp"),
    "another zone": lambda w: w.to_pandas().set_index("timestamp").tz_convert("America/New_York"),
}


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("with_symbol", [True, False])
def test_frames_are_weights_and_bars_of_a_backtest(form, with_symbol):
    bars = candles(200)
    weights = pl.DataFrame(
        {"timestamp": bars.frame["timestamp"], "TEST": np.sign(np.sin(np.arange(200) / 7))}
    )
    expected = run_backtest(weights, bars, periods_per_year=8760)
    frame = bars.to_pandas()
    given = frame.assign(symbol="TEST") if with_symbol else frame.rename(columns=str.title)
    found = run_backtest(WEIGHTS[form](weights), given, periods_per_year=8760)
    assert found.equity.equals(expected.equity)
    assert found.to_pandas()["equity"].tolist() == expected.equity["equity"].to_list()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    candle_frame(700).write_parquet(folder / "candles.parquet")
    text = (
        "data: {source: file, path: candles.parquet, symbols: [TEST], interval: 1h}\nfeatures: [log_return]\n"
        "targets: [return(3)]\nmodel: {lookback: 16, attention: flash, d_model: 8, n_heads: 2, n_layers: 1}\n"
        "training: {epochs: 9}\naudit: false\n"
    )
    (folder / "e.yaml").write_text(text)
    return train(
        folder / "e.yaml",
        folder / "run",
        overrides={"training.epochs": 0, "backtest": {"fill": "next_close"}},
    )


def test_train_takes_overrides(made):
    described = load_run(made.root).experiment
    assert (described.training.epochs, described.backtest.fill) == (0, "next_close")
    assert lt.load_experiment(made.root.parent / "e.yaml", ["seed=3"]).seed == 3
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        lt.load_experiment(made.root.parent / "e.yaml", {"training": {"epoch": 3}})
    with pytest.raises(UserError, match="a list or a mapping"):
        lt.load_experiment(made.root.parent / "e.yaml", "seed=3")


def test_a_run_takes_frames(made):
    frame = candle_frame(700, seed=3)
    expected = made.forecast(candles(700, seed=3))
    for given in (
        frame,
        frame.to_pandas(),
        frame.to_pandas().set_index("timestamp").tz_convert("Asia/Tokyo"),
    ):
        assert made.forecast(given).equals(expected)
    assert made.backtest(frame.to_pandas()).equity.equals(made.backtest(candles(700, seed=3)).equity)


def test_reprs_fit_on_a_screen_and_show_in_a_notebook(made, tmp_path):
    bars = candles(300)
    weights = pl.DataFrame({"timestamp": bars.frame["timestamp"], "TEST": np.ones(300)})
    store = Store(tmp_path)
    store.append(bars)
    panel = build([bars], FeaturesConfig(features=["log_return"], targets=["return(1)"]))
    for value in (bars, store, panel, align([bars]), run_backtest(weights, bars), made, made.results):
        text, page = repr(value), value._repr_html_()
        assert text.startswith(type(value).__name__ + "(")
        assert len(text) < 600
        assert "\n" not in text
        assert page.startswith("<div>")
        assert len(page) < 20_000
    assert "rows 300" in repr(bars)
    assert "<table" in bars._repr_html_()
    assert made.results.to_pandas().index.name == "timestamp"
