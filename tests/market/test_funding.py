"""Recorded funding of perpetuals: read whole or refused, with the payment that is missing and the way to get it."""

import shlex

import numpy as np
import polars as pl
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from longtape.cli.fetch import fetch
from longtape.core.clock import DAY, HOUR
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.funding import funding_holes, load_funding, on_the_hour
from longtape.market.load import DataConfig, describe
from longtape.market.store import Store
from tests.market.bybit_server import BybitServer, synthetic
from tests.market.store_data import BTC, START, make_bars

ETH = Instrument("bybit", "linear", "ETHUSDT", funding_hours=4.0)
SPAN = (START, START + 3 * DAY)


def payments(n: int, step: int = 8 * HOUR, start: int = START) -> pl.DataFrame:
    times = start + step * np.arange(n)
    return pl.DataFrame({"timestamp": times, "rate": np.arange(1, n + 1) / 1e4}).with_columns(
        pl.col("timestamp").cast(pl.Datetime("ms", "UTC"))
    )


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store")
    made.append(make_bars(0, 72))
    made.append(make_bars(0, 72, instrument=ETH))
    return made


def section(store: Store, *symbols: str, **words) -> DataConfig:
    return DataConfig(source="store", store=store.root, symbols=list(symbols), interval="1h", **words)


def by_file(path, *symbols: str) -> DataConfig:
    return DataConfig(
        source="file", path="{symbol}.csv", symbols=list(symbols), category="linear", funding_path=str(path)
    )


def read(config: DataConfig, since: int = SPAN[0], until: int = SPAN[1]):
    return load_funding(config, describe(config), since, until)


def test_the_stores_funding_of_the_span_comes_for_every_perpetual(store):
    store.append_table("funding", BTC, payments(20, start=START - DAY))
    store.append_table("funding", ETH, payments(18, 4 * HOUR))
    found = read(section(store, "BTCUSDT", "ETHUSDT"))
    assert found.columns == ["timestamp", "symbol", "rate"]
    assert found["timestamp"].is_sorted()
    assert found.filter(symbol="BTCUSDT").drop("symbol").equals(payments(20, start=START - DAY)[3:12])
    assert found.filter(symbol="ETHUSDT").drop("symbol").equals(payments(18, 4 * HOUR))
    short = read(section(store, "BTCUSDT"), START + HOUR, START + 8 * HOUR)
    assert short.is_empty()


def test_no_perpetual_no_funding(store):
    spot = Instrument("bybit", "spot", "BTCUSDT")
    store.append(make_bars(0, 72, instrument=spot))
    assert read(section(store, "bybit/spot/BTCUSDT")) is None
    assert load_funding(DataConfig(), describe(DataConfig()), *SPAN) is None
    with pytest.raises(
        UserError, match=r"data\.funding_path has no effect: there is no perpetual among BTCUSDT"
    ):
        read(section(store, "bybit/spot/BTCUSDT", funding_path="f.csv"))


def test_a_stamp_a_little_off_the_hour_is_on_it(store):
    off = [0, 9, -20, 59_000, 0, 3, 0, 0, 0]
    late = payments(9).with_columns(pl.col("timestamp") + pl.Series(off).cast(pl.Duration("ms")))
    store.append_table("funding", BTC, late)
    assert read(section(store, "BTCUSDT"))["timestamp"].equals(payments(9)["timestamp"])
    assert on_the_hour(np.array([HOUR + 61_000, HOUR - 60_000])).tolist() == [HOUR + 61_000, HOUR]


WAY_OUT = "or name backtest.costs.funding = rate or excluded"


@pytest.mark.parametrize(
    ("kept", "hole", "since", "until"),
    [([0, 1, 4, 5, 6, 8], "2024-01-01 16:00Z (2 such)", "2024-01-01T16:00Z", "2024-01-02T08:00Z"),
     (range(2, 9), "2024-01-01 00:00Z (1 such)", "2024-01-01T00:00Z", "2024-01-01T16:00Z"),
     (range(8), "2024-01-03 16:00Z (1 such)", "2024-01-03T16:00Z", "2024-01-04T00:00Z"),
     ([], "2024-01-01 00:00Z (1 such)", "2024-01-01T00:00Z", "2024-01-04T00:00Z")],
)  # fmt: skip
def test_a_hole_names_the_payment_and_the_command_that_fills_it(store, kept, hole, since, until):
    whole = payments(9)
    if kept:
        store.append_table("funding", BTC, whole[list(kept)])
    config = section(store, "BTCUSDT")
    with pytest.raises(UserError) as caught:
        read(config)
    said = str(caught.value)
    command = (
        f"longtape fetch bybit --symbols BTCUSDT --kind funding --category linear --since {since} --until {until}"
        f" --store {store.root}"
    )
    assert said == (
        f"{store.root}: funding of bybit/linear/BTCUSDT has a hole at {hole}: {command}, {WAY_OUT}"
    )


