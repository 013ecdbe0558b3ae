"""How good forecasts are, next to the baselines that anyone could have had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    asset: str
    target: str
    kind: TargetKind
    horizon: int  # the longest
    actual: Array  # [n, H]
    forecast: Array  # [n, H], or [n, H, M] probabilities
    times: Origins  # [n] when each is made

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.asset} {self.target}"

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


@dataclass(frozen=True, eq=False)
class Compared:
    """Forecasts of one target of one asset: the model's, first, and those of every baseline of its kind."""

    forecasts: Mapping[str, Scored]
    crps: Mapping[
        str, float | None
    ]  # the continuous ranked probability score of each; None where there is none

    def rows(self) -> Rows:
        """A row of scores for each, and whether it differs from the model's by more than chance."""
        own = self.forecasts[MODEL]
        made = []
        for title, one in self.forecasts.items():
            p_value = {} if one is own else {P_VALUE: _p_value(own.losses(), one.losses(), own.horizon)}
            made.append({"model": title, **one.scores(), **_crps_column(one, self.crps[title]), **p_value})
        return made


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
    found = compared(inputs, panel, splits, forecasts, named, training)
    return {name: one.rows() for name, one in found.items()}


def compared(
    inputs: ModelInputs,
    panel: Panel,
    splits: Sequence[Split],
    forecasts: pl.DataFrame,
    named: Sequence[Baseline] = (),
    training: Training = USUAL,
) -> dict[str, Compared]:
    """The same as forecasts with their labels. A fold without training origins has nothing to fit baselines on."""
    origins = np.concatenate([split.test for split in splits])
    mine = scored(inputs, panel, origins, _from_frame(inputs, panel, origins, forecasts))
    crps = _mean_crps(panel, origins, forecasts)
    found = {one.name: {MODEL: one} for one in mine}
    of_points: dict[str, dict[str, float | None]] = {one.name: {MODEL: crps.get(one.name)} for one in mine}
    for kind in inputs.kinds if all(len(split.train) for split in splits) else ():
        if all(target.auxiliary for target in inputs.targets_of(kind)):
            continue
        of_kind = inputs.only(kind)
        for baseline in baselines_of(of_kind, panel, named):
            if baseline.config.chosen_on_validation and not all(len(split.validation) for split in splits):
                continue  # a symbol of a pooled run that is listed too late for it
            parts = [baseline_forecast(baseline.config, of_kind, panel, split, training) for split in splits]
            title = baseline.title(of_kind.targets[0])
            for other in scored(of_kind, panel, origins, _joined(parts)):
                found[other.name][title] = other
                of_points[other.name][title] = other.mean_absolute_error
    return {name: Compared(each, of_points[name]) for name, each in found.items()}


def averages(each: Sequence[Compared]) -> dict[str, Rows]:
    """Of several symbols: for each target the mean of their scores, and the test of the mean of their losses at each
    time.
    """
    groups: dict[str, list[Compared]] = {}
    for one in each:
        groups.setdefault(one.forecasts[MODEL].target, []).append(one)
    return {
        f"mean of {len(group)} symbols {target}": _mean_rows(group)
        for target, group in groups.items()
        if len(group) > 1
    }


def _mean_rows(group: Sequence[Compared]) -> Rows:
    titles = [title for title in group[0].forecasts if all(title in one.forecasts for one in group)]
    rows = [{row["model"]: row for row in one.rows()} for one in group]
    losses = {title: _mean_losses([one.forecasts[title] for one in group]) for title in titles}
    made = []
    for title in titles:
        numbers = [name for name in rows[0][title] if name not in ("model", P_VALUE)]
        mean = {name: float(np.mean([one[title][name] for one in rows])) for name in numbers}
        horizon = group[0].forecasts[MODEL].horizon
        p_value = {} if title == MODEL else {P_VALUE: _p_value(losses[MODEL], losses[title], horizon)}
        made.append({"model": title, **mean, **p_value})
    return made


def _mean_losses(each: Sequence[Scored]) -> Array:
    """Mean loss at each time over the symbols that have one, [n]."""
    times = np.unique(np.concatenate([one.times for one in each]))
    total, count = np.zeros(len(times)), np.zeros(len(times))
    for one in each:
        losses, at = one.losses(), np.searchsorted(times, one.times)
        known = np.isfinite(losses)
        np.add.at(total, at[known], losses[known])
        np.add.at(count, at[known], 1)
    return total / np.where(count > 0, count, np.nan)


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
        times = panel.timestamps[origins]
        made.append(Scored(asset, name, targets[0].of_kind, horizon, actual, forecast, times))
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


def _p_value(own: Array, other: Array, horizon: int) -> float:
    """Of the Diebold–Mariano test that both forecasts lose equally much."""
    if len(own) <= 2 * horizon:
        return float("nan")
    return diebold_mariano(own, other, horizon=horizon).p_value
