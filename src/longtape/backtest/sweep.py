"""Many weights on the same bars and terms: one row of measures each. Bars are read and checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.backtest.replay import with_weights
from longtape.backtest.result import BacktestResult
from longtape.core.arrays import Floats
from longtape.core.errors import UserError


@dataclass(frozen=True, eq=False)
class Sweep:
    """What every candidate came to."""

    table: pl.DataFrame  # `candidate` and all measures of `BacktestResult.metrics`, one row each
    returns: (
        npt.NDArray[np.float64] | None
    )  # [T − 1, P], for the probability of overfitting; None if not kept


def sweep(
    result: BacktestResult,
    weights: Sequence[Floats] | Floats,
    *,
    keep_returns: bool = False,
) -> Sweep:
    """Each candidate's account on the bars and terms of `result`.

    weights: P candidates, [T] for one symbol or [T, S], the weights decided at each bar's close.
    keep_returns: also give every candidate's returns per bar, 8 bytes × T × P.

    UserError naming the candidate whose weights do not fit.
    """
    shape = result.setup.prices.close.shape
    if len(weights) == 0:
        raise UserError("sweep: no candidates were given")
    returns = np.empty((shape[0] - 1, len(weights)), order="F") if keep_returns else None

    def measure(candidate: int) -> dict[str, float]:
        again = with_weights(result, _checked(weights[candidate], candidate, shape))
        if returns is not None:
            returns[:, candidate] = again.returns
        return {"candidate": candidate, **again.metrics}

    return Sweep(pl.DataFrame([measure(candidate) for candidate in range(len(weights))]), returns)


def _checked(weights: Floats, candidate: int, shape: tuple[int, ...]) -> Floats:
    values = np.asarray(weights, np.float64)
    alone = shape[1] == 1 and values.shape == shape[:1]
    if values.shape != shape and not alone:
        raise UserError(f"sweep: candidate {candidate} has weights of shape {values.shape}, not {shape}")
    values = values.reshape(shape)
    if not (good := np.isfinite(values)).all():
        bar = int(np.argmin(good.all(axis=1)))
        raise UserError(f"sweep: candidate {candidate} has a weight that is no number at bar {bar + 1}")
    return values
