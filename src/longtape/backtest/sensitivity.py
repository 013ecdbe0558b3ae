"""What costs do to a strategy: a table of levels, and the level at which nothing is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longtape.backtest.replay import at_cost
from longtape.backtest.result import BacktestResult

LEVELS = (0.0, 5.0, 10.0, 20.0)
BASIS_POINT = 1e-4


@dataclass(frozen=True)
class CostSensitivity:
    """Rows of results by cost a side in basis points, and the break-even cost."""

    rows: list[dict[str, Any]]
    break_even: (
        float  # bp a side; NaN: nothing gained before costs, inf: even all of the traded value leaves a gain
    )
    asked: float  # bp a side: fee, half spread and slippage of the run itself


def cost_sensitivity(result: BacktestResult, levels: tuple[float, ...] = LEVELS) -> CostSensitivity:
    """The same weights at each level of fee + half spread + slippage (bp of the traded value, a side)."""
    rules = result.setup.rules
    asked = (rules.fee + rules.spread + rules.slippage) / BASIS_POINT
    rows = [_row(level, at_cost(result, level * BASIS_POINT)) for level in levels]
    return CostSensitivity(rows, break_even_cost(result), asked)


def _row(level: float, result: BacktestResult) -> dict[str, Any]:
    m = result.metrics
    return {
        "cost bp a side": level,
        "total_return": m["total_return"],
        "annual_return": m["annual_return"],
        "sharpe": m["sharpe"],
        "max_drawdown": m["max_drawdown"],
        "costs": m["costs"],
    }


def break_even_cost(result: BacktestResult, tolerance: float = 1e-4) -> float:
    """Cost in bp a side at which the account ends where it began, by bisection to `tolerance` bp.

    NaN where nothing is gained even without it, or nothing was traded; inf where 10,000 bp leave a gain.
    """

    def gain(basis_points: float) -> float:
        again = at_cost(result, basis_points * BASIS_POINT)
        return float(again.history.equity[-1]) - result.initial_capital

    low, high = 0.0, 10.0
    if not gain(low) > 0:
        return float("nan")
    while gain(high) > 0:
        if high >= 1 / BASIS_POINT:
            return float("inf")
        low, high = high, min(2 * high, 1 / BASIS_POINT)
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) > 0 else (low, middle)
    return (low + high) / 2
