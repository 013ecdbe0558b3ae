"""Splits by time: every period keeps to itself, and no training label reaches into what comes after.

A period [since, until) holds the origins whose bar opens at or after `since` and whose labels are known by `until`.
Windows may look back into earlier periods; labels may not look forward into later ones (purging; López de Prado,
"Advances in Financial Machine Learning", 2018, chapter 7). An embargo widens the gap by further bars.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from longtape.core.clock import Milliseconds, iso, to_milliseconds
from longtape.core.errors import UserError
from longtape.core.iso_time import IsoTime
from longtape.features.panel import Panel, Rows
from longtape.features.windows import first_origin

_FAR = np.iinfo(np.int64).max
PERIODS = ("training", "validation", "calibration", "test", "after the test")


class SplitConfig(BaseModel):
    """Where training, validation and test lie: fractions of the usable origins, or dates, never both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: float = Field(
        0.7, gt=0, lt=1, description="share of the usable origins for training, the earliest"
    )
    validation: float = Field(
        0.15, ge=0, lt=1, description="share after training, for early stopping and calibration; 0: none"
    )
    calibration: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the validation period, its later part, kept for intervals and the trading threshold:"
        " early stopping and penalties never see it",
    )
    train_until: IsoTime | None = Field(None, description="training labels are known by this time (UTC)")
    validation_until: IsoTime | None = Field(
        None, description="end of validation; left out: no validation period"
    )
    test_until: IsoTime | None = Field(None, description="end of the test; left out: all the rest")
    embargo: int = Field(0, ge=0, description="bars between the last label of a period and the next period")

    @model_validator(mode="after")
    def _one_way(self) -> SplitConfig:
        dates = {"train_until", "validation_until", "test_until"} & self.model_fields_set
        if dates and self.train_until is None:
            raise ValueError(f"{min(dates)} needs train_until")
        if self.train_until is not None and {"train", "validation"} & self.model_fields_set:
            raise ValueError("give fractions (train, validation) or dates (train_until, …), not both")
        if self.train_until is None and self.train + self.validation >= 1:
            raise ValueError(f"train {self.train} and validation {self.validation} leave nothing to test on")
        dated = [(name, getattr(self, name)) for name in ("train_until", "validation_until", "test_until")]
        given = [(name, to_milliseconds(when)) for name, when in dated if when is not None]
        for (first, before), (second, after) in pairwise(given):
            if after < before or (second == "test_until" and after == before):
                raise ValueError(f"{second} must come after {first}")
        return self


