"""What is done with a finished run, or beside it, and what must then be so. Scenarios yield faults, as checks do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

import longtape
from tests.fuzz.markets import write_frames
from tests.fuzz.runs import (
    DATA,
    NEWEST,
    Trial,
    Walked,
    attempt,
    command,
    iso,
    times,
    values,
)

Faults = Iterator[str]
NUMBERS = ("mean", "lower", "upper")
FRONT_TOLERANCE = 1e-4  # of a forecast's deviation: features with a long memory may keep 1e-6 of theirs


@dataclass(frozen=True)
class Scenario:
    """Something done with a run, and the trials that it is for; `every`: on one seed in so many."""

    name: str
    find: Callable[[Trial], Faults]
    when: Callable[[Trial], bool]
    every: int


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str, when: Callable[[Trial], bool] = lambda trial: True, every: int = 1
) -> Callable[..., Any]:
    """Register a scenario under a name."""

    def register(find: Callable[[Trial], Faults]) -> Callable[[Trial], Faults]:
        SCENARIOS[name] = Scenario(name, find, when, every)
        return find

    return register


def from_files(trial: Trial) -> bool:
    """The data can be written anew."""
    return bool(trial.case.document["data"]["source"] == "file")


# --- the same run, other bars ---


@scenario("cutting the future changes no bit")
def cut(trial: Trial) -> Faults:
    frame = trial.walked.forecast
    for number, moment in enumerate(_cuts(trial, frame)):
        known = {s: times(bars) + trial.case.market.step <= moment for s, bars in trial.bars.items()}
        frames = {s: bars.filter(pl.Series(known[s])) for s, bars in trial.bars.items()}
        bars = trial.read(frames, f"cut{number}")
        made, refusal = attempt(partial(_forecast, trial, bars))
        if refusal:
            yield f"forecast of data cut at {iso(moment)}: {refusal.message}"
        else:
            yield from _same_bits(trial, made, frame)


def _cuts(trial: Trial, frame: pl.DataFrame) -> list[int]:
    """A moment at random, and one before the market closes, if it does: the bars to come must be foreseen there."""
    rng = np.random.default_rng([trial.case.seed, 4])
    scored = frame.drop_nulls("actual")
    spans = (
        times(scored, "end") - times(scored, "known_at") - values(scored, "horizon") * trial.case.market.step
    )
    moments = [
        np.unique(times(scored, "known_at")),
        np.unique(times(scored.filter(pl.Series(spans > 0)), "known_at")),
    ]
    return [int(rng.choice(some)) for some in moments if len(some)]


def _forecast(trial: Trial, bars: list[longtape.Bars], **options: Any) -> pl.DataFrame:
    return longtape.load_run(trial.walked.root).forecast(bars, **options)


def _same_bits(trial: Trial, made: pl.DataFrame, frame: pl.DataFrame) -> Faults:
    both = made.join(frame, on=NEWEST, how="inner", suffix="_before")
    if both.height < made.height:
        yield f"the forecast of {made['timestamp'][0]} was not made with all data at hand"
    for name in NUMBERS:
        moved = both.filter(~pl.col(name).eq_missing(pl.col(f"{name}_before")))
        if moved.height:
            row = moved.row(0, named=True)
            yield f"{name} of {row['target']} at {row['timestamp']}: {row[f'{name}_before']!r} → {row[name]!r}"
    late = both.filter(pl.col("end") != pl.col("end_before"))
    if late.height and trial.case.market.whole:
        row = late.row(0, named=True)
        yield f"`end` of {row['target']} at {row['timestamp']}: {row['end_before']} → {row['end']}"


def _starts_with_history(trial: Trial) -> bool:
    """A pooled symbol's mean of log-HARs is fitted on all of its own history, so more of it is another start."""
    pooled = trial.case.option("model.assets") == "pooled"
    return pooled and trial.case.option("model.volatility_start") == "log_har_mean"


@scenario(
    "bars added in front change nothing",
    lambda trial: not (trial.case.market.spec.late or _starts_with_history(trial)),
)
def front(trial: Trial) -> Faults:
    frames = {s: trial.case.market.assets[s].bars_and_before for s in trial.bars}
    if trial.case.option("data.drop_last"):
        frames = {s: frame.head(frame.height - 1) for s, frame in frames.items()}
    made, refusal = attempt(lambda: _forecast(trial, trial.read(frames, "front")))
    if refusal:
        yield f"with bars in front: {refusal.message}"
        return
    before = trial.walked.forecast
    deviation = before.group_by("symbol", "target", "horizon").agg(
        pl.max_horizontal(pl.col("mean").std(), pl.col("mean").abs().mean() * 1e-3).alias("deviation")
    )
    both = made.join(before, on=NEWEST, suffix="_before").join(deviation, on=("symbol", "target", "horizon"))
    for name in NUMBERS:
        apart = pl.col(name) - pl.col(f"{name}_before")
        moved = both.filter((apart.abs() > FRONT_TOLERANCE * pl.col("deviation")) & pl.col(name).is_finite())
        if moved.height:
            row = moved.row(0, named=True)
            size = abs(row[name] - row[f"{name}_before"]) / row["deviation"]
            yield f"{name} of {row['target']} moves by {size:.2g} deviations"


