"""Scaling: mean and deviation of the training rows, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longtape.core.arrays import Floats
from longtape.core.errors import UserError

_CHUNK = 65_536  # rows held in float64 at a time


@dataclass(frozen=True, eq=False)
class Standardizer:
    """(x − mean) / std per column, both float64 [C]; the deviation is the population's (divided by n).

    A column that is constant over the training rows has no deviation: it gets std 1, so that it becomes 0 there and
    keeps its unit elsewhere. Kept in the run and applied to batches, so that no scaled copy of the matrix exists.
    """

    mean: Floats
    std: Floats

    @classmethod
    def fit(
        cls,
        values: npt.NDArray[Any],
        rows: npt.NDArray[np.int64] | slice,
        columns: Sequence[str] | None = None,
    ) -> Standardizer:
        """Statistics of `values[rows]` ([T, C]; rows: indices or a slice), in float64, NaN left out.

        Raises UserError for no rows, and for a column that is NaN in all of them (named when `columns` is given).
        """
        count, total = np.zeros(values.shape[1]), np.zeros(values.shape[1])
        low, high = np.full(values.shape[1], np.inf), np.full(values.shape[1], -np.inf)
        for chunk in _chunks(values, rows):
            count += np.isfinite(chunk).sum(axis=0)
            total += np.nansum(chunk, axis=0)
            low, high = np.fmin(low, np.fmin.reduce(chunk)), np.fmax(high, np.fmax.reduce(chunk))
        _refuse_empty(count, columns)
        mean = total / count
        squares = sum(np.nansum((chunk - mean) ** 2, axis=0) for chunk in _chunks(values, rows))
        constant = low == high
        return cls(np.where(constant, low, mean), np.where(constant, 1.0, np.sqrt(squares / count)))

    def transform(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Scale [..., C] → float32 of the same shape."""
        return ((values - self.mean) / self.std).astype(np.float32)

    def inverse(self, values: npt.NDArray[Any]) -> Floats:
        """Back to the original units, float64 [..., C]."""
        return values * self.std + self.mean

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, ready for JSON; `from_dict` gives the same bits back."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Sequence[float]]) -> Standardizer:
        """The scaler that `to_dict` wrote down."""
        return cls(np.asarray(kept["mean"], np.float64), np.asarray(kept["std"], np.float64))


def _chunks(values: npt.NDArray[Any], rows: npt.NDArray[np.int64] | slice) -> Iterator[Floats]:
    if isinstance(rows, slice):
        start, stop, step = rows.indices(len(values))
        for first in range(start, stop, _CHUNK * step):
            yield values[first : min(first + _CHUNK * step, stop) : step].astype(np.float64)
        return
    for first in range(0, len(rows), _CHUNK):
        yield values[rows[first : first + _CHUNK]].astype(np.float64)


def _refuse_empty(count: Floats, columns: Sequence[str] | None) -> None:
    if count.max(initial=0) == 0:
        raise UserError("scaler: there are no training rows to take mean and deviation from")
    if (count == 0).any():
        column = int(np.argmax(count == 0))
        name = f"'{columns[column]}'" if columns else str(column)
        raise UserError(f"scaler: column {name} is NaN in every training row; leave the feature out")
