"""Scores of classes, by hand."""

import numpy as np
import pytest

from longtape.core.classification import confusion, f1_scores, macro_f1, matthews, weighted_f1

CAME = np.array([0, 0, 0, 1, 1, 2])
SEEN = np.array([0, 0, 1, 1, 2, 2])


def test_f1_by_hand():
    table = confusion(CAME, SEEN, 3)
    assert table.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert f1_scores(table).tolist() == pytest.approx([4 / 5, 2 / 4, 2 / 3])
    assert macro_f1(table) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert weighted_f1(table) == pytest.approx((3 * 4 / 5 + 2 / 2 + 2 / 3) / 6)


def test_matthews_is_the_correlation_of_two_classes_and_zero_for_a_constant():
    draw = np.random.default_rng(0)
    came = draw.integers(0, 2, 500)
    seen = np.where(draw.random(500) < 0.7, came, draw.integers(0, 2, 500))
    assert matthews(confusion(came, seen, 2)) == pytest.approx(np.corrcoef(came, seen)[0, 1])
    assert matthews(confusion(came, came, 2)) == 1.0
    assert matthews(confusion(came, np.zeros(500), 2)) == 0.0


def test_a_class_never_met_and_never_named_scores_nothing():
    assert f1_scores(confusion(np.array([0, 1]), np.array([0, 1]), 3)).tolist() == [1.0, 1.0, 0.0]
