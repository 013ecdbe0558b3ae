"""What it means that a strategy was chosen among several: deflated Sharpe and the probability of overfitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from longtape.backtest import statistics
from longtape.backtest.summary import as_returns, summarise
from longtape.core.arrays import Floats
from longtape.core.errors import UserError


@dataclass(frozen=True, eq=False)
class TrialSet:
    """Every configuration that was tried, the chosen one included. Folds of one configuration are not trials."""

    names: tuple[str, ...]
    sharpes: Floats  # [N], per bar
    returns: Floats | None = None  # [T, N] simple returns of the same bars, where they were kept

    @classmethod
    def of_returns(cls, returns: Mapping[str, Any]) -> TrialSet:
        """From the return series of each trial, by name; all of the same bars."""
        series = {name: as_returns(one) for name, one in returns.items()}
        lengths = {name: len(one) for name, one in series.items()}
        if len(set(lengths.values())) != 1:
            raise UserError(
                f"trials: every trial needs returns of the same bars; their lengths are {lengths}"
            )
        table = np.column_stack(list(series.values()))
        if not np.isfinite(table).all():
            raise UserError("trials: a return is missing or not finite; every trial needs every bar")
        sharpes = [statistics.period_sharpe(one) for one in series.values()]
        return cls(tuple(series), np.nan_to_num(np.array(sharpes)), table)

    @classmethod
    def of_sharpes(cls, names: Sequence[str], sharpes: Sequence[float]) -> TrialSet:
        """From the per-bar Sharpe ratios alone: enough to deflate, not for the probability of overfitting."""
        values = np.asarray(sharpes, dtype=np.float64)
        if len(names) != len(values) or len(values) == 0 or not np.isfinite(values).all():
            raise UserError("trials: give one finite per-bar Sharpe ratio for every name")
        return cls(tuple(names), values)

    def over(self, risk_free: float) -> TrialSet:
        """The trials by their returns over a risk-free rate per bar. Ratios given alone are taken to be so already."""
        if self.returns is None or risk_free == 0:
            return self
        return TrialSet.of_returns(dict(zip(self.names, (self.returns - risk_free).T, strict=True)))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def variance(self) -> float:
        """Sample variance of the per-bar Sharpe ratios; 0 for a single trial."""
        return float(self.sharpes.var(ddof=1)) if len(self) > 1 else 0.0


@dataclass(frozen=True)
class Deflation:
    """A Sharpe ratio in the light of how many were tried."""

    trials: int
    variance: float  # of the trials' per-bar Sharpe ratios
    expected_best: float  # per bar, of as many worthless trials
    probabilistic_sharpe: float  # P(true Sharpe > 0)
    deflated_sharpe: float  # P(true Sharpe > expected best)


def deflate(returns: Any, trials: TrialSet | None) -> Deflation:
    """Deflated Sharpe (Bailey and López de Prado 2014) of simple returns [n]; one trial where none are named."""
    s = summarise(returns)
    count, variance = (len(trials), trials.variance) if trials is not None else (1, 0.0)
    best = statistics.expected_best_sharpe(count, variance)
    return Deflation(count, variance, best, statistics.probability_of(s), statistics.probability_of(s, best))


@dataclass(frozen=True, eq=False)
class Overfitting:
    """Combinatorially symmetric cross-validation over the trials' returns."""

    probability: (
        float  # share of partitions whose best trial in sample is at or below the median out of sample
    )
    logits: Floats  # [partitions] ln(ω/(1 − ω)), ω = relative rank out of sample of the best trial in sample
    loss: float  # share of partitions whose best trial in sample has a Sharpe ratio below 0 out of sample
    degradation: float  # slope of Sharpe out of sample on Sharpe in sample, over the partitions
    trials: int
    blocks: int


def overfitting(trials: TrialSet, blocks: int = 16) -> Overfitting:
    """Probability of backtest overfitting (Bailey, Borwein, López de Prado and Zhu 2015), by Sharpe ratio.

    The bars are cut into `blocks` (even) stretches of time; every half of them in turn is in sample and the rest out of
    sample. UserError where the return series were not kept, or are too few or too short.
    """
    if trials.returns is None:
        raise UserError(
            "overfitting: the return series of the trials were not kept; keep them (TrialSet.of_returns)"
        )
    bars, count = trials.returns.shape
    if count < 2:
        raise UserError("overfitting: one trial was not chosen among others; name all that were tried")
    if blocks < 2 or blocks % 2 or blocks > 20 or bars < 2 * blocks:
        raise UserError(
            f"overfitting: blocks {blocks} must be even, 2 to 20, and at most half of the {bars} bars"
        )
    inside, outside = _sharpes_of_halves(trials.returns, blocks)
    rows, best = np.arange(len(inside)), inside.argmax(axis=1)
    chosen_inside, chosen = inside[rows, best], outside[rows, best]
    below, equal = (outside < chosen[:, None]).sum(axis=1), (outside == chosen[:, None]).sum(axis=1)
    rank = (below + (equal + 1) / 2) / (count + 1)
    logits = np.log(rank / (1 - rank))
    spread = chosen_inside.var()
    slope = np.cov(chosen_inside, chosen, ddof=0)[0, 1] / spread if spread > 0 else float("nan")
    return Overfitting(
        float((logits <= 0).mean()), logits, float((chosen < 0).mean()), float(slope), count, blocks
    )


def _sharpes_of_halves(returns: Floats, blocks: int) -> tuple[Floats, Floats]:
    """Per-bar Sharpe ratios [C, N] in and out of sample for every half of the blocks, from sums per block."""
    parts = np.array_split(returns, blocks)
    sums = np.array([[part.sum(axis=0), (part**2).sum(axis=0)] for part in parts])  # [S, 2, N]
    counts = np.array([len(part) for part in parts], dtype=np.float64)
    halves = np.array(list(combinations(range(blocks), blocks // 2)))
    chosen = np.zeros((len(halves), blocks))
    np.put_along_axis(chosen, halves, 1.0, axis=1)
    return _sharpes(chosen, sums, counts), _sharpes(1 - chosen, sums, counts)


def _sharpes(chosen: Floats, sums: Floats, counts: Floats) -> Floats:
    size = (chosen @ counts)[:, None]
    mean, square = chosen @ sums[:, 0] / size, chosen @ sums[:, 1] / size
    variance = square - mean**2
    # What rounding leaves of a constant series is no variance.
    return np.divide(
        mean, np.sqrt(np.maximum(variance, 0)), out=np.zeros_like(mean), where=variance > 1e-12 * square
    )