@scenario("history=True gives history")
def history(trial: Trial) -> Faults:
    bars = trial.read(trial.bars, "history")
    made, refusal = attempt(lambda: _forecast(trial, bars, history=True))
    if refusal:
        yield f"forecast(bars, history=True): {refusal.message}"
    elif made["timestamp"].n_unique() < 2:
        yield f"forecast(bars, history=True) gave {made.height} rows of one moment"


@scenario("bars of another market are refused")
def other_bars(trial: Trial) -> Faults:
    for name, made in _others(trial).items():
        bars, unreadable = attempt(made)
        for what in ("forecast", "backtest") if trial.walked.has_account else ("forecast",):
            if unreadable:
                continue  # refused already when it was read
            _, refusal = attempt(partial(_done, trial, what, bars))
            if refusal is None:
                yield f"{what} of bars {name} was made"
            elif refusal.stage != DATA:
                yield f"{what} of bars {name}: {refusal.message}"


def _done(trial: Trial, what: str, bars: list[longtape.Bars]) -> None:
    getattr(longtape.load_run(trial.walked.root), what)(bars)


def _others(trial: Trial) -> dict[str, Callable[[], list[longtape.Bars]]]:
    """Bars that a run was not trained for; a pooled model may take another symbol."""
    frames, last = trial.bars, trial.case.document["data"]["symbols"][-1]
    others: dict[str, Callable[[], list[longtape.Bars]]] = {
        "of another category": lambda: trial.read(frames, "other", category="index"),
        "of another interval": lambda: _longer(trial),
    }
    if trial.case.option("model.assets") != "pooled":
        others["of another symbol"] = lambda: [
            *trial.read({s: f for s, f in frames.items() if s != last}, "other"),
            *trial.read({last: frames[last]}, "other", symbol="ZZZ"),
        ]
    return others


def _longer(trial: Trial) -> list[longtape.Bars]:
    """Every other bar, as bars of twice the length."""
    doubled = {"1m": "2m", "5m": "10m", "30m": "1h", "1h": "2h", "4h": "8h", "1d": "2d"}
    interval = doubled[trial.case.market.spec.interval]
    length = longtape.Interval.parse(interval).milliseconds
    frames = {s: bars.filter(pl.Series(times(bars) % length == 0)) for s, bars in trial.bars.items()}
    if any(frame.height < 100 for frame in frames.values()):  # bars that open at half past
        frames = {
            s: bars.filter(pl.Series(times(bars) % length == length // 2)) for s, bars in trial.bars.items()
        }
    return trial.read(frames, "longer", interval=interval)


# --- the run opened again, the data changed ---


@scenario("a reopened run scores nothing before its border", from_files, every=2)
def reopened(trial: Trial) -> Faults:
    """The last half of the test is lost: fractions of what is left would reach back into the training."""
    root = trial.copy("reopened")
    first, count = times(trial.walked.forecast).min(), trial.walked.forecast["timestamp"].n_unique()
    keep = np.unique(times(trial.walked.forecast))[count // 2]
    with _other_data(trial, lambda bars: bars.filter(pl.Series(times(bars) <= keep))):
        _, refusal = attempt(lambda: longtape.load_run(root).backtest())
    if refusal:
        yield from [f"reopened on fewer bars: {refusal.message}"] if refusal.stage != DATA else []
        return
    again = Walked(root)
    if times(again.forecast).min() < first:
        yield f"forecasts from {again.forecast['timestamp'].min()} are scored, the test began at {iso(first)}"
    if again.has_account and times(again.book("equity")).min() < first:
        yield f"the account begins at {again.book('equity')['timestamp'].min()}, the test at {iso(first)}"


@scenario("forecasts of other data are not taken for the run's own", from_files, every=2)
def reused(trial: Trial) -> Faults:
    """The data change, forecasts are made, and the data are as they were."""
    root = trial.copy("reused")
    first = times(trial.walked.forecast).min()
    factor = pl.when(pl.col("timestamp").dt.timestamp("ms") >= first).then(1.5).otherwise(1.0)
    prices = [pl.col(name) * factor for name in ("open", "high", "low", "close")]
    with _other_data(trial, lambda bars: bars.with_columns(prices)):
        attempt(lambda: longtape.load_run(root).forecast(history=True))
    code, said = command("backtest", str(root))
    if code != 0:
        yield f"with the data as they were: {said}"
    elif Walked(root).bytes("metrics.json") != trial.walked.bytes("metrics.json"):
        yield "with the data as they were, metrics.json is another: forecasts of other data were scored"


@contextlib.contextmanager
def _other_data(trial: Trial, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Iterator[None]:
    """The files hold changed bars for a while."""
    market = trial.case.market
    ending = trial.case.document["data"]["path"].rsplit(".", 1)[-1]
    frames = {s: asset.bars for s, asset in market.assets.items()}
    try:
        write_frames({s: change(frame) for s, frame in frames.items()}, trial.folder, ending)
        yield
    finally:
        write_frames(frames, trial.folder, ending)
