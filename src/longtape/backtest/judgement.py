"""What a sceptic asks of a backtest: what stands beside it, what chance would give, what costs leave of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from longtape.backtest.benchmarks import (
    HOLD,
    Lookbacks,
    RandomStrategies,
    benchmark_results,
    lookbacks_of,
    random_strategies,
)
from longtape.backtest.bootstrap import ConfidenceInterval, bootstrap_metrics
from longtape.backtest.overfitting import Deflation, Overfitting, TrialSet, deflate, overfitting
from longtape.backtest.result import BacktestResult
from longtape.backtest.sensitivity import CostSensitivity, cost_sensitivity
from longtape.core.errors import UserError
from longtape.core.files import nan_to_null

Rows = list[dict[str, Any]]
Standing = Literal["never traded", "luck", "beaten", "ahead"]
ONE_SIDED = 1.645  # 95 % of a normal distribution
MOST_SHARPE = 4.0  # above these figures the data are to be doubted before the strategy is believed
MOST_GROWTH = 100.0  # times in a year
MOST_R2 = 0.2  # of returns
MAX_STATED_RETURN = 100.0  # the largest return a year that a sentence spells out


@dataclass(frozen=True, eq=False)
class Judgement:
    """A backtest and everything it was held against, all on the same bars and terms."""

    result: BacktestResult
    benchmarks: Mapping[str, BacktestResult]  # buy & hold, flat, momentum, mean reversion
    lookbacks: Lookbacks
    random: RandomStrategies
    bootstrap: Mapping[str, ConfidenceInterval]  # annual_return, sharpe, max_drawdown
    costs: CostSensitivity
    deflated: Deflation
    overfitting: (
        Overfitting | None
    )  # None where one configuration was tried, or the trials' series were not kept
    trials: TrialSet | None

    def tables(self) -> dict[str, Rows]:
        """Plain rows by title: strategies, random, bootstrap, costs, selection."""
        return {
            "strategies": [
                _row(name, one) for name, one in {"strategy": self.result, **self.benchmarks}.items()
            ],
            "random": self._random_rows(),
            "bootstrap": [{"figure": name, **asdict(one)} for name, one in self.bootstrap.items()],
            "costs": self.costs.rows,
            "selection": [self._selection()],
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a figure that does not exist is None."""
        plain: dict[str, Any] = nan_to_null(
            {
                **self.tables(),
                "lookbacks": asdict(self.lookbacks),
                "break_even_cost_bp": self.costs.break_even,
                "verdict": self.verdict,
            }
        )
        return plain

    @property
    def verdict(self) -> list[str]:
        """Sentences for a reader who trusts nothing; what cannot be stands in front."""
        return [*implausible(self.doubts), *self.statements]

    @property
    def doubts(self) -> list[str]:
        """Figures of the account that honest strategies do not have."""
        found, result = [], self.result
        sharpe, growth = result.metrics["sharpe"], 1 + result.metrics["annual_return"]
        if result.is_short:
            sharpe -= ONE_SIDED * result.metrics["sharpe_standard_error"]
            growth = float(result.equity["equity"][-1]) / result.initial_capital
        if sharpe > MOST_SHARPE and result.metrics["n_fills"] > 0:
            found.append(f"Sharpe {result.metrics['sharpe']:.2f} after costs")
        if growth >= MOST_GROWTH:
            found.append(f"an equity that multiplies {growth:,.4g} times in a year")
        return found

    @property
    def statements(self) -> list[str]:
        """What there is to say of the figures as they are."""
        return [sentence for _, sentence in self.evidence]

    @property
    def evidence(self) -> list[tuple[str, str]]:
        """The same, each sentence with what it is about."""
        told = [
            ("beside simple strategies", _benchmark_line(self.result, self.benchmarks)),
            ("beside chance", _random_line(self.random)),
            ("drawn again", _bootstrap_line(self.bootstrap, self.result.is_short)),
            ("costs", _cost_line(self.costs)),
            ("tries", self._selection_line()),
            ("paid", _paid_line(self.result)),
        ]
        told += [("length", _length_line(self.result))] if self.result.is_short else []
        return told + [("note", f"{note[0].upper()}{note[1:]}.") for note in self.result.notes]

    @property
    def standing(self) -> Standing:
        """The account in a word: how it stands beside chance and the simple strategies."""
        return _standing(self.result, self.benchmarks)

    def _random_rows(self) -> Rows:
        one = self.random
        columns = {"sharpe": one.sharpe, "total_return": one.total_return}
        own = {"sharpe": one.own_sharpe, "total_return": one.own_return}
        percentile = {"sharpe": one.sharpe_percentile, "total_return": one.return_percentile}
        return [
            {
                "figure": name,
                "strategy": own[name],
                "percentile": percentile[name],
                **{f"random {q} %": _quantile(values, q) for q in (5, 50, 95)},
            }
            for name, values in columns.items()
        ]

    def _selection(self) -> dict[str, Any]:
        chance = self.overfitting.probability if self.overfitting else float("nan")
        return {**asdict(self.deflated), "probability_of_overfitting": chance}

    def _selection_line(self) -> str:
        d = self.deflated
        if d.trials < 2:
            return (
                f"One configuration was tried, as far as is known (folds are not trials): nothing to deflate;"
                f" probability of a true Sharpe above 0: {_share(d.probabilistic_sharpe)}."
            )
        line = f"Best of {d.trials} configurations: deflated Sharpe {_share(d.deflated_sharpe)}"
        if self.overfitting is None:
            return f"{line}; probability of overfitting unknown, the trials' return series were not kept."
        return f"{line}, probability of overfitting {self.overfitting.probability:.1%}."