def test_the_command_that_is_named_fills_the_hole(store):
    app = typer.Typer()
    app.command()(fetch)
    whole = payments(9)
    store.append_table("funding", BTC, whole[[0, 1, 4, 5, 8]])
    with BybitServer() as server:
        server.add("BTCUSDT", synthetic(200))
        server.funding["linear", "BTCUSDT"] = [
            (time, str(rate))
            for time, rate in zip(whole["timestamp"].dt.timestamp("ms"), whole["rate"], strict=True)
        ]
        for _ in range(2):
            with pytest.raises(UserError) as caught:
                read(section(store, "BTCUSDT"))
            command = str(caught.value).split(": longtape fetch ")[1].split(", or name")[0]
            result = CliRunner().invoke(app, [*shlex.split(command), "--base-url", server.url])
            assert result.exit_code == 0, result.output
    assert read(section(store, "BTCUSDT"))["rate"].to_list() == whole["rate"].to_list()


def test_a_source_without_funding_is_told_of_the_file(store):
    other = Instrument("ccxt-kraken", "linear", "BTCUSD")
    store.append(make_bars(0, 72, instrument=other))
    with pytest.raises(
        UserError, match=r"name data\.funding_path, a file of timestamp, symbol, rate, or name backtest"
    ):
        read(section(store, "BTCUSD"))


def test_funding_from_files(store, tmp_path):
    rows = payments(9)
    long = pl.concat([rows.with_columns(symbol=pl.lit(name)) for name in ("BTC/USDT", "XRPUSDT")])
    long.sample(fraction=1.0, shuffle=True, seed=1).write_parquet(tmp_path / "all.parquet")
    rows.write_csv(tmp_path / "BTCUSDT.csv")
    rows.with_columns(pl.col("timestamp").dt.timestamp("ms")).write_csv(tmp_path / "XRPUSDT.csv")
    expected = rows.select("timestamp", pl.lit("BTCUSDT").alias("symbol"), "rate")
    assert read(by_file(tmp_path / "all.parquet", "BTCUSDT")).equals(expected)
    assert read(by_file(tmp_path / "BTCUSDT.csv", "BTCUSDT")).equals(expected)
    both = read(by_file(tmp_path / "{symbol}.csv", "BTCUSDT", "XRPUSDT"))
    assert both.equals(read(by_file(tmp_path / "all.parquet", "BTCUSDT", "XRPUSDT")))
    assert both.height == 18
    # A file stands in for what the store does not have.
    assert read(section(store, "BTCUSDT", funding_path=str(tmp_path / "BTCUSDT.csv"))).equals(expected)


BROKEN = {
    "absent": (None, "no such file"),
    "hole": (
        "timestamp,rate\n2024-01-01,0.1\n2024-01-01 16:00,0.1\n",
        "has a hole at 2024-01-01 08:00Z (2 such): add",
    ),
    "twice": ("timestamp,rate\n2024-01-01,0.1\n2024-01-01,0.1\n", "2024-01-01 00:00Z comes twice"),
    "no number": ("timestamp,rate\n2024-01-01,much\n", "row 1, column 'rate': 'much' is not a number"),
    "empty": (
        "timestamp,rate\n2024-01-01,0.1\n2024-01-02,\n",
        "row 2 (2024-01-02 00:00Z), column 'rate': not a",
    ),
    "no rate": (
        "timestamp,funding\n2024-01-01,0.1\n",
        "column 'rate' is missing; there are timestamp, funding",
    ),
    "no time": ("time,rate\n2024-01-01,0.1\n", "column 'timestamp' is missing"),
    "other symbol": (
        "timestamp,symbol,rate\n2024-01-01,ETHUSDT,0.1\n",
        "no row of 'BTCUSDT'; its symbols are ETHUSDT",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_of_funding_that_cannot_be(tmp_path, name):
    content, message = BROKEN[name]
    path = tmp_path / "f.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        read(by_file(path, "BTCUSDT"))
    said = str(caught.value)
    assert said.startswith(str(path))
    assert message in said
    assert "\n" not in said


def test_files_that_leave_open_what_they_are_about(tmp_path):
    payments(9).write_csv(tmp_path / "f.csv")
    with pytest.raises(UserError, match=r"column .symbol. is missing.*several perpetuals"):
        read(by_file(tmp_path / "f.csv", "BTCUSDT", "ETHUSDT"))
    bare = DataConfig(source="file", path="x.csv", symbols=["BTCUSDT"], category="linear")
    with pytest.raises(
        UserError, match=r"file/linear/BTCUSDT is a perpetual.*name data\.funding_path.*, or name"
    ):
        read(bare)


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([1, 4, 8]), st.sets(st.integers(0, 10)))
def test_holes_are_the_payments_due_that_are_not_recorded(since, length, step, recorded):
    """Times in hours; payments are recorded at multiples of the step."""
    times = np.array(sorted(recorded), dtype=np.int64) * step
    holes = funding_holes(times * HOUR, step * HOUR, since * HOUR, (since + length) * HOUR)
    missing = [hour for first, stop in holes for hour in range(first // HOUR, -(-stop // HOUR), step)]
    due = [hour for hour in range(since, since + length) if hour % step == 0]
    assert missing == [hour for hour in due if hour not in times]


def test_more_payments_than_are_due_are_no_holes():
    times = HOUR * np.arange(48)
    assert funding_holes(times, 8 * HOUR, 0, 48 * HOUR) == []
    assert funding_holes(np.delete(times, slice(9, 20)), 8 * HOUR, 0, 48 * HOUR) == [(16 * HOUR, 20 * HOUR)]
