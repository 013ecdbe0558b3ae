"""Labels from the bars and scores from the forecasts, by their definitions: what the files of a run are held to."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tests.fuzz.markets import Floats, Times
from tests.fuzz.runs import Trial, times, values

TINY = 1e-12  # the least square of a volatility
UNKNOWN = -1  # end of a label that the file does not reach
SCORES = ("R² against zero", "RMSE", "hit rate", "R²", "QLIKE")
OF_WEIGHTS = ("return a row, bp", "Sharpe a row", "mean |weight|")


def labels(trial: Trial, symbol: str, target: str, h: int) -> tuple[Floats | None, Times]:
    """Labels [T] of a symbol's bars and when each is known; None for a kind that is not known here.

    For bars without holes. `h` is the horizon in the forecast frame: an open is known a bar later.
    """
    frame, name = trial.bars[symbol], target.split("(")[0]
    close = np.log(values(frame, "close"))
    ends = _shifted(times(frame) + trial.case.market.step, h, UNKNOWN)
    if name in ("return", "path"):
        return _shifted(close, h, np.nan) - close, ends
    if name == "volatility":
        return np.sqrt(_sums_ahead(np.diff(close, prepend=close[0]) ** 2, h)), ends
    if name == "open_return":
        opened = np.log(values(frame, "open"))
        return _shifted(opened, h, np.nan) - _shifted(opened, 1, np.nan), _shifted(times(frame), h, UNKNOWN)
    return None, ends


def _shifted(series: npt.NDArray[Any], h: int, fill: float) -> npt.NDArray[Any]:
    return np.append(series[h:], np.full(h, fill, series.dtype))


def _sums_ahead(series: Floats, h: int) -> Floats:
    """Sum over the next h values [T]."""
    total = np.append(0.0, np.cumsum(series))
    return np.append(total[1 + h :] - total[1:-h], np.full(h, np.nan))


def training_labels(trial: Trial, symbol: str, target: str, h: int) -> Floats | None:
    """Those that were trained on: the last ones known before the border of training."""
    count, border = trial.walked.windows("training"), trial.walked.facts["periods"]["train_until"]
    label, ends = labels(trial, symbol, target, h) if trial.case.market.whole else (None, None)
    if label is None or ends is None or count is None:
        return None
    return label[np.isfinite(label) & (ends <= border)][-count:]


def score(name: str, rows: pl.DataFrame) -> float:
    """One of `SCORES` or `OF_WEIGHTS` of the forecasts in `mean`; NaN where it is not defined."""
    actual, forecast = values(rows, "actual"), values(rows, "mean")
    if not len(actual):
        return float("nan")
    with np.errstate(all="ignore"):
        return float(_score(name, actual, forecast))


def _score(name: str, actual: Floats, forecast: Floats) -> float:
    miss = actual - forecast
    if name == "RMSE":
        return float(np.sqrt((miss**2).mean()))
    if name == "R² against zero":
        return float(1 - (miss**2).sum() / (actual**2).sum())
    if name == "hit rate":
        moved = (forecast != 0) & (actual != 0)
        return float((np.sign(forecast) == np.sign(actual))[moved].mean()) if moved.any() else float("nan")
    if name in OF_WEIGHTS:
        return _score_of_weights(name, np.expm1(actual), forecast)
    y, f = np.maximum(actual**2, TINY), np.maximum(forecast**2, TINY)
    if name == "R²":
        return float(1 - ((y - f) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return qlike(y, f)


def _score_of_weights(name: str, returns: Floats, share: Floats) -> float:
    if name == "mean |weight|":
        return float(np.abs(share).mean())
    earned = share * returns
    return float(1e4 * earned.mean() if name == "return a row, bp" else earned.mean() / earned.std())


def qlike(y: Floats, f: Floats | float) -> float:
    """Mean of y/f − ln(y/f) − 1 of variances (Patton 2011)."""
    return float((y / f - np.log(y / f) - 1).mean())


def qlike_of(rows: pl.DataFrame, level: Floats | float) -> float:
    """Of volatilities `level` instead of the forecasts."""
    return qlike(np.maximum(values(rows, "actual") ** 2, TINY), np.maximum(np.square(level), TINY))


def same(figure: float | None, found: float) -> bool:
    """A figure of a file is the one found here; null stands for what is not defined."""
    if figure is None or not np.isfinite(found):
        return not np.isfinite(found)
    return bool(np.isclose(figure, found, rtol=1e-6, atol=1e-9))


def entry_of(skill: dict[str, Any], symbol: str, target: str, horizon: int) -> list[dict[str, Any]]:
    """The model's row and those of the baselines; a path has an entry for each horizon, however that is called."""
    name = f"{symbol} {target}"
    near = [key for key in skill if key.startswith(name) and re.search(rf"\b{horizon}\b", key[len(name) :])]
    found = skill.get(near[0] if near else name, [])
    return list(found)


def training_mean(entry: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the baseline that forecasts a constant learnt from the training labels."""
    means = [row for row in entry[1:] if "mean" in row["model"] and "HAR" not in row["model"].upper()]
    return means[0] if means else None