def judge(
    result: BacktestResult,
    *,
    n_random: int = 200,
    n_bootstrap: int = 1000,
    seed: int = 0,
    trials: TrialSet | None = None,
    lookbacks: Lookbacks | None = None,
) -> Judgement:
    """Hold a backtest against simple strategies, chance, costs and its own selection.

    Everything runs on the bars, fills, costs, funding and limits of `result` itself. `trials` are all configurations
    that were tried, the chosen one included; left out, there was one. `lookbacks`: a month of bars for momentum, a week
    for mean reversion. UserError for a record of fewer than three bars.
    """
    if len(result.clock) < 3:
        raise UserError(f"judgement: {len(result.clock)} bars are no record; three are the least")
    if n_random < 1:
        raise UserError(f"judgement: n_random must be at least 1 (given: {n_random})")
    lookbacks = lookbacks or lookbacks_of(result)
    trials = trials.over(result.risk_free_return) if trials is not None else None
    kept = trials is not None and trials.returns is not None and len(trials) > 1
    return Judgement(
        result,
        benchmark_results(result, lookbacks),
        lookbacks,
        random_strategies(result, n_random, seed),
        bootstrap_metrics(
            result.returns,
            result.periods_per_year,
            risk_free=result.risk_free_rate,
            resamples=n_bootstrap,
            seed=seed,
        ),
        cost_sensitivity(result),
        deflate(result.returns - result.risk_free_return, trials),
        overfitting(trials) if trials is not None and kept else None,
        trials,
    )


def implausible(figures: Sequence[str]) -> list[str]:
    """One sentence that doubts figures that cannot be, with what to check; none where there are none."""
    if not figures:
        return []
    return [
        f"Implausible: {' and '.join(figures)}. Look for the future in the data before believing anything here: bars"
        " stamped at their close beside others stamped at their open (longtape data check compares the symbols of a"
        " store), a column or a list of symbols made with hindsight, prices at which nobody could trade, costs left"
        " out; see docs/leakage.md."
    ]


def _row(name: str, result: BacktestResult) -> dict[str, Any]:
    m = result.metrics
    names = ("annual_return", "volatility", "sharpe", "sharpe_standard_error", "max_drawdown", "exposure")
    rest = {key: m[key] for key in ("turnover", "costs", "n_fills")}
    return {"strategy": name, **{key: m[key] for key in names}, **rest, "end": m["end"]}


def _standing(result: BacktestResult, others: Mapping[str, BacktestResult]) -> Standing:
    sharpe, error = result.metrics["sharpe"], result.metrics["sharpe_standard_error"]
    if result.metrics["n_fills"] == 0 or not np.isfinite(sharpe):
        return "never traded"
    if sharpe - ONE_SIDED * error <= 0:
        return "luck"
    return "beaten" if sharpe <= max(_known_sharpes(others).values(), default=0.0) else "ahead"


