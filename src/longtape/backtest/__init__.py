"""From target weights to an account, its measures and a judgement. Frames in, frames out; no torch."""

from longtape.backtest.costs import Costs
from longtape.backtest.engine import Limits, run_backtest
from longtape.backtest.judgement import Judgement, judge
from longtape.backtest.overfitting import TrialSet
from longtape.backtest.result import BacktestResult

__all__ = ["BacktestResult", "Costs", "Judgement", "Limits", "TrialSet", "judge", "run_backtest"]
