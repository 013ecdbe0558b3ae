"""The experiment of a run walked once more, or another beside it: what must then be the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from tests.fuzz.experiments import Case, Document, with_document
from tests.fuzz.markets import Floats, MarketSpec, make_market
from tests.fuzz.runs import NEWEST, Trial, Walked, command, each_target, iso, times, values, walk, write_case
from tests.fuzz.scenarios import NUMBERS, Faults, from_files, scenario
from tests.fuzz.scores import entry_of, qlike_of, training_mean

LOOKBACK_TOLERANCE = 0.004  # of half of the forecasts; a window more to train on moves them by a tenth of it
FOLDS = 4


@scenario("twice the same bytes", every=3)
def repeated(trial: Trial) -> Faults:
    """Once through Python, once through the command line."""
    out = trial.folder / "again"
    code, said = command("run", str(trial.folder / "experiment.yaml"), "--out", str(out))
    if code != 0:
        yield f"longtape run ends with {code}: {said}"
        return
    for name in ("metrics.json", "forecast.parquet", "model.safetensors"):
        if not (out / name).exists() or Walked(out).bytes(name) != trial.walked.bytes(name):
            yield f"{name} has other bytes the second time"


@scenario("prices four times as high are forecast alike", from_files, every=4)
def scaled(trial: Trial) -> Faults:
    """Four times a float keeps every ratio of prices to the bit: nothing may hang on the level of prices."""
    market = trial.case.market
    prices = [pl.col(name) * 4.0 for name in ("open", "high", "low", "close")]
    assets = {s: replace(asset, frame=asset.frame.with_columns(prices)) for s, asset in market.assets.items()}
    case = with_document(replace(trial.case, market=replace(market, assets=assets)), audit=False)
    folder = trial.folder / "scaled"
    made, refusal = walk(write_case(case, folder), folder / "out")
    if refusal or made is None:
        yield f"with prices four times as high: {refusal.message if refusal else ''}"
        return
    both = made.forecast.join(trial.walked.forecast, on=NEWEST, suffix="_before")
    for name in NUMBERS:
        now, before = values(both, name), values(both, f"{name}_before")
        least = 1e-6 * np.abs(before[np.isfinite(before)]).max(initial=0.0)
        if not np.allclose(now, before, rtol=1e-6, atol=least, equal_nan=True):
            yield f"{name} moves by {np.nanmax(np.abs(now - before)):.3g}"


@scenario("the linear start is the same at every lookback", every=8)
def lookbacks(trial: Trial) -> Faults:
    """One bar less or more to look back on may not change which lags a volatility starts from."""
    forecasts = {}
    for lookback in (23, 24, 71, 72):
        case = _plain(trial, lookback)
        folder = trial.folder / f"lookback{lookback}"
        made, refusal = walk(write_case(case, folder), folder / "out")
        if refusal or made is None:
            yield f"lookback {lookback}: {refusal.message if refusal else ''}"
            return
        forecasts[lookback] = made.forecast.select("timestamp", "mean")
    for short, long in ((23, 24), (71, 72)):
        both = forecasts[short].join(forecasts[long], on="timestamp", suffix="_long")
        apart = float(np.median(np.abs(np.log(values(both, "mean") / values(both, "mean_long")))))
        if apart > LOOKBACK_TOLERANCE:
            yield f"volatility moves by {apart:.2%} between lookback {short} and {long}"


def _plain(trial: Trial, lookback: int) -> Case:
    """A volatility alone, started and not trained, on a market with a long memory."""
    spec = MarketSpec(law="garch", bars=2400)
    document: Document = {
        "name": "lookbacks", "audit": False,
        "data": {"source": "file", "path": "{symbol}.parquet", "symbols": ["AAA"], "interval": "1h"},
        "features": ["log_return"], "targets": ["volatility(6)"],
        "model": {"lookback": lookback, "attention": "flash", "d_model": 8, "n_heads": 1, "n_layers": 1},
        "training": {"epochs": 0},
    }  # fmt: skip
    market = make_market(spec, trial.case.seed)
    opens = market.shared_opens()
    document["split"] = {"train_until": iso(opens[1900]), "validation_until": iso(opens[2100])}
    return Case(trial.case.seed, market, document)


def _by_dates(trial: Trial) -> bool:
    return from_files(trial) and trial.test_since is not None


@scenario("walk-forward keeps to the split", _by_dates, every=2)
def walk_forward(trial: Trial) -> Faults:
    out = trial.folder / "folds"
    path = str(trial.folder / "experiment.yaml")
    code, said = command("walk-forward", path, "--folds", "2", "--out", str(out), "-o", "training.epochs=0")
    if code != 0:
        yield f"longtape walk-forward ends with {code}: {said}"
        return
    frame = Walked(out).forecast.drop_nulls("actual")
    if times(frame).min() < (trial.test_since or 0):
        yield f"the first fold tests from {frame['timestamp'].min()}, validation_until is {iso(trial.test_since or 0)}"
    if trial.test_until is not None and times(frame, "end").max() > trial.test_until:
        yield f"labels until {frame['end'].max()} are scored, test_until is {iso(trial.test_until)}"


@scenario("walk-forward fits baselines in every fold", from_files, every=8)
def walk_forward_baselines(trial: Trial) -> Faults:
    """The market's volatility trebles in the middle: the mean of the first fold's training is soon a bad one."""
    case = _jumping(trial)
    folder = trial.folder / "jump"
    out = folder / "folds"
    code, said = command(
        "walk-forward", str(write_case(case, folder)), "--folds", str(FOLDS), "--out", str(out)
    )
    if code != 0:
        yield f"longtape walk-forward ends with {code}: {said}"
        return
    walked = Walked(out)
    for (symbol, target, horizon), rows in each_target(walked.forecast.drop_nulls("actual")):
        entry = entry_of(walked.metrics["skill"], symbol, target, horizon)
        row = training_mean(entry)
        if row is None or not target.startswith("volatility"):
            continue
        levels = _fold_levels(case, rows, horizon)
        refitted, first = (qlike_of(rows, level) for level in (levels, np.full(rows.height, levels[0])))
        # The folds' own training ends before their validation, so it lies between the two.
        apart = abs(refitted - first)
        if apart > 0.15 * first and abs(row["QLIKE"] - first) < 0.05 * apart:
            figures = f"QLIKE {row['QLIKE']:.3f}; of fold 1 alone {first:.3f}, of all {refitted:.3f}"
            yield f"{target}: the training mean has {figures}"


def _jumping(trial: Trial) -> Case:
    case = _plain(trial, 24)
    market = make_market(MarketSpec(bars=1200, jump=3.0), trial.case.seed)
    document = {key: value for key, value in case.document.items() if key != "split"}
    return with_document(Case(case.seed, market, document), targets=["volatility(3)"])


def _fold_levels(case: Case, rows: pl.DataFrame, horizon: int) -> Floats:
    """Root mean square of about what each fold was trained on, for each row that it forecast."""
    close, opens = (
        np.log(values(case.market.assets["AAA"].bars, "close")),
        times(case.market.assets["AAA"].bars),
    )
    squares = np.append(0.0, np.cumsum(np.diff(close, prepend=close[0]) ** 2))
    label = squares[1 + horizon :] - squares[1:-horizon]
    levels = []
    for block in np.array_split(times(rows), FOLDS):
        known = int(np.searchsorted(opens, block[0])) - horizon
        levels.append(np.full(len(block), np.sqrt(label[30 : int(known * 0.85)].mean())))
    return np.concatenate(levels)
