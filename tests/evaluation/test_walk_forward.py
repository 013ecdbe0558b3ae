"""Walk-forward: every tested origin once, from a model that saw nothing of it; folds kept and resumed, never half."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from longtape.core.errors import UserError
from longtape.evaluation.walk_forward import walk_forward
from longtape.features.splits import WalkForwardConfig, chronological
from tests.evaluation.ridge_pipeline import FOLDED, HORIZON, RidgePipeline, random_bars

FOLDS = WalkForwardConfig(n_folds=4)
IDENTITY = {"experiment": "ridge", "fingerprints": {"test/spot/AAA": "1"}}
BARS = random_bars(500)


@dataclass(frozen=True)
class Counting(RidgePipeline):
    """Counts its fits, and stops like Ctrl-C in the fit of the given number."""

    fits: list[tuple[int, int]] = field(default_factory=list)
    stop_at: int = 0

    def fit(self, panel, split):
        self.fits.append((int(split.train[0]), int(split.train[-1])))
        if len(self.fits) == self.stop_at:
            raise KeyboardInterrupt
        return super().fit(panel, split)


def walk(out, pipeline=None, **options):
    options = {"identity": IDENTITY, **options}
    return walk_forward(pipeline or RidgePipeline(), BARS, options.pop("config", FOLDS), out, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


COMPLETE = [*(f"fold-0{n}.parquet" for n in (1, 2, 3, 4)), "plan.json"]


def test_every_tested_origin_is_forecast_once_and_in_order_of_time(tmp_path):
    walked = walk(tmp_path)
    tested = chronological(walked.panel, RidgePipeline().lookback, FOLDED).test
    assert np.array_equal(np.concatenate([fold.test for fold in walked.folds]), tested)
    for symbol in ("AAA", "BBB"):
        mine = walked.forecasts.filter(pl.col("symbol") == symbol)
        assert mine["timestamp"].dt.timestamp("ms").to_list() == walked.panel.timestamps[tested].tolist()
    assert walked.forecasts.height == 2 * len(tested)


def test_forecasts_are_those_of_a_model_fitted_on_the_past_of_its_fold(tmp_path):
    pipeline, walked = RidgePipeline(), walk(tmp_path)
    by_hand = []
    for fold in walked.folds:
        assert walked.panel.target_ends[fold.train].max() <= walked.panel.timestamps[fold.validation[0]]
        assert walked.panel.target_ends[fold.validation].max() <= walked.panel.timestamps[fold.test[0]]
        by_hand.append(pipeline.fit(walked.panel, fold).forecast(walked.panel, fold.test))
    assert_frame_equal(walked.forecasts, pl.concat(by_hand), check_exact=True)


def test_changing_a_later_bar_leaves_the_forecasts_before_it_alone(tmp_path):
    before = walk(tmp_path / "a")
    border = before.folds[2].test[0]
    changed = [
        type(one)(one.instrument, one.interval, _doubled_after(one.frame, before.panel.timestamps[border]))
        for one in BARS
    ]
    after = walk_forward(RidgePipeline(), changed, FOLDS, tmp_path / "b", identity=IDENTITY)
    earlier = pl.col("timestamp").dt.timestamp("ms") < int(before.panel.timestamps[border])
    columns = ["timestamp", "symbol", "mean"]
    assert_frame_equal(
        before.forecasts.filter(earlier)[columns], after.forecasts.filter(earlier)[columns], check_exact=True
    )
    assert not before.forecasts["mean"].equals(after.forecasts["mean"])


def _doubled_after(frame, time):
    late = pl.col("timestamp").dt.timestamp("ms") >= int(time)
    return frame.with_columns(
        pl.when(late).then(pl.col(name) * 2).otherwise(pl.col(name)).alias(name)
        for name in ("open", "high", "low", "close")
    )


def test_a_fold_whose_file_is_gone_is_the_only_one_fitted_again_with_the_same_bits(tmp_path):
    walk(tmp_path)
    whole = files(tmp_path)
    (tmp_path / "fold-03.parquet").unlink()
    again = Counting()
    walked = walk(tmp_path, again, resume=True)
    assert again.fits == [(int(walked.folds[2].train[0]), int(walked.folds[2].train[-1]))]
    assert files(tmp_path) == whole


def test_resuming_a_finished_walk_fits_nothing_and_gives_the_same_record(tmp_path):
    first, again = walk(tmp_path), Counting()
    second = walk(tmp_path, again, resume=True)
    assert again.fits == []
    assert_frame_equal(first.forecasts, second.forecasts, check_exact=True)


def test_an_interruption_leaves_whole_folds_and_resuming_goes_on_from_there(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path / "cut", Counting(stop_at=3))
    assert names(tmp_path / "cut") == ["fold-01.parquet", "fold-02.parquet", "plan.json"]
    again = Counting()
    walk(tmp_path / "cut", again, resume=True)
    assert len(again.fits) == 2
    walk(tmp_path / "whole")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_fold_that_fails_while_it_is_written_leaves_no_file_of_that_fold(tmp_path, monkeypatch):
    write, written = pl.DataFrame.write_parquet, []

    def breaking(frame, path, **options):
        write(frame, path, **options)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pl.DataFrame, "write_parquet", breaking)
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path)
    assert names(tmp_path) == ["fold-01.parquet", "plan.json"]


def test_what_a_killed_process_left_beside_does_not_count_as_a_fold(tmp_path):
    walk(tmp_path)
    whole = files(tmp_path)
    (tmp_path / "fold-02.parquet").rename(tmp_path / ".fold-02.parquet.x.partial")
    again = Counting()
    walk(tmp_path, again, resume=True)
    assert len(again.fits) == 1
    assert {name: content for name, content in files(tmp_path).items() if name[0] != "."} == whole


def test_a_folder_that_is_there_is_not_touched_without_resume(tmp_path):
    walk(tmp_path)
    whole = files(tmp_path)
    with pytest.raises(UserError, match="already and not empty; go on with --resume"):
        walk(tmp_path, Counting(stop_at=1))
    assert files(tmp_path) == whole


@pytest.mark.parametrize(
    "other",
    [
        {"identity": {**IDENTITY, "experiment": "another"}},
        {"identity": {**IDENTITY, "fingerprints": {"test/spot/AAA": "2"}}},
        {"config": WalkForwardConfig(n_folds=3)},
        {"config": WalkForwardConfig(n_folds=4, window="rolling")},
    ],
    ids=["experiment", "data", "folds", "window"],
)
def test_resuming_refuses_what_was_made_by_something_else(tmp_path, other):
    walk(tmp_path)
    whole = files(tmp_path)
    with pytest.raises(UserError, match="was not made by this experiment on these data"):
        walk(tmp_path, resume=True, **other)
    assert files(tmp_path) == whole


def test_resuming_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="was not made by this experiment"):
        walk(tmp_path, resume=True)
    assert names(tmp_path) == ["notes.txt"]


def test_resume_on_a_new_folder_begins(tmp_path):
    walk(tmp_path / "new", resume=True)
    assert names(tmp_path / "new") == COMPLETE


def test_a_rolling_window_moves_and_an_expanding_one_grows(tmp_path):
    grown = walk(tmp_path / "a").folds
    moved = walk(tmp_path / "b", config=WalkForwardConfig(n_folds=4, window="rolling"))
    assert len({int(fold.train[0]) for fold in grown}) == 1
    starts = [int(fold.train[0]) for fold in moved.folds]
    assert starts == sorted(set(starts))
    lengths = [len(fold.train) + len(fold.validation) + len(fold.calibration) for fold in moved.folds]
    # Holes in the bars take no origins here; purging takes the same number from every fold.
    assert max(lengths) - min(lengths) <= 2 * HORIZON


def test_the_table_says_what_each_fold_saw(tmp_path):
    walked = walk(tmp_path)
    rows = walked.table()
    assert [row["fold"] for row in rows] == [1, 2, 3, 4]
    assert sum(row["forecasts"] for row in rows) == walked.forecasts.height // 2
    for row, fold in zip(rows, walked.folds, strict=True):
        assert row["trained on windows"] == len(fold.train)
        assert row["trained until"] <= row["first forecast"] < row["last forecast"]
