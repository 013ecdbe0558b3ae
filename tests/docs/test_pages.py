"""The pages say what is so: links and named files exist, commands parse, examples run, tables are current."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer
import yaml

import longtape as lt
from longtape.cli.main import app
from longtape.core.instrument import Instrument
from longtape.experiment import load_experiment, parse_experiment
from longtape.market.books import Books
from longtape.market.trades import Trades
from tests.candles import candle_frame
from tests.docs.pages import CODE, FILE, LINK, NAMES, ROOT, blocks, commands, prose, text
from tests.market.event_data import book_frame, trade_frame

EXPERIMENT = """
name: BTC
data: {source: file, path: candles.csv, symbols: [BTCUSDT], interval: 1h}
features: [log_return, volatility(20)]
targets: [return(3), volatility(3)]
model: {lookback: 32, attention: flash, d_model: 8, n_heads: 2, n_layers: 1}
training: {epochs: 1, stride: 8}
audit: false
"""
WITH_CODE = [name for name in NAMES if blocks(name, "python")]
OF_ITS_OWN = ("docs/extend.md", "docs/bigbird.md")  # adds to registries, holds the memory of a large model


def prepare(folder: Path) -> None:
    """What the pages take as given: candles and an experiment."""
    frame = candle_frame(1200).with_columns(pl.col("timestamp").dt.offset_by("1200d"))
    frame.with_columns(pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_csv(folder / "candles.csv")
    (folder / "experiment.yaml").write_text(EXPERIMENT)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which a user has worked for a while: a store, a run, its exported graph."""
    folder = tmp_path_factory.mktemp("workplace")
    prepare(folder)
    store = lt.Store(folder / "data")
    store.append(lt.read_bars(folder / "candles.csv", symbol="BTCUSDT", interval="1h"))
    bitcoin = Instrument("bybit", "linear", "BTCUSDT")
    store.append_table  # noqa: B018
    run = lt.train(folder / "experiment.yaml", out=folder / "runs" / "btc")
    assert run.folder.status
    return folder, bitcoin, Books, Trades, book_frame, trade_frame, np