@dataclass(frozen=True)
class Periods:
    """The borders of a split in UTC milliseconds: training | validation | calibration | test.

    Equal borders: an empty period. Kept with a run, so that other data are never split elsewhere.
    """

    train_until: int
    calibration_from: int
    validation_until: int
    test_until: int = _FAR
    embargo: int = 0

    def __post_init__(self) -> None:
        middle = self.train_until <= self.calibration_from <= self.validation_until
        if not (middle and self.validation_until < self.test_until):
            ends = [
                iso(end) for end in (self.train_until, self.validation_until, self.test_until) if end < _FAR
            ]
            raise UserError(
                f"split: train, validation and test must end one after the other, not {', '.join(ends)}"
            )

    def period_of(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
        """In which period each time lies: training, validation, calibration, test, or after the test."""
        names = np.array(PERIODS)
        borders = [self.train_until, self.calibration_from, self.validation_until, self.test_until]
        return names[np.searchsorted(borders, times, side="right")]


@dataclass(frozen=True, eq=False)
class Split:
    """Origins (int64 rows of the panel, ascending) to train on, to stop early on, to calibrate on, to score once.

    `periods` are its borders; a fold that is trained on both sides of its test has none.
    """

    train: Rows
    validation: Rows
    calibration: Rows
    test: Rows
    periods: Periods | None = None

    @property
    def borders(self) -> Periods:
        """The borders in time; ValueError for a split that has none."""
        if self.periods is None:
            raise ValueError("this split is not one of consecutive periods")
        return self.periods

    def training_rows(self, lookback: int) -> Rows:
        """Rows that the training windows see: what a scaler may be fitted on."""
        return np.unique(_spread(self.train, lookback))


def _spread(origins: Rows, lookback: int) -> Rows:
    """All rows of the windows ending at ascending `origins`; each run of overlapping windows once."""
    runs = np.split(origins, np.flatnonzero(np.diff(origins) > 1) + 1)
    return np.concatenate([np.arange(run[0] - lookback + 1, run[-1] + 1) for run in runs])


def latest(panel: Panel, lookback: int) -> int:
    """The newest origin: the forecast past the end of the data is made there. UserError if there is no window."""
    first_origin(panel, lookback)
    return len(panel) - 1


def usable(panel: Panel, lookback: int) -> Rows:
    """Origins whose window lies past the warm-up and whose labels have all ended, some of them known; ascending."""
    if panel.targets.shape[1] == 0:
        raise UserError("split: the panel has no target; name one under targets")
    first = first_origin(panel, lookback)
    due = label_ends(panel, np.arange(first, len(panel)), auxiliary=False) <= panel.known_at[-1]
    known = due & np.isfinite(panel.targets[first:]).any(axis=1)
    if not known.any():
        raise UserError(
            f"split: no label is known after row {first} (warm-up {panel.warm_up}, lookback {lookback}) of"
            f" {len(panel)}: load more data or shorten the horizon"
        )
    return first + np.flatnonzero(known)


def periods(panel: Panel, lookback: int, config: SplitConfig) -> Periods:
    """The borders that `config` means on this panel; fractions become dates, which hold on any cut of the data."""
    opens = panel.timestamps[usable(panel, lookback)]
    if config.train_until is not None:
        train = to_milliseconds(config.train_until, "split.train_until")
        until = to_milliseconds(config.validation_until or config.train_until, "split.validation_until")
        test = _FAR if config.test_until is None else to_milliseconds(config.test_until, "split.test_until")
    else:
        train, until = (
            int(opens[min(int(len(opens) * share), len(opens) - 1)])
            for share in (config.train, config.train + config.validation)
        )
        test = _FAR
    return Periods(train, _calibration_from(opens, train, until, config), until, test, config.embargo)


def _calibration_from(opens: Rows, since: int, until: int, config: SplitConfig) -> int:
    """Where the later part of the validation period begins."""
    low, high = np.searchsorted(opens, [since, until])
    middle = high - int((high - low) * config.calibration)
    return int(opens[middle]) if middle < high else until


def chronological(panel: Panel, lookback: int, config: SplitConfig | Periods) -> Split:
    """Training, then validation, then test. UserError naming the period that is empty and why.

    Given borders instead of a configuration, a period may be empty: they come from a split of longer data. Test origins
    whose label is not yet known are left out: nothing could score them (`latest` is still forecast).
    """
    candidates = usable(panel, lookback)
    if isinstance(config, Periods):
        return _at(panel, candidates, config)
    borders = periods(panel, lookback, config)
    split = _at(panel, candidates, borders)
    asked = {"training": split.train, "test": split.test}
    if borders.validation_until > borders.train_until:
        asked |= {"validation": split.validation, "calibration": split.calibration}
    for name, rows in asked.items():
        if not len(rows):
            raise UserError(
                f"split: no origin of the {name} period has its label within it, less an embargo of {borders.embargo};"
                f" with lookback {lookback} origins run from {iso(int(panel.timestamps[candidates[0]]))} to"
                f" {iso(int(panel.timestamps[candidates[-1]]))}: make the period longer or horizons shorter"
            )
    return split


def _at(panel: Panel, candidates: Rows, borders: Periods) -> Split:
    def between(since: int, until: int, gap: int, ends: Milliseconds) -> Rows:
        inside = (opens >= since) & (ends <= _earlier(panel, until, gap))
        return candidates[inside]

    opens, learnt = panel.timestamps[candidates], label_ends(panel, candidates)
    forecast = label_ends(panel, candidates, auxiliary=False)  # all that is scored or calibrated
    return Split(
        between(-_FAR, borders.train_until, borders.embargo, learnt),
        between(borders.train_until, borders.calibration_from, borders.embargo, learnt),
        between(borders.calibration_from, borders.validation_until, borders.embargo, forecast),
        between(borders.validation_until, borders.test_until, 0, forecast),
        borders,
    )


def _earlier(panel: Panel, time: int, bars: int) -> int:
    """The time `bars` rows before `time`."""
    if bars == 0:
        return time
    row = int(np.searchsorted(panel.timestamps, time)) - bars
    return int(panel.timestamps[row]) if row >= 0 else -_FAR


def label_ends(panel: Panel, origins: Rows, auxiliary: bool = True) -> Milliseconds:
    """When the last label of each origin is known [n], UTC milliseconds, with or without those that are only learnt."""
    counted = [k for k, target in enumerate(panel.target_columns) if auxiliary or not target.auxiliary]
    return panel.target_ends[origins][:, counted].max(axis=1)


class WalkForwardConfig(BaseModel):
    """Refit and go on: the test period in `n_folds` blocks, each forecast by a model fitted on what came before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_folds: int = Field(5, ge=1, description="test blocks of equal length")
    window: Literal["expanding", "rolling"] = Field(
        "expanding",
        description="train on everything before the block, or on as many bars as the first fold had",
    )


def walk_forward(panel: Panel, lookback: int, split: SplitConfig, config: WalkForwardConfig) -> list[Split]:
    """One split per test block, in order; every origin of the test period of `split` lies in exactly one block.

    Each fold keeps the shares of validation and calibration that `split` has before its test period. Borders between
    blocks cut training, validation and calibration labels; a test label may end in a later block.
    """
    origins = usable(panel, lookback)
    whole = chronological(panel, lookback, split)
    opens = panel.timestamps[origins]
    before, first = np.searchsorted(opens, [whole.borders.train_until, whole.borders.validation_until])
    share = (first - before) / max(first, 1)
    folds = []
    for number, block in enumerate(_blocks(whole.test, config.n_folds)):
        stop = int(np.searchsorted(origins, block[0]))
        begin = stop - first if config.window == "rolling" else 0
        borders = _fold_borders(opens, begin, stop, share, split, whole.borders.test_until)
        fold = _at(panel, origins[begin:], borders)
        if not len(fold.train) or (share > 0 and not (len(fold.validation) and len(fold.calibration))):
            raise UserError(
                f"walk-forward: fold {number + 1} has nothing to train on; use fewer folds or more data"
            )
        folds.append(replace(fold, test=block))
    return folds


def _blocks(test: Rows, count: int) -> list[Rows]:
    blocks = np.array_split(test, count)
    if len(blocks[-1]) == 0:
        raise UserError(f"walk-forward: {len(test)} test origins cannot make {count} folds; name fewer")
    return blocks


def _fold_borders(
    opens: Rows, begin: int, stop: int, share: float, split: SplitConfig, test_until: int
) -> Periods:
    trained = stop - round((stop - begin) * share)
    train, until = int(opens[trained]), int(opens[stop])
    middle = _calibration_from(opens, train, until, split)
    return Periods(train, middle, until, test_until, split.embargo)


def purged_kfold(panel: Panel, lookback: int, n_folds: int, embargo: int = 0) -> list[Split]:
    """Each block of time is tested once, trained on both sides of it, without overlap of labels.

    Origins before the block keep their labels' end at or before its first open; origins after it begin when the last
    label of the block is known, `embargo` bars later. For choosing options, not for a track record: it trains on the
    future. There is no validation part.
    """
    origins = usable(panel, lookback)
    if not 2 <= n_folds <= len(origins):
        raise UserError(
            f"purged k-fold: {n_folds} folds of {len(origins)} usable origins; take 2 to {len(origins)}"
        )
    ends, folds = label_ends(panel, origins), []
    for block in np.array_split(np.arange(len(origins)), n_folds):
        begin, end = int(panel.timestamps[origins[block[0]]]), int(ends[block].max())
        before = ends <= _earlier(panel, begin, embargo)
        resume = int(np.searchsorted(panel.timestamps, end)) + embargo
        train = origins[before | (origins >= resume)]
        if not len(train):
            raise UserError(f"purged k-fold: {n_folds} folds leave nothing to train on; use more data")
        nothing = np.empty(0, np.int64)
        folds.append(Split(train, nothing, nothing, origins[block]))
    return folds
