"""The book level by level, and classes whose borders come from the training rows."""

import numpy as np
import polars as pl
import pytest

from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.features.book_targets import classed_as, with_classes
from longtape.features.build import FeaturesConfig, build
from longtape.market.books import Books
from tests.books import book_frame, books

CONFIG = FeaturesConfig(features=["book(2, 0.01, 0.5)"], targets=["smoothed_direction(5)", "return(5)"])


def test_levels_stand_in_ticks_from_the_mid_and_in_logarithms():
    """The second ask is not there in the second row: size 0, one tick beyond the first."""
    frame = book_frame(12, 2)
    gone = np.arange(12) == 1
    frame = frame.with_columns(
        pl.when(~pl.Series(gone)).then(pl.col(name)).alias(name) for name in ("ask_price_2", "ask_size_2")
    )
    panel = build([Books.checked(Instrument("file", "spot", "X"), frame)], CONFIG)
    assert [column.name.rpartition(".")[2] for column in panel.columns] == [
        f"{side}_{what}_{i}" for i in (1, 2) for side in ("bid", "ask") for what in ("ticks", "log_size")
    ]
    bid_1, ask_2, ask_2_size = panel.values[:, 0], panel.values[:, 6], panel.values[:, 7]
    assert np.allclose(bid_1, 0.5)
    assert np.allclose(ask_2, 1.5)
    assert ask_2_size[1] == 0.0
    assert np.allclose(panel.values[:, 1], np.log1p(frame["bid_size_1"].to_numpy() / 0.5))


def test_more_levels_than_the_book_has_are_refused():
    with pytest.raises(UserError, match="3 levels deep; name fewer"):
        build([books(50)], FeaturesConfig(features=["book(4)"], targets=["return(1)"]))
    with pytest.raises(UserError, match="above 0"):
        build([books(50)], FeaturesConfig(features=["book(2, 0)"], targets=["return(1)"]))


def test_moves_of_the_smoothed_mid_and_their_ends():
    one = books(60)
    panel = build([one], CONFIG)
    mid = (one.column("bid_price_1") + one.column("ask_price_1")) / 2
    expected = [mid[t + 1 : t + 6].mean() / mid[t] - 1 for t in range(55)]
    assert np.allclose(panel.targets[:55, 0], expected, atol=1e-12)
    assert np.isnan(panel.targets[55:, 0]).all()
    assert (panel.target_ends[:55, 0] == panel.known_at[5:]).all()
    still = [t for t in range(55) if (mid[t : t + 6] == mid[t]).all()]
    assert len(still) > 0
    assert (panel.targets[still, 0] == 0).all()


def test_borders_are_terciles_of_the_training_rows_alone():
    panel = build([books(400)], CONFIG)
    train = np.arange(10, 200)
    moves = panel.targets[:, 0].copy()
    classed = with_classes(panel, train)
    low, high = np.quantile(moves[train], [1 / 3, 2 / 3])
    assert dict(classed.target_columns[0].options) == {"down_below": low, "up_above": high}
    known = np.isfinite(moves)
    wanted = np.select([moves < low, moves > high], [0.0, 2.0], 1.0)
    assert (classed.targets[known, 0] == wanted[known]).all()
    assert np.isnan(classed.targets[~known, 0]).all()
    assert np.array_equal(panel.targets[:, 0], moves, equal_nan=True), "the panel itself is not changed"
    assert np.array_equal(classed.targets[:, 1], panel.targets[:, 1], equal_nan=True)
    assert with_classes(classed, np.arange(200, 300)) is classed
    again = classed_as(build([books(400)], CONFIG), classed.target_columns)
    assert np.array_equal(again.targets, classed.targets, equal_nan=True)


def test_later_rows_do_not_move_the_borders():
    train, one = np.arange(10, 100), books(400)
    short, whole = (
        with_classes(build([one.with_frame(one.frame.head(rows))], CONFIG), train) for rows in (150, 400)
    )
    assert whole.target_columns == short.target_columns