def _known_sharpes(others: Mapping[str, BacktestResult]) -> dict[str, float]:
    found = {name: one.metrics["sharpe"] for name, one in others.items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _benchmark_line(result: BacktestResult, others: Mapping[str, BacktestResult]) -> str:
    standing, known = _standing(result, others), _known_sharpes(others)
    if standing == "never traded":
        return "No edge: the strategy never traded."
    figures = _short_figures(result, others) if result.is_short else _figures(result, known)
    if standing == "luck":
        return f"No edge after costs that could be told from luck: {figures}."
    if standing == "beaten":
        best = max(known, key=lambda name: known[name])
        return f"Gained after costs, but {best} would have done better: {figures}."
    return f"Gained after costs, more than {HOLD} and the simple rules: {figures}. One period is one draw."


def _figures(result: BacktestResult, known: Mapping[str, float]) -> str:
    sharpe, error = result.metrics["sharpe"], result.metrics["sharpe_standard_error"]
    beside = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
    return f"Sharpe {sharpe:.2f} ± {error:.2f} after costs{_free_of_risk(result)}, {beside}"


def _free_of_risk(result: BacktestResult) -> str:
    return f" and {_percent(result.risk_free_rate)} a year free of risk" if result.risk_free_rate else ""


def _short_figures(result: BacktestResult, others: Mapping[str, BacktestResult]) -> str:
    """Total returns, and how many standard errors the mean return is from zero: nothing that is stretched to a year."""
    beside = ", ".join(f"{name} {one.metrics['total_return']:.2%}" for name, one in others.items())
    errors = f"{result.sharpe_errors:.1f} standard errors"
    certain = f"its mean return after costs{_free_of_risk(result)} is {errors} from zero"
    return f"{result.metrics['total_return']:.2%} in all after costs, {beside}; {certain}"


def _length_line(result: BacktestResult) -> str:
    days = 365.25 * result.years
    sizes = (("days", 1.0), ("hours", 24.0), ("minutes", 1_440.0), ("seconds", 86_400.0))
    unit, size = next(((name, size) for name, size in sizes if days * size >= 2), sizes[-1])
    return (
        f"The account lasts {days * size:.0f} {unit} of market time: too short to mean much. Whatever would be"
        " stretched to a year (returns, Sharpe ratio, turnover) is left out."
    )


def _random_line(random: RandomStrategies) -> str:
    if np.isnan(random.own_sharpe):
        return "No standing among random strategies: the account never moved."
    return (
        f"Among {len(random.sharpe)} random strategies with its turnover and exposure it stands at percentile"
        f" {random.sharpe_percentile:.0f} by Sharpe and {random.return_percentile:.0f} by return."
    )


def _bootstrap_line(intervals: Mapping[str, ConfidenceInterval], short: bool) -> str:
    a, s, d = (intervals[name] for name in ("annual_return", "sharpe", "max_drawdown"))
    sharpe = "not defined" if np.isnan(s.lower) else f"{s.lower:.2f} to {s.upper:.2f}"
    annual = "" if short else f"annual return {_share(a.lower)} to {_share(a.upper)}, Sharpe {sharpe}, "
    return (
        f"{a.level:.0%} of {a.resamples:,} stationary-bootstrap samples (blocks of {a.block:.0f} bars): {annual}"
        f"deepest drawdown {_share(d.lower)} to {_share(d.upper)}."
    )


def _share(value: float) -> str:
    """A percentage; in words where there is none, or where a short record compounds to what nobody earns."""
    if np.isnan(value):
        return "not defined"
    return f"{value:.1%}" if value <= MAX_STATED_RETURN else f"more than {MAX_STATED_RETURN:,.0%}"


def _cost_line(costs: CostSensitivity) -> str:
    if np.isnan(costs.break_even):
        return "No break-even cost: nothing was gained even before fees, spread and slippage."
    if np.isinf(costs.break_even):
        return "No cost of trading takes the gain away: it hardly traded."
    return f"Breaks even at {costs.break_even:.1f} bp a side; the run paid {costs.asked:.1f} bp."


def _paid_line(result: BacktestResult) -> str:
    costs, paid = result.costs, result.metrics["costs"]
    funding: str = costs.funding or "none"
    if costs.funding_rate is not None:
        funding = f"{_percent(costs.funding_rate)} per 8 h"
    named = [f"{name} {_percent(getattr(costs, name))}" for name in ("fee", "spread", "slippage")]
    named += [f"impact {costs.impact:g}", f"borrow {_percent(costs.borrow)} a year", f"funding {funding}"]
    share = abs(paid) / result.initial_capital
    verb = "Received" if paid < 0 else "Paid"
    return f"{verb} {abs(paid):,.2f} in all, {share:.2%} of the initial capital: {', '.join(named)}."


def _percent(value: float) -> str:
    return f"{np.format_float_positional(100 * value, precision=4, fractional=False, trim='-')}%"


def _quantile(values: Any, percent: int) -> float:
    return float(np.quantile(values, percent / 100))
