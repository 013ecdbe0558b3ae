"""The sentences that a verdict is made of."""

import pytest

from longtape.evaluation.skill import MODEL, P_VALUE
from longtape.workflow.results import _share, _skill_line


def rows(own, other, p_value):
    return [
        {"model": MODEL, "QLIKE": own, "R²": 0.1},
        {"model": "log-HAR", "QLIKE": other, "R²": 0.1, P_VALUE: p_value},
    ]


@pytest.mark.parametrize(
    ("own", "p_value", "standing"),
    [
        (0.30, 0.01, "ahead of the best baseline ("),
        (0.30, 0.40, "ahead of the best baseline, within luck ("),
        (0.50, 0.01, "behind the best baseline ("),
        (0.50, 0.40, "behind the best baseline, within luck ("),
        (0.40, 1.00, "as good as the best baseline ("),
    ],
)
def test_a_model_stands_ahead_behind_or_level(own, p_value, standing):
    assert f"X volatility(1): {standing}" in _skill_line("X volatility(1)", rows(own, 0.40, p_value))


@pytest.mark.parametrize(
    ("share", "least", "most", "said"),
    [
        (0.67, 0.55, 0.78, "X return(1) 67.0% (too little: at most 78.0% but for luck)"),
        (0.97, 0.93, 0.99, "X return(1) 97.0% (too much: at least 93.0% but for luck)"),
        (0.88, 0.85, 0.91, "X return(1) 88.0%"),
        (1.00, float("nan"), float("nan"), "X return(1) 100.0%"),
    ],
)
def test_coverage_says_where_luck_does_not_explain_it(share, least, most, said):
    row = {"symbol": "X", "target": "return(1)", "horizon": 1, "coverage": share, "from": least, "to": most}
    assert _share(row, [row], 0.9) == said
