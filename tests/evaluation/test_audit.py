"""The audit finds every planted leak in the place where it was planted, and nothing in a pipeline that has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest

from longtape.core.clock import HOUR
from longtape.core.errors import UserError
from longtape.evaluation.audit import AuditReport, audit
from longtape.evaluation.protocol import Rows
from longtape.features.marks import Events
from longtape.features.panel import Panel
from longtape.features.scaling import Standardizer
from longtape.features.splits import Periods, Split
from longtape.market.bars import Bars
from tests.evaluation.ridge_pipeline import (
    HORIZON,
    START,
    Ridge,
    RidgePipeline,
    random_bars,
    shift,
    trailing,
)

EVENTS = Events(
    times=START + HOUR * np.array([301, 777, 1203, 1391]),
    announced=START + HOUR * np.array([290, 776, 1180, 1390]),
)


def run(pipeline: RidgePipeline, bars: Sequence[Bars] | None = None) -> AuditReport:
    return audit(pipeline, bars or random_bars(), n_cuts=3, n_feature_cuts=12, n_origins=16)


def failed(report: AuditReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


class CentredMean(RidgePipeline):
    def features(self, bar, clock):
        centred = shift(trailing(bar["close"], 11).mean(axis=1), -5)
        return super().features(bar, clock) | {"centred": np.nan_to_num(bar["close"] / centred)}


class WholeSampleScaler(RidgePipeline):
    def scaler(self, panel: Panel, train: Rows) -> Standardizer:
        return Standardizer.fit(panel.values, slice(panel.warm_up, None))


class ShuffledSplit(RidgePipeline):
    def split(self, panel: Panel, periods: Periods | None = None) -> Split:
        split = super().split(panel, periods)
        rows = np.random.default_rng(0).permutation(
            np.concatenate([split.train, split.validation, split.calibration, split.test])
        )
        sizes = np.cumsum([len(split.train), len(split.validation), len(split.calibration)])
        return Split(*(np.sort(part) for part in np.split(rows, sizes)), split.periods)


class NegativeShift(RidgePipeline):
    def features(self, bar, clock):
        return super().features(bar, clock) | {"next": np.nan_to_num(shift(bar["volume"], -1))}


class ResampleLabelledAtStart(RidgePipeline):
    def slow(self, close, clock):
        done = np.flatnonzero((clock + HOUR) % (4 * HOUR) == 0)
        change = close - shift(close, 4)
        coming = done[np.minimum(np.searchsorted(done, np.arange(len(close))), len(done) - 1)]
        return change[coming]


class BackFill(RidgePipeline):
    def fill_holes(self, values):
        rows = np.where(np.isnan(values), len(values) - 1, np.arange(len(values)))
        return values[np.minimum.accumulate(rows[::-1])[::-1]]


class SameBarFill(RidgePipeline):
    def executed(self, decided: pl.DataFrame, nexts: pl.DataFrame) -> pl.DataFrame:
        return decided.join(nexts, on="timestamp").select("timestamp", "symbol", "units", "price")


class TargetInFeatures(RidgePipeline):
    def features(self, bar, clock):
        return super().features(bar, clock) | {"answer": np.nan_to_num(self.target(bar["close"]))}


class NoPurge(RidgePipeline):
    def split(self, panel: Panel, periods: Periods | None = None) -> Split:
        split = super().split(panel, periods)
        return replace(split, train=np.arange(split.train[0], split.validation[0]))


class EventKnownTooEarly(RidgePipeline):
    def event_ahead(self, known_at):
        assert self.events is not None
        times = self.events.times[:, None]
        return ((times > known_at) & (times <= known_at + 24 * HOUR)).any(axis=0).astype(np.float64)


PLANTED = [
    (CentredMean(), "features", "feature 'AAA centred'"),
    (WholeSampleScaler(), "inputs", "model input 'x'"),
    (ShuffledSplit(), "split", "training labels"),
    (NegativeShift(), "features", "feature 'BBB next'"),
    (ResampleLabelledAtStart(), "features", "feature 'AAA slow'"),
    (BackFill(), "features", "feature 'AAA return'"),
    (SameBarFill(), "fills", "fill of"),
    (TargetInFeatures(), "features", "feature 'AAA answer'"),
    (NoPurge(), "split", "training labels"),
    (EventKnownTooEarly(events=EVENTS), "features", "feature 'event_ahead'"),
]


@pytest.mark.parametrize(("pipeline", "check", "what"), PLANTED, ids=lambda case: type(case).__name__)
def test_finds_the_planted_leak(pipeline: RidgePipeline, check: str, what: str) -> None:
    report = run(pipeline)
    assert not report.passed
    found = next(one for one in report.checks if one.name == check)
    assert any(what in str(finding) for finding in found.findings), report.table()


@pytest.mark.parametrize("pipeline", [RidgePipeline(), RidgePipeline(events=EVENTS)], ids=["plain", "events"])
@pytest.mark.parametrize("seed", range(3))
def test_passes_a_clean_pipeline(pipeline: RidgePipeline, seed: int) -> None:
    report = run(pipeline, random_bars(seed=10 * seed))
    assert report.passed, report.table()
    assert all(check.compared > 0 for check in report.checks)


class AnnouncementsIgnored(Ridge):
    def inputs(self, panel: Panel, origins: Rows):
        assert self.events is not None
        blind = replace(self, events=Events(self.events.times, self.events.times))
        return Ridge.inputs(blind, panel, origins)


class MarksBeforeTheAnnouncement(RidgePipeline):
    def event_ahead(self, known_at):
        return np.zeros(len(known_at))

    def model(self, scaler, coefficients):
        return AnnouncementsIgnored(scaler, coefficients, self.lookback, self.events)


def test_finds_marks_of_events_that_nobody_had_announced() -> None:
    """What happened is told five hours later, and a mark shows it at once."""
    times = START + HOUR * np.arange(5, 1500, 10)
    events = Events(times, times + 5 * HOUR)
    found = [
        str(f) for check in run(MarksBeforeTheAnnouncement(events=events)).checks for f in check.findings
    ]
    assert any("model input 'marks'" in finding for finding in found)
    assert run(RidgePipeline(events=events)).passed


def test_leaks_are_found_where_they_are_and_not_elsewhere() -> None:
    assert failed(run(SameBarFill())) == {"fills"}
    assert failed(run(NoPurge())) == {"split"}
    assert failed(run(WholeSampleScaler())) >= {"inputs", "forecasts"}
    assert "features" not in failed(run(WholeSampleScaler()))


class LabelEndsTooEarly(RidgePipeline):
    def target_ends(self, known_at):
        return known_at + (HORIZON - 1) * HOUR


class BatchNormalised(Ridge):
    def predict(self, x):
        return super().predict(x - x.mean(axis=0))


@dataclass(frozen=True)
class LooksAcrossTheBatch(RidgePipeline):
    def model(self, scaler, coefficients):
        return BatchNormalised(scaler, coefficients, self.lookback, self.events)


class SignalOverTheWholeFrame(RidgePipeline):
    def weights(self, forecast: pl.DataFrame) -> pl.DataFrame:
        return super().weights(forecast.with_columns(pl.col("mean") - pl.col("mean").mean().over("symbol")))


class FillKnowsTheClose(RidgePipeline):
    """Buys at the open only where the bar will close higher."""

    def executed(self, decided, nexts):
        return (
            super().executed(decided, nexts).filter(pl.col("price").shift(-1).fill_null(0) > pl.col("price"))
        )


@pytest.mark.parametrize(
    ("pipeline", "check"),
    [
        (LabelEndsTooEarly(), "targets"),
        (LooksAcrossTheBatch(), "forecasts"),
        (SignalOverTheWholeFrame(), "signals"),
        (FillKnowsTheClose(), "fills"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_finds_leaks_behind_the_features(pipeline: RidgePipeline, check: str) -> None:
    assert check in failed(run(pipeline))


class CumulativeVwap(RidgePipeline):
    def features(self, bar, clock):
        vwap = np.cumsum(bar["close"] * bar["volume"]) / np.maximum(np.cumsum(bar["volume"]), 1e-9)
        return super().features(bar, clock) | {"vwap": bar["close"] / vwap - 1}


class WilderWithoutWarmUp(RidgePipeline):
    def features(self, bar, clock):
        steps = np.diff(bar["close"], prepend=bar["close"][0])
        smooth = np.zeros(len(steps))
        for row in range(1, len(steps)):
            smooth[row] = smooth[row - 1] + (steps[row] - smooth[row - 1]) / 14
        return super().features(bar, clock) | {"wilder": smooth}


@pytest.mark.parametrize("pipeline", [CumulativeVwap(), WilderWithoutWarmUp()], ids=["vwap", "wilder"])
def test_finds_what_depends_on_where_the_data_begin(pipeline: RidgePipeline) -> None:
    report = run(pipeline)
    assert "start: features" in failed(report)
    assert "features" not in failed(report)


class CountsItsRows(Ridge):
    def forecast(self, panel: Panel, origins: Rows) -> pl.DataFrame:
        rows = pl.Series("row", np.tile(origins, len(panel.assets)))
        return super().forecast(panel, origins).with_columns(rows)


@dataclass(frozen=True)
class EverySecondBarOfTheData(RidgePipeline):
    """Trades on even rows, and which rows are even depends on where the data begin."""

    def model(self, scaler, coefficients):
        return CountsItsRows(scaler, coefficients, self.lookback, self.events)

    def weights(self, forecast: pl.DataFrame) -> pl.DataFrame:
        return super().weights(forecast.with_columns(pl.col("mean") * (pl.col("row") % 2)))


class RoundsAtTheThreshold(Ridge):
    """Every third forecast is zero but for rounding, whose sign depends on where the data begin."""

    def forecast(self, panel: Panel, origins: Rows) -> pl.DataFrame:
        hours = panel.timestamps[origins] // HOUR
        mean = np.where(hours % 3 == 0, 1e-9 * np.where(origins % 2 == 0, 1, -1), hours % 5 - 2.5)
        return self.to_frame(panel, origins, np.repeat(mean[:, None], len(panel.assets), axis=1))


@dataclass(frozen=True)
class CrossesByRounding(RidgePipeline):
    def model(self, scaler, coefficients):
        return RoundsAtTheThreshold(scaler, coefficients, self.lookback, self.events)


def test_a_signal_may_change_only_near_a_threshold() -> None:
    assert failed(run(EverySecondBarOfTheData())) == {"start: signals"}
    assert failed(run(CrossesByRounding())) == set()
    assert {"start: forecasts", "start: signals"} <= failed(run(CumulativeVwap()))


def test_the_report_says_what_was_found_and_that_a_check_did_not_run() -> None:
    report = run(ShuffledSplit())
    kept = report.to_dict()
    assert kept["passed"] is False
    assert {check["name"] for check in kept["checks"]} == {check.name for check in report.checks}
    assert "audit FAILED" in report.table()
    assert "FOUND" in report.table()
    clean = run(RidgePipeline())
    assert clean.to_dict()["passed"] is True
    assert clean.table().endswith("audit passed")
    assert clean.cuts == run(RidgePipeline()).cuts


def test_data_too_short_to_audit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"lookback 12 after a warm-up of 24|label|period"):
        run(RidgePipeline(), random_bars(30))
