"""Linear regression on the whole window: every scaled column at every lag, with one penalty on all weights, or none.

The sums XᵀX of overlapping windows are sums of products of two rows so many bars apart, and those of windows that
begin a bar later differ from them by one product at either end. So no window is written out, and T windows of L rows
of C columns take T·L·C² + L²·C² operations where the products of the windows themselves would take T·L²·C².

Hoerl & Kennard (1970), "Ridge Regression". Of a volatility ln y² is regressed, and the expected variance is e^(fit)
times the mean of the exponentiated residuals (Duan 1983, "Smearing estimate").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from longtape.core.errors import UserError
from longtape.core.scoring import SMALLEST_VARIANCE
from longtape.features.panel import Panel, Rows
from longtape.features.target_kinds import TargetKind
from longtape.models.base import Array, ModelConfig, ModelInputs, only_kinds
from longtape.models.batch import Batch
from longtape.models.closed_forms import MOVES, FromBaselines, space_of
from longtape.models.embedding import InputScaling
from longtape.models.gram import Gram
from longtape.models.har import FLOOR
from longtape.models.linear_baseline import RIDGE_GRID, LinearBaseline, Scale, best_ridge
from longtape.models.prediction import Prediction

MOST_INPUTS = 6_000  # of the regression: XᵀX of so many takes 300 MB
_NUMBERS = 2**22  # of windows that are written out together


class WindowConfig(ModelConfig):
    """A model of the scaled rows of the window."""

    lookback: int = Field(24, ge=1, description="bars in a window, all of which are read")
    clip: float = Field(8.0, gt=0, description="scaled inputs are limited to ± this many deviations")


class OlsConfig(WindowConfig):
    """Least squares."""

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        only_kinds(self, kinds, (*MOVES, "volatility"))


class RidgeConfig(OlsConfig):
    """Least squares with a penalty."""

    penalty: float | None = Field(
        None,
        gt=0,
        description="on the squares of the weights of scaled inputs, each as often as there are rows; by default the"
        f" one of least validation error, of {', '.join(f'{one:g}' for one in RIDGE_GRID[:-1])} and ∞",
    )

    @property
    def chosen_on_validation(self) -> str:
        """The penalty, where none is named."""
        return "the penalty of the ridge is chosen" if self.penalty is None else ""


class WindowRidge(LinearBaseline):
    """[B, L, C] scaled windows → [B, A, n], by weights on every number of the window.

    `penalty`: that of the weights; None: the one of least validation error. `space`: of the labels, mean or
    log_variance.
    """

    weights: Tensor
    intercept: Tensor

    def __init__(
        self, n_columns: int, lookback: int, shape: tuple[int, int], space: str, penalty: float | None
    ) -> None:
        super().__init__()
        self.lookback, self.space, self.penalty = lookback, space, penalty
        n_inputs = n_columns * lookback
        if n_inputs > MOST_INPUTS:
            raise UserError(
                f"model.lookback: {lookback} bars of {n_columns} columns are {n_inputs:,} inputs of a regression, and"
                f" it takes {MOST_INPUTS:,}; look back over {MOST_INPUTS // n_columns} bars or name fewer features"
            )
        self.register_buffer("weights", torch.zeros(n_inputs, *shape, dtype=torch.float64))
        self.register_buffer("intercept", torch.zeros(shape, dtype=torch.float64))

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        inputs = scaled.flatten(1).double()
        return (torch.einsum("bf,fan->ban", inputs, self.weights) + self.intercept).float()

    def fit(self, panel: Panel, columns: Rows, train: Rows, validation: Rows, scale: Scale) -> None:
        whole = np.isfinite(panel.targets[train][:, columns]).all()
        # Labels known at other times for other assets need sums of their own.
        for group in [slice(None)] if whole else [slice(a, a + 1) for a in range(len(columns))]:
            own = columns[group]
            found = self._fitted(_Labelled(panel, own.ravel(), train, self.space), train, validation, scale)
            self.intercept[group] = torch.from_numpy(found[0].reshape(own.shape))
            self.weights[:, group] = torch.from_numpy(found[1:].reshape(-1, *own.shape))

    def _fitted(self, labelled: _Labelled, train: Rows, validation: Rows, scale: Scale) -> Array:
        """Weights [1 + L·C, n]."""
        learnt = labelled.windows(train, scale, self.lookback)
        if self.penalty is not None:
            weights = learnt.gram().ridge(self.penalty)
        else:
            weights = best_ridge(learnt.gram(), labelled.windows(validation, scale, self.lookback).gram())
        if self.space == "log_variance":
            weights[0] += learnt.smearing(weights)
        return weights


class _Labelled:
    """Labels of some targets as they are regressed."""

    def __init__(self, panel: Panel, columns: Rows, train: Rows, space: str) -> None:
        self.panel, self.columns, self.space = panel, columns, space
        squares = np.nanmean(panel.targets[train][:, columns] ** 2, axis=0)
        self.floor = np.log(np.maximum(FLOOR * squares, SMALLEST_VARIANCE))

    def of(self, origins: Rows) -> Array:
        """[m, n]; of a volatility ln y², at least what tells no more."""
        labels: Array = self.panel.targets[origins][:, self.columns]
        if self.space == "log_variance":
            labels = np.maximum(np.log(np.maximum(labels**2, SMALLEST_VARIANCE)), self.floor)
        return labels

    def windows(self, origins: Rows, scale: Scale, lookback: int) -> ScaledWindows:
        """The windows of the origins whose labels are known."""
        labels = self.of(origins)
        known = np.isfinite(labels).all(axis=1)
        return ScaledWindows(self.panel, origins[known], labels[known], scale, lookback)


class ScaledWindows:
    """Windows [m, L·C] that end at ascending origins, in order of time within each, with their labels [m, n]."""

    def __init__(self, panel: Panel, origins: Rows, labels: Array, scale: Scale, lookback: int) -> None:
        self.labels, self.lookback, self.n_columns = labels, lookback, panel.values.shape[1]
        first = int(origins[0]) - lookback + 1 if len(origins) else 0
        rows = panel.values[first : int(origins[-1]) + 1] if len(origins) else panel.values[:0]
        self.rows: Array = scale(torch.from_numpy(rows)).numpy().astype(np.float64)
        self.starts = origins - lookback + 1 - first

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, places: slice | Rows) -> Array:
        """Some of the windows, written out."""
        rows = self.starts[places][:, None] + np.arange(self.lookback)
        return self.rows[rows].reshape(len(rows), -1)

    def parts(self) -> Iterator[slice]:
        """Places of windows that are written out together."""
        size = max(1, _NUMBERS // (self.lookback * self.n_columns))
        return (slice(start, start + size) for start in range(0, len(self), size))

    def gram(self) -> Gram:
        """XᵀX and XᵀY of all of them, a one in front of each."""
        gram = Gram(1 + self.lookback * self.n_columns, self.labels.shape[1])
        runs = np.flatnonzero(np.diff(self.starts, prepend=-2) != 1)
        for begin, end in zip(runs, [*runs[1:], len(self)], strict=True):
            first, last = int(self.starts[begin]), int(self.starts[end - 1])
            _add_run(gram, self.rows[first : last + self.lookback], self.labels[begin:end])
        return gram

    def smearing(self, weights: Array) -> Array:
        """ln of the mean exponentiated residual of each output [n]."""
        total = np.zeros(self.labels.shape[1])
        for part in self.parts():
            total += np.exp(self.labels[part] - weights[0] - self.at(part) @ weights[1:]).sum(axis=0)
        return np.log(np.maximum(total / max(len(self), 1), SMALLEST_VARIANCE))


def _add_run(gram: Gram, rows: Array, labels: Array) -> None:
    """Add the m windows that lie one bar apart in rows [m + L − 1, C], with their labels [m, n]."""
    m, lookback = len(labels), len(rows) - len(labels) + 1
    running = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])
    total = (running[m:] - running[:-m]).ravel()
    gram.count += m
    gram.xx[0, 0] += m
    gram.xx[0, 1:] += total
    gram.xx[1:, 0] += total
    gram.xx[1:, 1:] += window_products(rows, lookback)
    gram.xy[0] += labels.sum(axis=0)
    gram.xy[1:] += np.concatenate([rows[at : at + m].T @ labels for at in range(lookback)])
    gram.yy += (labels * labels).sum(axis=0)


def window_products(rows: Array, lookback: int) -> Array:
    """Σ wᵀw [L·C, L·C] over all windows w of `lookback` consecutive rows [m + L − 1, C], rows in order of time."""
    m, n_columns = len(rows) - lookback + 1, rows.shape[1]
    out = np.empty((lookback, n_columns, lookback, n_columns))
    for q in range(lookback):
        out[0, :, q] = rows[:m].T @ rows[q : q + m]
    for p in range(1, lookback):  # a window that begins a row later: one product leaves, one comes
        left, came = rows[p - 1 : lookback - 1], rows[m + p - 1 : m + lookback - 1]
        out[p, :, p:] = out[p - 1, :, p - 1 : -1]
        out[p, :, p:] += came[0][:, None, None] * came - left[0][:, None, None] * left
        out[p, :, :p] = out[:p, :, p].transpose(2, 0, 1)
    return out.reshape(lookback * n_columns, -1)


class Ols(FromBaselines):
    """Least squares on every number of the window; of least norm where inputs are alike."""

    Config = OlsConfig
    title = "OLS on the window"
    config: OlsConfig

    def __init__(self, config: OlsConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.scaling = InputScaling(inputs.mean, inputs.deviation, config.clip)

    @property
    def penalty(self) -> float | None:
        """On the squares of the weights."""
        return 0.0

    def build(self, kind: str) -> LinearBaseline:
        n_assets, n_targets = self.inputs.kinds[kind].shape
        space = space_of(self.inputs, kind)
        return WindowRidge(
            len(self.inputs.columns), self.config.lookback, (n_assets, n_targets), space, self.penalty
        )

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        for kind, baseline in self.each():
            baseline.fit(panel, self.inputs.kinds[kind], train, validation, self.scaling)

    def forward(self, batch: Batch) -> Prediction:
        scaled = self.scaling(batch.x)
        parts = [self.point(kind, baseline(scaled, batch.rows)) for kind, baseline in self.each()]
        return Prediction(tuple(parts), self.kind_columns)


class Ridge(Ols):
    """Ridge on every number of the window."""

    Config = RidgeConfig
    title = "ridge on the window"
    config: RidgeConfig

    @property
    def penalty(self) -> float | None:
        """As named."""
        return self.config.penalty
