"""How good forecasts are, next to the baselines that anyone could have had."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Array = npt.NDArray[np.float64]


def return_skill(actual: Array, forecast: Array, reference: Array) -> dict[str, float]:
    """R² out of sample against `reference` (1 − SSE/SSE of the reference), RMSE, hit rate of the sign."""
    sse, against = ((actual - forecast) ** 2).sum(), ((actual - reference) ** 2).sum()
    moved = (forecast != 0) & (actual != 0)
    hits = float((np.sign(forecast) == np.sign(actual))[moved].mean()) if moved.any() else float("nan")
    return {
        "R² against zero": float(1 - sse / against) if against > 0 else float("nan"),
        "RMSE": float(np.sqrt(((actual - forecast) ** 2).mean())),
        "hit rate": hits,
    }


def volatility_skill(actual: Array, forecast: Array) -> dict[str, float]:
    """On variances: R² = 1 − SSE/Σ(y − mean of test)², and QLIKE = mean(y/f − ln(y/f) − 1) (Patton 2011)."""
    y, f = np.maximum(actual**2, 1e-12), np.maximum(forecast**2, 1e-12)
    ratio = y / f
    spread = ((y - y.mean()) ** 2).sum()
    return {
        "R²": float(1 - ((y - f) ** 2).sum() / spread) if spread > 0 else float("nan"),
        "QLIKE": float((ratio - np.log(ratio) - 1).mean()),
    }


def skill(kind: str, actual: Array, forecast: Array) -> dict[str, float]:
    """The measures that go with a kind of target, on rows whose label is known."""
    known = np.isfinite(actual) & np.isfinite(forecast)
    actual, forecast = actual[known], forecast[known]
    if kind == "volatility":
        return volatility_skill(actual, forecast)
    return return_skill(actual, forecast, np.zeros_like(actual))


def coverage(forecast: pl.DataFrame) -> list[dict[str, Any]]:
    """Per target: the share of labels inside their interval, and how wide the interval is on average."""
    known = forecast.drop_nulls("actual")
    inside = pl.col("actual").is_between(pl.col("lower"), pl.col("upper"))
    rows = known.group_by("symbol", "target", "horizon", maintain_order=True).agg(
        inside.mean().alias("coverage"),
        (pl.col("upper") - pl.col("lower")).mean().alias("mean width"),
        pl.len(),
    )
    return rows.rename({"len": "forecasts"}).to_dicts()
