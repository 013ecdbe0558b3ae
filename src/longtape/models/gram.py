"""Linear regression from accumulated sums: rows pass by in chunks and are never held together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
ALIKE = 1e-13  # of the largest eigenvalue of XᵀX: what is below it is rounding of inputs that are alike
CHUNK = 16_384  # rows of a design that are held at a time


class Gram:
    """XᵀX [F, F], XᵀY [F, n] and Σy² [n] of all rows added so far."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        self.count = 0.0  # rows, by their weights
        self.xx = np.zeros((n_inputs, n_inputs))
        self.xy = np.zeros((n_inputs, n_outputs))
        self.yy = np.zeros(n_outputs)

    def add(self, x: Array, y: Array, weights: Array | None = None) -> None:
        """Add rows x [m, F] with their outputs y [m, n], each counted `weights` [m] times; below 0, taken away."""
        counted = x if weights is None else x * weights[:, None]
        self.count += len(x) if weights is None else float(weights.sum())
        self.xx += counted.T @ x
        self.xy += counted.T @ y
        self.yy += (y * y if weights is None else y * y * weights[:, None]).sum(axis=0)

    def fade(self, factor: float) -> None:
        """Let all rows so far count `factor` times as much."""
        self.count *= factor
        for sums in (self.xx, self.xy, self.yy):
            sums *= factor

    def solve(self, penalty: Array) -> Array:
        """(XᵀX + diag(penalty))⁻¹ XᵀY, [F, n]; an infinite penalty leaves an input out."""
        used = np.isfinite(penalty)
        weights = np.zeros_like(self.xy)
        left = self.xx[np.ix_(used, used)] + np.diag(penalty[used])
        weights[used] = np.linalg.lstsq(left, self.xy[used], rcond=ALIKE)[0]
        return weights

    def ridge(self, penalty: float) -> Array:
        """Weights [F, n] of least Σ(y − x·w)² + penalty · rows · Σw², the first input, an intercept, left free.

        Of a penalty of 0 those of least norm (up to rounding, where inputs are alike); of an infinite one, the mean.
        """
        if penalty == 0:
            values, vectors = np.linalg.eigh(self.xx)
            told = values > ALIKE * values[-1]
            return np.asarray(vectors[:, told] / values[told] @ (vectors[:, told].T @ self.xy), np.float64)
        diagonal = np.full(len(self.xx), penalty * max(self.count, 1))
        diagonal[0] = 0.0
        if self.count <= 0 or not np.isfinite(penalty):
            return self.solve(diagonal)
        return np.asarray(np.linalg.solve(self.xx + np.diag(diagonal), self.xy), np.float64)

    def errors(self, weights: Array) -> Array:
        """Σ (y − x·w)² of each output [n]."""
        cross = 2 * (weights * self.xy).sum(axis=0)
        explained: Array = np.einsum("fn,fg,gn->n", weights, self.xx, weights)
        return np.maximum(self.yy - cross + explained, 0.0)


def chunks(origins: Rows, size: int = CHUNK) -> Iterator[Rows]:
    """`origins` in parts that are worked on together."""
    return (origins[start : start + size] for start in range(0, len(origins), size))
