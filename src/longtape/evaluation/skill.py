"""How good forecasts are, next to the baselines that anyone could have had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.evaluation.statistics import diebold_mariano, score_intervals
from longtape.features.panel import Panel, TargetColumn
from longtape.features.splits import Split
from longtape.features.target_kinds import TargetKind
from longtape.forecasting.baselines import USUAL, Training, baseline_forecast
from longtape.forecasting.predict import Predicted
from longtape.models.base import ModelInputs
from longtape.models.registry import Baseline, baselines_of

MODEL = "longtape"
P_VALUE = "p, differs from longtape"
Array = npt.NDArray[np.float64]
Origins = npt.NDArray[np.int64]
Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Scored:
    """Forecasts of one target name of one asset at n origins and H horizons, with their labels."""

    name: str  # "SYMBOL target"
    kind: TargetKind
    horizon: int  # the longest
    actual: Array  # [n, H]
    forecast: Array  # [n, H], or [n, H, M] probabilities

    def scores(self) -> dict[str, float]:
        """The kind's scores over all known labels."""
        known = self._known()
        actual, forecast = self.actual[known], self.forecast[known]
        found = self.kind.scores(actual, forecast)
        if self.kind.resampled:
            found |= score_intervals(self.kind, actual, forecast, self.horizon)
        return found

    @property
    def mean_absolute_error(self) -> float | None:
        """Over all known labels; None for classes and weights."""
        if self.kind.error is None:
            return None
        known = self._known()
        return float(np.abs(self.actual[known] - self.forecast[known]).mean())

    def losses(self) -> Array:
        """Mean loss of each origin [n], NaN where no label is known."""
        known = self._known()
        out = np.full(self.actual.shape, np.nan)
        out[known] = self.kind.loss(self.actual[known], self.forecast[known])
        counts = known.sum(axis=1)
        return np.where(counts > 0, np.nansum(out, axis=1) / np.maximum(counts, 1), np.nan)

    def _known(self) -> npt.NDArray[np.bool_]:
        own = self.forecast if self.forecast.ndim == 2 else self.forecast.sum(axis=2)
        return np.isfinite(self.actual) & np.isfinite(own)


def skills(
    inputs: ModelInputs,
    panel: Panel,
    splits: Sequence[Split],
    forecasts: pl.DataFrame,
    named: Sequence[Baseline] = (),
    training: Training = USUAL,
) -> dict[str, Rows]:
    """For each "SYMBOL target": a row of scores for the model and for every baseline of its kind, then the `named`.

    `splits` are the folds whose test origins were forecast, one after the other; baselines are fitted in each, and
    those that train do so as `training` says.
    """
    origins = np.concatenate([split.test for split in splits])
    own = {
        one.name: one
        for one in scored(inputs, panel, origins, _from_frame(inputs, panel, origins, forecasts))
    }
    crps = _mean_crps(panel, origins, forecasts)
    found: dict[str, Rows] = {
        name: [{"model": MODEL, **one.scores(), **_crps_column(one, crps.get(name))}]
        for name, one in own.items()
    }
    for kind in inputs.kinds:
        if all(target.auxiliary for target in inputs.targets_of(kind)):
            continue
        of_kind = inputs.only(kind)
        for one in baselines_of(of_kind, panel, named):
            parts = [baseline_forecast(one.config, of_kind, panel, split, training) for split in splits]
            title = one.title(of_kind.targets[0])
            for other in scored(of_kind, panel, origins, _joined(parts)):
                p_value = _p_value(own[other.name], other)
                crps_of_point = _crps_column(other, other.mean_absolute_error)
                found[other.name].append(
                    {"model": title, **other.scores(), **crps_of_point, P_VALUE: p_value}
                )
    return found


def _mean_crps(panel: Panel, origins: Origins, forecasts: pl.DataFrame) -> dict[str, float]:
    """Of "SYMBOL target", over the scored origins: what the heads' own distributions lose."""
    scored = forecasts.filter(pl.col("timestamp").dt.timestamp("ms").is_in(panel.timestamps[origins]))
    means = scored.group_by("symbol", "target").agg(pl.col("crps").mean())
    return {f"{symbol} {target}": crps for symbol, target, crps in means.iter_rows() if crps is not None}


def _crps_column(one: Scored, value: float | None) -> dict[str, float]:
    """Continuous ranked probability score; of a point forecast, its absolute error. Classes and weights have none."""
    return {} if one.kind.error is None or value is None else {"CRPS": value}


def _joined(parts: Sequence[Predicted]) -> Predicted:
    classes = [part.probabilities for part in parts if part.probabilities is not None]
    mean = np.concatenate([part.mean for part in parts])
    return Predicted(mean, {}, np.concatenate(classes) if classes else None)


def scored(inputs: ModelInputs, panel: Panel, origins: Origins, predicted: Predicted) -> list[Scored]:
    """Forecasts of `inputs`' targets at the origins with their labels, one entry for each asset and target name."""
    groups: dict[tuple[str, str], list[int]] = {}
    for k, target in enumerate(inputs.targets):
        if not target.auxiliary:
            groups.setdefault((target.asset, target.name), []).append(k)
    made = []
    for (asset, name), columns in groups.items():
        targets = [inputs.targets[k] for k in columns]
        actual = panel.targets[origins][:, [panel.target_columns.index(t) for t in targets]]
        forecast, classes = predicted.mean[:, columns], targets[0].of_kind.classes
        if classes and predicted.probabilities is not None:
            forecast = predicted.probabilities[:, columns, :classes]
        horizon = max(target.horizon for target in targets)
        made.append(Scored(f"{asset} {name}", targets[0].of_kind, horizon, actual, forecast))
    return made


def _from_frame(inputs: ModelInputs, panel: Panel, origins: Origins, forecasts: pl.DataFrame) -> Predicted:
    """The frame's forecasts at the origins, in their order, as arrays."""
    classes = [name for name in forecasts.columns if name[:1] == "p" and name[1:].isdigit()]
    parts = forecasts.partition_by("symbol", "target", "horizon", as_dict=True)
    mean = np.empty((len(origins), len(inputs.targets)))
    probabilities = np.full((*mean.shape, len(classes)), np.nan)
    for k, target in enumerate(inputs.targets):
        if target.auxiliary:
            continue
        own = parts[target.key]
        rows = _rows_at(own, panel, origins, target)
        mean[:, k] = own["mean"].to_numpy()[rows]
        for m, name in enumerate(classes):
            probabilities[:, k, m] = own[name].to_numpy()[rows]
    return Predicted(mean, {}, probabilities if classes else None)


def _rows_at(own: pl.DataFrame, panel: Panel, origins: Origins, target: TargetColumn) -> Origins:
    """Rows of a target's forecasts that stand at the origins. The frame holds consecutive origins, or folds of them."""
    times = own["timestamp"].dt.timestamp("ms").to_numpy()
    wanted = panel.timestamps[origins]
    rows = np.searchsorted(times, wanted)
    if len(np.unique(times)) < len(times):  # events at equal times: as many rows as origins, in order
        rows = rows[0] + np.arange(len(origins))
    if rows[-1] >= len(times) or (times[rows] != wanted).any():
        raise ValueError(f"the forecasts of {target.asset} {target.name} do not hold every scored origin")
    return rows


def _p_value(own: Scored, other: Scored) -> float:
    """Of the Diebold–Mariano test that both forecasts lose equally much."""
    if len(own.actual) <= 2 * own.horizon:
        return float("nan")
    return diebold_mariano(own.losses(), other.losses(), horizon=own.horizon).p_value
