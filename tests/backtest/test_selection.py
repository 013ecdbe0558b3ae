"""What an experiment's targets and its signal have to do with each other is said before any data are read."""

from __future__ import annotations

import pytest

from longtape.backtest.selection import Target, candidates, mismatch
from longtape.backtest.signals import SignalConfig

ONE, FIVE = Target("return(1)", "return", 1), Target("return( 5 )", "return", 5)
SPREAD, WAY = Target("volatility(5)", "volatility", 5), Target("up(5)", "up", 5)
PATH = [Target("path(3)", "path", bars) for bars in (1, 2, 3)]
SCALED = {"name": "volatility_target", "options": {"volatility": 0.2}}


@pytest.mark.parametrize(
    ("signal", "targets", "symbols", "message"),
    [
        ({}, [ONE], ["A"], None),
        ({}, [ONE, SPREAD, WAY], ["A"], None),
        ({"target": "return(5)"}, [ONE, FIVE], ["A"], None),
        ({"target": "return (1)"}, [ONE, FIVE], ["A"], None),
        ({"horizon": 5}, [ONE, FIVE], ["A"], None),
        ({"horizon": 2}, PATH, ["A"], None),
        ({}, [ONE, ONE], ["A"], None),
        ({}, [ONE, FIVE], ["A"], "signal.target: name one of return(1), return( 5 )"),
        ({}, PATH, ["A"], "signal.horizon: name one of the horizons of path(3): 1, 2, 3"),
        ({"target": "retrun(1)"}, [ONE], ["A"], "signal.target: unknown target 'retrun(1)'; did you mean 'return(1)'?"),
        (
            {"target": "volatility(5)"},
            [ONE, SPREAD],
            ["A"],
            "signal 'threshold' trades forecasts of returns; there is volatility(5) (volatility)",
        ),
        ({}, [SPREAD, WAY], ["A"], "trades forecasts of returns; there is volatility(5) (volatility), up(5) (up)"),
        ({"horizon": 7}, [ONE, FIVE], ["A"], "trades forecasts of returns over 7 bars; there is return(1) (return)"),
        ({"name": "rank"}, [ONE], ["A"], "signal 'rank' compares symbols; there is A alone"),
        ({"name": "rank"}, [ONE], ["A", "B"], None),
        ({"name": "rank"}, [ONE], None, None),
        (SCALED, [FIVE, SPREAD], ["A"], None),
        (SCALED, [FIVE], ["A"], "needs a volatility over the same bars as return( 5 ) among the targets"),
        (SCALED, [ONE, SPREAD], ["A"], "needs a volatility over the same bars as return(1) among the targets"),
        (SCALED, [ONE, Target("volatility(1)", "volatility")], ["A"], None),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(signal, targets, symbols, message):
    found = mismatch(SignalConfig(**signal), targets, symbols)
    if message is None:
        assert found is None
    else:
        assert message in found
        assert "\n" not in found


def test_only_returns_are_candidates():
    assert candidates([SPREAD, ONE, WAY, ONE]) == [ONE]
    assert candidates([SPREAD, WAY]) == []
    assert candidates([*PATH, ONE], "path( 3 )", 3) == PATH[2:]
    unknown = Target("return(9)", "return")
    assert candidates([unknown], horizon=9) == [unknown]
