"""Audit: does anything that is decided at a time depend on what comes after it, or on where the data begin?

Two experiments, made on the pipeline as it stands and judged by what comes out of it:
the data are cut at a time t, and everything after t is replaced, at many t, and whatever belongs to t or earlier must
keep its bits; and the first bars loaded are dropped or replaced, and beyond the declared warm-up nothing may move by
more than rounding. It needs no knowledge of how a feature, a model or a fill is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import polars as pl

from longtape.core.clock import iso
from longtape.core.errors import UserError
from longtape.core.progress import progress, silently
from longtape.evaluation.audit_report import OF_A_REACH, OF_TRADING, QUESTIONS, AuditReport, Check
from longtape.evaluation.audit_start import Start, check_start
from longtape.evaluation.differences import array_difference, frame_difference, other_bits
from longtape.evaluation.perturbation import (
    change_after,
    change_before,
    cut_after,
    cut_before,
    resume_rows,
)
from longtape.evaluation.protocol import Fitted, Pipeline
from longtape.features.panel import Panel, Rows
from longtape.features.splits import Split, label_ends
from longtape.features.windows import first_origin
from longtape.market.rows import Rows as MarketRows
from longtape.models.base import ALL_ROWS

__all__ = ["AuditReport", "audit"]


def audit(
    pipeline: Pipeline,
    bars: Sequence[MarketRows],
    *,
    fitted: Fitted | None = None,
    n_cuts: int = 6,
    n_feature_cuts: int = 32,
    n_origins: int = 32,
    seed: int = 0,
) -> AuditReport:
    """Audit `pipeline` on `bars`; `fitted` is its model trained on these bars (fitted here when left out).

    `n_cuts` times after the training rows for everything, `n_feature_cuts` more over the whole data for features and
    labels, `n_origins` forecasts on either side of each cut; times are drawn with `seed`. Split, scaler and features
    are computed again on the cut data; trained weights are kept. UserError where the data are too short to audit.
    """
    study = _Study(pipeline, bars, n_origins, seed, fitted)
    left_out = study.left_out
    checks = {name: Check(name) for name in QUESTIONS if name not in left_out}
    _check_split(checks["split"], study)
    rows, feature_rows = study.cut_rows(n_cuts), study.feature_rows(n_feature_cuts)
    work: list[Callable[[], None]] = [
        partial(_judge_row, checks, study, row, row in rows) for row in sorted({*feature_rows, *rows})
    ]
    work += [
        partial(check_start, checks, pipeline, study.panel, study.fitted, start, n_origins)
        for start in study.other_starts()
    ]
    with progress("audit", len(work), "experiments") as bar:
        for experiment in work:
            with silently():
                experiment()
            bar.advance()
    if not rows:
        for name in {"inputs", "forecasts", "signals", "fills"} & set(checks):
            checks[name].note = "no bars after the last training label: there is nowhere to cut"
    return AuditReport(tuple(checks.values()), tuple(int(study.panel.known_at[row]) for row in rows))


def _judge_row(checks: dict[str, Check], study: _Study, row: int, decide: bool) -> None:
    """Features and labels up to `row` under another future, and what is decided on them too where asked."""
    base = study.decisions(row) if decide else None
    for future in study.futures(row, decide):
        _check_panel(checks["features"], checks["targets"], study, future)
        if base is not None:
            _check_decisions(checks, study, future, base)


@dataclass(frozen=True)
class _Future:
    """Data that end at, or go on differently after, the close of panel row `row`."""

    row: int
    time: int
    is_cut: bool
    bars: list[MarketRows]
    pipeline: Pipeline

    @cached_property
    def panel(self) -> Panel:
        return self.pipeline.panel(self.bars)

    @property
    def n_rows(self) -> int:
        """Rows up to the cut; fewer where the cut falls into a hole, which nothing has filled yet."""
        return min(self.row + 1, len(self.panel))

    @property
    def when(self) -> str:
        return f"when the data after {iso(self.time)} are {'cut off' if self.is_cut else 'changed'}"


class _Study:
    """The pipeline, what it makes of all the data, and where to cut them."""

    def __init__(
        self, pipeline: Pipeline, bars: Sequence[MarketRows], n_origins: int, seed: int, fitted: Fitted | None
    ) -> None:
        self.pipeline, self.bars, self.n_origins = pipeline, list(bars), n_origins
        self.draw = np.random.default_rng(seed)
        self.panel = pipeline.panel(self.bars)
        self.split = pipeline.split(self.panel)
        self.first = first_origin(self.panel, pipeline.lookback)
        self.fitted = fitted or pipeline.fit(self.panel, self.split)
        self.learned = int(label_ends(self.panel, self.split.train).max())
        if len(self.panel) < self.first + 4:
            raise UserError(f"audit: {len(self.panel)} rows leave no room to cut behind row {self.first}")
        available = len(self.panel) - self.first - 2
        self.starts = sorted({k for k in (1, 17, self.pipeline.lookback + 5) if k < available})

    @property
    def is_traded(self) -> bool:
        """False where the forecasts become no weights."""
        newest = self.fitted.forecast(self.panel, np.array([len(self.panel) - 1]))
        return len(self.pipeline.weights(newest).columns) > 1

    @property
    def left_out(self) -> set[str]:
        """Checks that ask for what this pipeline does not promise."""
        reaches_all = self.fitted.reach >= ALL_ROWS
        return {*(() if self.is_traded else OF_TRADING), *(OF_A_REACH if reaches_all else ())}

    def cut_rows(self, n: int) -> list[int]:
        """Rows after the training rows, spread over what follows, no two at the same phase of a day or a longer bar."""
        low = max(int(np.searchsorted(self.panel.known_at, self.learned)), self.first)
        return self._spread(low, n)

    def feature_rows(self, n: int) -> list[int]:
        """Rows over the whole data, where data resume after a hole, and where events begin to show."""
        resumed = resume_rows(self.panel.timestamps, self.bars, 16)
        return sorted({*self._spread(self.panel.warm_up, n), *resumed, *self._event_rows(16)})

    def _spread(self, low: int, n: int) -> list[int]:
        edges = np.linspace(low, len(self.panel) - 1, n + 1).astype(int)
        drawn = {self._last_at_its_time(int(self.draw.integers(a, b))) for a, b in pairwise(edges) if a < b}
        return sorted(row for row in drawn if row < len(self.panel) - 1)

    def _last_at_its_time(self, row: int) -> int:
        """Events of one moment stand or fall together."""
        times = self.panel.timestamps
        return int(np.searchsorted(times, times[row], side="right")) - 1

    def _event_rows(self, limit: int) -> list[int]:
        """Rows at which what the pipeline holds beside bars begins to matter."""
        nothing = self.pipeline.as_of(-(2**62))
        if nothing is self.pipeline:
            return []
        other = nothing.panel(self.bars)
        if other.values.shape != self.panel.values.shape:
            raise UserError("audit: without its events the pipeline makes a panel of another shape")
        touched = np.asarray(other_bits(self.panel.values, other.values).any(axis=1))
        begins = np.flatnonzero(touched & ~np.concatenate([[False], touched[:-1]]))
        begins = begins[begins < len(self.panel) - 1]
        return begins[np.linspace(0, len(begins) - 1, min(limit, len(begins))).astype(int)].tolist()

    def futures(self, row: int, cut: bool) -> Iterator[_Future]:
        """The data changed after `row`, and, where the rest is long enough to work on, cut there."""
        time = int(self.panel.known_at[row])
        seed = int(self.draw.integers(2**31))
        known = self.pipeline.as_of(time)
        yield _Future(row, time, False, change_after(self.bars, time, seed), known)
        if cut:
            yield _Future(row, time, True, cut_after(self.bars, time), known)

    def other_starts(self) -> Iterator[Start]:
        """The first bars dropped, and the first bars replaced."""
        for k in self.starts:
            time = int(self.panel.timestamps[k])
            first = k + self.panel.warm_up
            yield Start(f"the first {k} bars are dropped", cut_before(self.bars, time), first)
            yield Start(f"the first {k} bars are replaced", change_before(self.bars, time, k), first)

    def around(self, row: int) -> Rows:
        """Origins on both sides of `row`."""
        return np.arange(
            max(self.first, row - self.n_origins + 1), min(row + self.n_origins, len(self.panel) - 1) + 1
        )

    def decisions(self, row: int) -> _Decisions:
        """What the pipeline decides around `row` on all the data."""
        return _Decisions.of(self.pipeline, self.fitted, self.panel, self.around(row), self.bars)


def _check_split(check: Check, study: _Study) -> None:
    panel, split = study.panel, study.split
    check.compared = len(split.train) + len(split.validation) + len(split.calibration)
    parts = [
        ("training", split.train, (split.validation, split.calibration, split.test)),
        ("validation", split.validation, (split.calibration, split.test)),
        ("calibration", split.calibration, (split.test,)),
    ]
    for name, rows, later in parts:
        decisions = [int(panel.known_at[other].min()) for other in later if len(other)]
        if not decisions or not len(rows):
            continue
        ends = label_ends(panel, rows, auxiliary=name != "calibration")
        late = ends > min(decisions)
        if late.any():
            row = rows[int(late.argmax())]
            check.found(
                f"{int(late.sum())} {name} labels",
                panel.timestamps[row],
                f"end after {iso(min(decisions))}, the first decision of what follows",
            )


def _check_panel(features: Check, targets: Check, study: _Study, future: _Future) -> None:
    """Rows up to the cut: same clock, same features, same labels where they are known."""
    base, other, n = study.panel, future.panel, future.n_rows
    moved = array_difference(base.timestamps[:n], other.timestamps[:n])
    if moved is not None or other.columns != base.columns:
        row = moved[0][0] if moved else 0
        features.found("the clock", base.timestamps[row], f"other rows or columns {future.when}")
        return
    old, new = base.values[base.warm_up : n], other.values[base.warm_up : n]
    features.compared += old.size
    differ = other_bits(old, new)
    for column in np.flatnonzero(differ.any(axis=0)):
        row = int(differ[:, column].argmax())
        detail = f"{old[row, column]:.9g} → {new[row, column]:.9g} {future.when}"
        features.found(f"feature '{base.columns[column]}'", base.timestamps[base.warm_up + row], detail)
    _check_labels(targets, study, future)


def _check_labels(check: Check, study: _Study, future: _Future) -> None:
    base, other, n = study.panel, future.panel, future.n_rows
    known = base.targets_known[:n] <= min(future.time, int(other.known_at[-1]))
    differ = known & other_bits(base.targets[:n], other.targets[:n])
    early = (base.target_ends[:n] > future.time) & np.isfinite(other.targets[:n]) & future.is_cut
    check.compared += int(known.sum())
    for column, target in enumerate(base.target_columns):
        name = f"label {target.name} of {target.asset}"
        for wrong, what in (
            (differ, "known label has other bits"),
            (early, "label has a value before its end"),
        ):
            if wrong[:, column].any():
                row = int(wrong[:, column].argmax())
                check.found(name, base.timestamps[row], f"{what} {future.when}")


@dataclass(frozen=True)
class _Decisions:
    """What follows from a panel for some origins: forecasts, weights, trades."""

    forecast: pl.DataFrame
    weights: pl.DataFrame
    fills: pl.DataFrame

    @classmethod
    def of(
        cls, pipeline: Pipeline, fitted: Fitted, panel: Panel, origins: Rows, bars: Sequence[MarketRows]
    ) -> _Decisions:
        forecast = fitted.forecast(panel, origins)
        weights = pipeline.weights(forecast)
        span = _between(bars, panel.timestamps[origins[0]], panel.timestamps[origins[-1]])
        return cls(forecast, weights, pipeline.fills(weights, span))


def _between(bars: Sequence[MarketRows], first: int, last: int) -> list[MarketRows]:
    return [one.between(int(first), int(last) + 1) for one in bars]


def _check_decisions(checks: dict[str, Check], study: _Study, future: _Future, base: _Decisions) -> None:
    """Scaler and inputs, forecasts, weights and trades up to the cut."""
    other, origins = future.panel, study.around(future.row)
    past = origins[origins < future.n_rows]
    split = future.pipeline.split(other, study.split.periods)
    fitted = future.pipeline.rescaled(study.fitted, other, split.train)
    if len(past) == 0:
        return
    _check_inputs(checks["inputs"], study, future, fitted, split, past)
    seen = past if future.is_cut else origins
    new = _Decisions.of(future.pipeline, fitted, other, seen, future.bars)
    last = int(study.panel.timestamps[past[-1]])
    for name, old_frame, new_frame in (
        ("forecasts", base.forecast, new.forecast),
        ("signals", base.weights, new.weights),
        ("fills", base.fills, new.fills),
    ):
        if name in checks:
            old, later = (_until(frame, last, future.time) for frame in (old_frame, new_frame))
            _check_frames(checks[name], old, later, future.when)
    if not future.is_cut and "fills" in checks:
        _check_fill_times(checks["fills"], study, base, origins, last)


def _check_inputs(
    check: Check, study: _Study, future: _Future, fitted: Fitted, split: Split, past: Rows
) -> None:
    trained = study.panel.timestamps[study.split.train]
    moved = array_difference(trained, future.panel.timestamps[split.train])
    if moved is not None:
        check.found("training origins", trained[0], f"{moved[1]} {future.when}")
    old, new = study.fitted.inputs(study.panel, past), fitted.inputs(future.panel, past)
    for name, values in old.items():
        check.compared += values.size
        moved = array_difference(values, new[name])
        if moved is not None:
            place, change = moved
            detail = f"{change} at {list(place[1:])} {future.when}"
            check.found(f"model input '{name}'", study.panel.timestamps[past[place[0]]], detail)


def _until(frame: pl.DataFrame, time: int, known: int | None = None) -> pl.DataFrame:
    """Rows up to `time`. What happened (`actual`, `crps`) is no forecast and comes later by its nature; so does the end
    of a label that has not ended when the data are `known`, where bars that will be missing, or events, decide it.
    """
    rows = frame.filter(pl.col("timestamp").dt.timestamp("ms") <= time).drop("actual", "crps", strict=False)
    if known is None or "end" not in rows.columns:
        return rows
    return rows.with_columns(pl.when(pl.col("end").dt.timestamp("ms") <= known).then("end").alias("end"))


def _check_frames(check: Check, old: pl.DataFrame, new: pl.DataFrame, when: str) -> None:
    check.compared += max(old.height, 1) * old.width
    moved = frame_difference(old, new)
    if moved is None:
        return
    row, change = moved
    longer = old if old.height > row else new
    name = (
        f"{check.name.rstrip('s')} of {longer['symbol'][row]}" if "symbol" in longer.columns else check.name
    )
    check.found(name, int(longer["timestamp"].dt.timestamp("ms")[row]), f"{change} {when}")


def _check_fill_times(check: Check, study: _Study, base: _Decisions, origins: Rows, last: int) -> None:
    """Decide otherwise at the close of the bar that opens at `last`: no trade in it or before may change."""
    decided = pl.col("timestamp").dt.timestamp("ms") == last
    symbols = [name for name in base.weights.columns if name != "timestamp"]
    otherwise = base.weights.with_columns(
        pl.when(decided)
        .then(pl.when(pl.col(name) == 0).then(0.5).otherwise(0.0))
        .otherwise(pl.col(name))
        .alias(name)
        for name in symbols
    )
    span = _between(study.bars, study.panel.timestamps[origins[0]], study.panel.timestamps[origins[-1]])
    fills = study.pipeline.fills(otherwise, span)
    when = (
        f"when the weights decided at the close of the bar {iso(last)} are others: filled before the decision"
    )
    _check_frames(check, _until(base.fills, last), _until(fills, last), when)
