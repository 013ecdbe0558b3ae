"""The closed-form part of a network: a baseline fitted on the training rows, from which training begins.

Returns and paths begin at a ridge on averages of the scaled inputs over growing spans, volatility at log-HAR, classes
at their training frequencies. Heads start at zero, so an untrained model is this baseline, and the network learns what
it leaves over. A baseline gives its value in the space of the head: units of the target, log variance, or logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from longtape.core.clock import iso
from longtape.core.errors import UserError
from longtape.core.scoring import SMALLEST_VARIANCE
from longtape.features.panel import Panel, Rows
from longtape.models.base import ALL_ROWS
from longtape.models.gram import Gram, chunks
from longtape.models.har import Array, HarDesign, LogHarFit, fit_log_har
from longtape.models.har_mean import monthly_log_variance

RIDGE_GRID = (0.01, 0.1, 1.0, 10.0, 100.0, float("inf"))
Scale = Callable[[Tensor], Tensor]


class LinearBaseline(nn.Module):
    """What a head's prediction starts from, [B, A, n] (classes: [B, A, n, M])."""

    n_rows = 0  # values that it reads of the origin's row

    @property
    def reach(self) -> int:
        """Rows up to the origin that these depend on, once it is fitted."""
        return 1

    def row_inputs(self, panel: Panel) -> Array:
        """[T, n_rows]: a function of each row and those before it."""
        return np.empty((len(panel), 0))

    def fit(self, panel: Panel, columns: Rows, train: Rows, validation: Rows, scale: Scale) -> None:
        """Fit to the targets `columns` [A, n] of the panel; `scale` is the model's scaling of features."""
        raise NotImplementedError

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Scaled windows [B, L, C] and row inputs [B, n_rows] → [B, A, n], float32."""
        raise NotImplementedError


class Constant(LinearBaseline):
    """The same for every window: the mean label, the logarithm of the mean variance, or the frequency of classes."""

    value: Tensor

    def __init__(self, space: str, n_assets: int, n_targets: int, n_classes: int = 0) -> None:
        super().__init__()
        self.space, self.n_classes = space, n_classes
        shape = (n_assets, n_targets) + ((n_classes,) if space == "logits" else ())
        self.register_buffer("value", torch.zeros(shape, dtype=torch.float64))

    def fit(self, panel: Panel, columns: Rows, train: Rows, validation: Rows, scale: Scale) -> None:
        labels = panel.targets[train][:, columns]
        if self.space == "log_variance":
            found = np.log(np.maximum(np.nanmean(labels**2, axis=0), SMALLEST_VARIANCE))
        elif self.space == "logits":
            # One more of each class than was seen (Laplace), so that no class is impossible.
            seen = np.stack([(labels == c).sum(axis=0) + 1.0 for c in range(self.n_classes)], axis=-1)
            found = np.log(seen / seen.sum(axis=-1, keepdims=True))
        else:
            found = np.nanmean(labels, axis=0) if self.space == "mean" else np.zeros(columns.shape)
        self.value.copy_(torch.from_numpy(found))

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        return self.value.float().expand(len(scaled), *self.value.shape)


class SpanRidge(LinearBaseline):
    """Ridge on the means of every scaled column over the last 1, 4, 16, … bars of the window."""

    weights: Tensor
    intercept: Tensor

    def __init__(self, n_columns: int, lookback: int, n_assets: int, n_targets: int) -> None:
        super().__init__()
        self.lookback = lookback
        self.spans = spans_of(lookback)
        n_inputs = n_columns * len(self.spans)
        zeros = torch.zeros(n_inputs, n_assets, n_targets, dtype=torch.float64)
        self.register_buffer("weights", zeros)
        self.register_buffer("intercept", zeros[0].clone())

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        means = torch.cat([scaled[:, -span:].mean(1) for span in self.spans], 1).double()
        return (torch.einsum("bf,fan->ban", means, self.weights) + self.intercept).float()

    def fit(self, panel: Panel, columns: Rows, train: Rows, validation: Rows, scale: Scale) -> None:
        known = np.isfinite(panel.targets[train][:, columns]).all()
        # Labels known at other times for other assets need sums of their own.
        groups = [slice(None)] if known else [slice(a, a + 1) for a in range(len(columns))]
        for group in groups:
            own = columns[group]
            fitted = self._sums(panel, own.ravel(), train, scale)
            checked = self._sums(panel, own.ravel(), validation, scale)
            best = best_ridge(fitted, checked).reshape(-1, *own.shape)
            self.intercept[group] = torch.from_numpy(best[0])
            self.weights[:, group] = torch.from_numpy(best[1:])

    def _sums(self, panel: Panel, columns: Rows, origins: Rows, scale: Scale) -> Gram:
        gram = Gram(1 + len(self.weights), len(columns))
        for part in chunks(origins):
            labels = panel.targets[part][:, columns]
            known = np.isfinite(labels).all(axis=1)
            if known.any():
                gram.add(self.design(panel, part[known], scale), labels[known])
        return gram

    def design(self, panel: Panel, origins: Rows, scale: Scale) -> Array:
        """[n, 1 + F]: one, then the span means at ascending origins."""
        means = span_means(panel, origins, scale, self.lookback, self.spans)
        return np.concatenate([np.ones((len(origins), 1)), means.reshape(len(origins), -1)], axis=1)


class SharedSpanRidge(LinearBaseline):
    """The same with one set of weights for all assets: each from its own columns and those that all share, its label in
    units of its own deviation. What it gives does not depend on how many assets there are, nor on their order.
    """

    weights: Tensor
    intercept: Tensor
    scale: Tensor

    def __init__(self, n_own: int, n_shared: int, lookback: int, scale: Tensor) -> None:
        super().__init__()
        self.lookback, self.n_own, self.n_shared = lookback, n_own, n_shared
        self.spans = spans_of(lookback)
        n_inputs, n_targets = len(self.spans) * (n_own + n_shared), scale.shape[1]
        self.register_buffer("weights", torch.zeros(n_inputs, n_targets, dtype=torch.float64))
        self.register_buffer("intercept", torch.zeros(n_targets, dtype=torch.float64))
        self.register_buffer("scale", scale.double(), persistent=False)

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        means = torch.stack([scaled[:, -span:].mean(1) for span in self.spans], 1).double()  # [B, S, C]
        own = means[..., : means.shape[2] - self.n_shared].unflatten(2, (-1, self.n_own)).transpose(1, 2)
        shared = means[..., means.shape[2] - self.n_shared :][:, None].expand(-1, own.shape[1], -1, -1)
        design = torch.cat([own, shared], 3).flatten(2)  # [B, A, S · (F + G)]
        return (self.scale * (design @ self.weights + self.intercept)).float()

    def fit(self, panel: Panel, columns: Rows, train: Rows, validation: Rows, scale: Scale) -> None:
        fitted, checked = (self._sums(panel, columns, origins, scale) for origins in (train, validation))
        best = best_ridge(fitted, checked)
        self.intercept.copy_(torch.from_numpy(best[0]))
        self.weights.copy_(torch.from_numpy(best[1:]))

    def _sums(self, panel: Panel, columns: Rows, origins: Rows, scale: Scale) -> Gram:
        gram = Gram(1 + len(self.weights), columns.shape[1])
        for part in chunks(origins):
            means = span_means(panel, part, scale, self.lookback, self.spans)
            shared = means[..., means.shape[2] - self.n_shared :]
            for asset, own in enumerate(columns):
                of_asset = means[..., asset * self.n_own : (asset + 1) * self.n_own]
                design = np.concatenate([of_asset, shared], axis=2).reshape(len(part), -1)
                labels = panel.targets[part][:, own] / self.scale[asset].numpy()
                known = np.isfinite(labels).all(axis=1)
                gram.add(np.concatenate([np.ones((len(part), 1)), design], axis=1)[known], labels[known])
        return gram


def spans_of(lookback: int) -> tuple[int, ...]:
    """1, 4, 16, … up to the lookback."""
    return tuple(span for span in (4**i for i in range(12)) if span <= lookback)


def span_means(panel: Panel, origins: Rows, scale: Scale, lookback: int, spans: tuple[int, ...]) -> Array:
    """Means [n, S, C] of the scaled columns over each span, at ascending origins, from running sums over their rows."""
    first = int(origins[0]) - lookback + 1
    rows = torch.from_numpy(panel.values[first : int(origins[-1]) + 1])
    scaled = scale(rows).numpy().astype(np.float64)
    total = np.concatenate([np.zeros((1, scaled.shape[1])), np.cumsum(scaled, axis=0)])
    end = origins - first + 1
    return np.stack([(total[end] - total[end - span]) / span for span in spans], axis=1)


def best_ridge(fitted: Gram, checked: Gram) -> Array:
    """Weights [1 + F, n], each output with the penalty of least validation error; ∞ leaves the training mean."""
    best = np.full(fitted.xy.shape[1], np.inf)
    chosen = np.zeros_like(fitted.xy)
    for penalty in RIDGE_GRID:
        weights = fitted.ridge(penalty)
        errors = checked.errors(weights)
        better = errors < best
        best = np.where(better, errors, best)
        chosen[:, better] = weights[:, better]
    return chosen


class LogHar(LinearBaseline):
    """Log-HAR of every asset (`longtape.models.har`), whatever the lookback of the network."""

    lag_weights: Tensor
    cell_weights: Tensor
    intercept: Tensor
    log_floor: Tensor

    def __init__(self, design: HarDesign, n_assets: int, n_targets: int) -> None:
        super().__init__()
        self.har = design
        self.n_rows = n_assets * len(design.lags) + 1
        for name, n_inputs in (("lag_weights", len(design.lags)), ("cell_weights", design.n_cells)):
            self.register_buffer(name, torch.zeros(n_assets, n_inputs, n_targets, dtype=torch.float64))
        self.register_buffer("intercept", torch.zeros(n_assets, n_targets, dtype=torch.float64))
        self.register_buffer("log_floor", torch.zeros(n_assets, dtype=torch.float64))

    @property
    def reach(self) -> int:
        """The longest lag in use."""
        used = (self.lag_weights != 0).any(dim=2).any(dim=0).tolist()
        return max([lag + 1 for lag, own in zip(self.har.lags, used, strict=True) if own], default=1)

    def row_inputs(self, panel: Panel) -> Array:
        lags = [self.har.lagged(panel, asset) for asset in range(len(panel.assets))]
        return np.concatenate([*lags, self.har.cells(panel)[:, None].astype(np.float64)], axis=1)

    def fit(self, panel: Panel, columns: Rows, train: Rows, validation: Rows, scale: Scale) -> None:
        for asset, own in enumerate(columns):
            found = fit_log_har(self.har, panel, asset, own, train)
            self._take(asset, found)

    def _take(self, asset: int, found: LogHarFit) -> None:
        self.lag_weights[asset] = torch.from_numpy(found.lag_weights)
        self.cell_weights[asset] = torch.from_numpy(found.cell_weights)
        self.intercept[asset] = torch.from_numpy(found.intercept + found.smearing)
        self.log_floor[asset] = found.log_floor

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        lags = rows[:, :-1].unflatten(1, (len(self.lag_weights), -1))
        cell = rows[:, -1].long()
        lags = torch.maximum(lags, self.log_floor[:, None])
        of_lags = torch.einsum("bal,aln->ban", lags, self.lag_weights)
        of_cell = self.cell_weights[:, cell].transpose(0, 1)
        return (of_lags + of_cell + self.intercept).float()


class MonthlyHar(LinearBaseline):
    """The mean of log-HARs of every asset, fitted anew each month (`longtape.models.har_mean`)."""

    since: Tensor
    n_lags: Tensor

    def __init__(self, design: HarDesign, columns: Rows) -> None:
        super().__init__()
        self.har, self.columns, self.n_rows = design, columns, columns.size
        self.register_buffer("since", torch.zeros((), dtype=torch.int64))
        self.register_buffer("n_lags", torch.tensor(len(design.lags)))

    @property
    def reach(self) -> int:
        """Every row since the first that it was fitted on."""
        return ALL_ROWS

    def row_inputs(self, panel: Panel) -> Array:
        """[T, A·n] ln of the expected variance. UserError where the data begin later than those of the fit."""
        since = int(self.since)
        if panel.known_at[0] > since > 0:
            raise UserError(
                f"log_har_mean is fitted anew each month on all rows since {iso(since)}, and these data begin"
                f" {iso(int(panel.known_at[0]))}; give it the whole history"
            )
        design = replace(self.har, lags=self.har.lags[: int(self.n_lags)])
        parts = [
            [monthly_log_variance(design, one, asset, own, since) for asset, own in enumerate(self.columns)]
            for one in panel.series
        ]
        found = np.concatenate([np.concatenate(part, axis=1) for part in parts])
        return found if panel.unit is None else found - 2 * np.log(panel.unit)[:, None]

    def fit(self, panel: Panel, columns: Rows, train: Rows, validation: Rows, scale: Scale) -> None:
        """From the first training row on whose lags lie in the data; what they are fitted to follows with time.

        Lags for which the training rows are too few are left out for good: the rows that tell of them may not hold
        them whole. A pooled symbol has all of its own history, whenever that begins.
        """
        if panel.unit is not None:
            return
        self.n_lags.fill_(self.har.used(len(train)))
        whole = train[panel.row_in_series[train] >= self.har.lags[int(self.n_lags) - 1]]
        self.since.fill_(int(panel.known_at[whole if len(whole) else len(panel) - 1].min()))

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        return rows.unflatten(1, self.columns.shape).float()
