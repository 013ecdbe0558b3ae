"""Periods keep to themselves: no label of an earlier one is known after a later one begins."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longtape.core.clock import HOUR, iso, to_milliseconds
from longtape.core.errors import UserError
from longtape.features.build import FeaturesConfig, build
from longtape.features.splits import (
    Split,
    SplitConfig,
    WalkForwardConfig,
    chronological,
    label_ends,
    latest,
    periods,
    purged_kfold,
    usable,
    walk_forward,
)
from longtape.market.files import read_bars
from tests.features.panels import START, clocked_panel, counting_panel
from tests.shared_data import shared


def assert_purged(panel, split: Split) -> None:
    """No label of a part is known after the first decision of a later part."""
    for earlier, later in (
        (split.train, split.validation),
        (split.train, split.calibration),
        (split.train, split.test),
        (split.validation, split.calibration),
        (split.validation, split.test),
        (split.calibration, split.test),
    ):
        if len(earlier) and len(later):
            assert label_ends(panel, earlier).max() <= panel.known_at[later].min()


@given(
    n=st.integers(60, 400),
    horizon=st.integers(1, 20),
    lookback=st.integers(1, 30),
    embargo=st.integers(0, 10),
    train=st.floats(0.3, 0.7),
    validation=st.floats(0.0, 0.25),
)
@settings(max_examples=60, deadline=None)
def test_fractions(
    n: int, horizon: int, lookback: int, embargo: int, train: float, validation: float
) -> None:
    panel = counting_panel(n, horizon)
    try:
        split = chronological(
            panel, lookback, SplitConfig(train=train, validation=validation, embargo=embargo)
        )
    except UserError:
        assume(False)
    assert_purged(panel, split)
    first = panel.warm_up + lookback - 1
    for rows in (split.train, split.validation, split.calibration, split.test):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
        assert not len(rows) or rows[0] >= first
        assert np.isfinite(panel.targets[rows]).all()
    assert split.test[-1] == n - horizon - 1
    if embargo and len(split.validation):
        assert label_ends(panel, split.train).max() <= panel.timestamps[split.validation[0] - embargo]


def test_dates_are_exact() -> None:
    panel = counting_panel(24 * 30, horizon=24)
    config = SplitConfig(train_until="2024-01-15", validation_until="2024-01-20", test_until="2024-01-28")
    split = chronological(panel, 10, config)
    times = [
        iso(int(panel.timestamps[row]))
        for part in (split.train, split.validation, split.calibration, split.test)
        for row in part[[0, -1]]
    ]
    assert times == [
        "2024-01-01 11:00Z",
        "2024-01-13 23:00Z",  # its label is known at 2024-01-15 00:00
        "2024-01-15 00:00Z",
        "2024-01-16 11:00Z",  # the later half of validation is kept for calibration
        "2024-01-17 12:00Z",
        "2024-01-18 23:00Z",
        "2024-01-20 00:00Z",
        "2024-01-26 23:00Z",
    ]


def test_dates_come_from_yaml_as_they_are_written() -> None:
    read = yaml.safe_load("train_until: 2024-01-15\nvalidation_until: 2024-01-20 12:00:00")
    assert SplitConfig(**read).train_until == "2024-01-15"
    assert SplitConfig(train_until=date(2024, 1, 15)) == SplitConfig(train_until="2024-01-15")
    assert SplitConfig(
        **yaml.safe_load(
            yaml.safe_dump(SplitConfig(**read).model_dump(exclude_none=True, exclude={"train", "validation"}))
        )
    ) == SplitConfig(**read)


def test_borders_hold_when_the_data_are_cut() -> None:
    panel, longer = counting_panel(300), counting_panel(400)
    borders = periods(longer, 10, SplitConfig())
    full, cut = (chronological(p, 10, borders) for p in (longer, panel))
    np.testing.assert_array_equal(full.train, cut.train)
    assert len(cut.test) == 0
    assert chronological(longer, 10, SplitConfig()).periods == borders


def test_unknown_labels_are_not_scored_but_the_newest_window_is_there() -> None:
    panel = counting_panel(500, horizon=24)
    assert chronological(panel, 10, SplitConfig()).test[-1] == 475
    assert latest(panel, 10) == 499


def test_origins_without_a_label_are_left_out() -> None:
    panel = counting_panel(300)
    panel.targets[100:110] = np.nan
    assert not set(range(100, 110)) & set(usable(panel, 10).tolist())


def test_the_rows_a_scaler_may_see() -> None:
    nothing = np.empty(0, np.int64)
    split = Split(np.array([10, 11, 40]), nothing, nothing, np.array([60]))
    assert split.training_rows(3).tolist() == [8, 9, 10, 11, 38, 39, 40]


@pytest.mark.parametrize("window", ["expanding", "rolling"])
@pytest.mark.parametrize("horizon", [1, 12])
def test_walk_forward_tests_every_row_of_the_test_period_once(window: str, horizon: int) -> None:
    panel = counting_panel(1_000, horizon)
    split = SplitConfig(train=0.5, validation=0.1, embargo=2)
    folds = walk_forward(panel, 20, split, WalkForwardConfig(n_folds=7, window=window))
    tested = np.concatenate([fold.test for fold in folds])
    np.testing.assert_array_equal(tested, chronological(panel, 20, split).test)
    for fold in folds:
        assert_purged(panel, fold)
        assert label_ends(panel, fold.train).max() <= panel.timestamps[fold.validation[0] - 2]
        kept = len(fold.validation) + len(fold.calibration)
        assert kept / (kept + len(fold.train)) == pytest.approx(0.1 / 0.6, abs=0.07)
    starts = [int(fold.train[0]) for fold in folds]
    assert (len(set(starts)) == 1) == (window == "expanding")
    lengths = [len(fold.train) for fold in folds]
    assert max(lengths) - min(lengths) <= 1 if window == "rolling" else lengths == sorted(lengths)


def test_walk_forward_keeps_to_the_dates_of_the_split() -> None:
    panel = counting_panel(24 * 60)
    dates = {"train_until": "2024-01-20", "validation_until": "2024-01-30", "test_until": "2024-02-10"}
    split = SplitConfig(**dates)
    folds = walk_forward(panel, 10, split, WalkForwardConfig(n_folds=3))
    tested = np.concatenate([fold.test for fold in folds])
    assert iso(int(panel.timestamps[tested[0]])) == "2024-01-30 00:00Z"
    assert label_ends(panel, tested).max() <= to_milliseconds("2024-02-10")


@pytest.mark.parametrize("embargo", [0, 15])
def test_purged_kfold_tests_every_row_once_and_shares_no_label(embargo: int) -> None:
    panel = counting_panel(600, horizon=12)
    folds = purged_kfold(panel, 20, 5, embargo)
    np.testing.assert_array_equal(np.concatenate([fold.test for fold in folds]), usable(panel, 20))
    for fold in folds:
        test_begin, test_end = panel.timestamps[fold.test[0]], label_ends(panel, fold.test).max()
        before, after = fold.train[fold.train < fold.test[0]], fold.train[fold.train > fold.test[-1]]
        assert (label_ends(panel, before) <= test_begin - embargo * HOUR).all()
        assert (panel.timestamps[after] >= test_end + embargo * HOUR).all()
        assert len(before) + len(after) > 380


def test_irregular_clocks_are_purged_by_time_and_not_by_rows() -> None:
    """A label over a weekend ends days later."""
    hours = np.concatenate([np.arange(0, 100), np.arange(160, 260), np.arange(320, 420)])
    panel = clocked_panel(START + HOUR * hours, np.zeros((300, 1), np.float32), np.zeros((300, 1)), horizon=6)
    for fold in walk_forward(panel, 5, SplitConfig(), WalkForwardConfig(n_folds=3)):
        assert_purged(panel, fold)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"train": 0.8, "validation": 0.2}, "leave nothing to test on"),
        ({"train": 0.8, "train_until": "2024-01-05"}, "not both"),
        ({"validation_until": "2024-01-05"}, "validation_until needs train_until"),
        ({"train_until": "soon"}, "'soon' is not a time"),
        ({"purge": 3}, "Extra inputs are not permitted"),
        ({"train_until": "2024-01-05", "validation_until": "2024-01-04"}, "must come after train_until"),
        ({"train_until": "2024-01-05", "test_until": "2024-01-05"}, "must come after train_until"),
    ],
)
def test_a_split_that_means_nothing_is_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SplitConfig(**options)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (
            SplitConfig(train_until="2023-01-01", validation_until="2024-01-05"),
            "no origin of the training period",
        ),
        (
            SplitConfig(train_until="2024-01-05", validation_until="2024-01-05T05:00", embargo=10),
            "validation period",
        ),
        (
            SplitConfig(train_until="2024-01-05", validation_until="2030-01-01"),
            "no origin of the test period",
        ),
    ],
)
def test_an_empty_period_is_one_line(config: SplitConfig, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        chronological(counting_panel(24 * 14), 10, config)
    assert "\n" not in str(raised.value)


def test_too_little_data_is_one_line() -> None:
    with pytest.raises(UserError, match="lookback 300 after a warm-up"):
        chronological(counting_panel(200), 300, SplitConfig())
    with pytest.raises(UserError, match="no label is known"):
        chronological(counting_panel(200, horizon=195), 10, SplitConfig())
    with pytest.raises(UserError, match="cannot make 50 folds"):
        walk_forward(counting_panel(150), 10, SplitConfig(), WalkForwardConfig(n_folds=50))
    with pytest.raises(UserError, match="take 2 to"):
        purged_kfold(counting_panel(60), 10, 1)


def test_hourly_bitcoin_gives_the_known_numbers_of_origins() -> None:
    """720 hours of past, the next 24 hours as label, the last candle unfinished: 27,878 to train on, 16,119 to test."""
    bars = read_bars(shared("candles_1h_bybit_linear/BTCUSDT.parquet"), symbol="BTCUSDT", interval="1h")
    finished = bars.between(until=int(bars.timestamps[-1]))
    panel = build([finished], FeaturesConfig(features=["log_return(720)"], targets=["return(24)"]))
    split = chronological(panel, 1, SplitConfig(train_until="2023-07-01"))
    assert (len(split.train), len(split.validation), len(split.test)) == (27_878, 0, 16_119)
    assert iso(int(panel.timestamps[split.test[-1]])) == "2025-05-02 14:00Z"
