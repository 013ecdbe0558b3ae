"""The same account again with other weights or other costs: same bars, fills, funding, lots and limits, no frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from longtape.backtest.account import Rules
from longtape.backtest.engine import scaled_to, simulate_account
from longtape.backtest.frames import frozen
from longtape.backtest.result import BacktestResult
from longtape.core.arrays import Floats


def weights_in_force(result: BacktestResult) -> Floats:
    """The weights [T, S] that stand after each bar's close; 0 before the first decision."""
    plan = result.setup.plan
    if len(plan.row_of) == 0:
        return plan.weights
    nothing = np.zeros((1, len(result.symbols)))
    return np.concatenate([nothing, plan.weights])[np.maximum.accumulate(plan.row_of) + 1]


def with_weights(result: BacktestResult, weights: Floats, rules: Rules | None = None) -> BacktestResult:
    """The account of `weights` [T, S], decided at each close, on the bars and terms of `result`."""
    setup = result.setup
    capped, _ = scaled_to(np.asarray(weights, np.float64), setup.max_leverage)
    plan = setup.plan._replace(weights=frozen(capped), row_of=frozen(np.zeros(0, np.int64)))
    rules = rules or setup.rules
    history = simulate_account(setup.prices, plan, rules)
    return replace(result, history=history, setup=setup._replace(plan=plan, rules=rules), notes=())


def at_cost(result: BacktestResult, cost: float) -> BacktestResult:
    """The same account where fee, half spread and slippage together are `cost`, a fraction of the traded value.

    Impact, funding and borrow stay as they are.
    """
    setup = result.setup
    rules = setup.rules._replace(fee=cost, spread=0.0, slippage=0.0)
    costs = result.costs.model_copy(update={"fee": cost, "spread": 0.0, "slippage": 0.0})
    history = simulate_account(setup.prices, setup.plan, rules)
    return replace(result, history=history, setup=setup._replace(rules=rules), costs=costs)
