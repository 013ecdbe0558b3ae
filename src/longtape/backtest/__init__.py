"""From target weights to an account, its measures and a judgement. Frames in, frames out; no torch."""

from longtape.backtest.config import AccountConfig, Limits
from longtape.backtest.costs import DEFAULT_COSTS, Costs
from longtape.backtest.engine import run_account, run_backtest
from longtape.backtest.frames import only_at_bars
from longtape.backtest.judgement import Judgement, judge
from longtape.backtest.overfitting import TrialSet
from longtape.backtest.result import BacktestResult

__all__ = [
    "DEFAULT_COSTS",
    "AccountConfig",
    "BacktestResult",
    "Costs",
    "Judgement",
    "Limits",
    "TrialSet",
    "judge",
    "only_at_bars",
    "run_account",
    "run_backtest",
]
