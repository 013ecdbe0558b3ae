"""What a fitted model says of many windows, the same bits whichever other windows are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from longtape.core.progress import progress
from longtape.features.panel import Panel, Rows
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.training.batches import BatchSource

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predicted:
    """Forecasts of n windows in original units."""

    mean: Array  # [n, K]
    quantiles: dict[float, Array]  # level → [n, K], NaN where the head forecasts a point only
    probabilities: Array | None  # [n, K, M], zero beyond a target's own classes; None without classes
    crps: Array | None = (
        None  # [n, K] of the head's own distribution (a point: its absolute error), NaN without a label
    )

    def at(self, rows: Rows) -> Predicted:
        """Those of some of the windows."""
        return Predicted(
            self.mean[rows],
            {level: values[rows] for level, values in self.quantiles.items()},
            None if self.probabilities is None else self.probabilities[rows],
            None if self.crps is None else self.crps[rows],
        )

    def times(self, unit: Array) -> Predicted:
        """The same in another unit [n, K]."""
        return Predicted(
            self.mean * unit,
            {level: values * unit for level, values in self.quantiles.items()},
            self.probabilities,
            None if self.crps is None else self.crps * unit,
        )


@torch.no_grad()
def predict(
    model: Model,
    panel: Panel,
    origins: Rows,
    batch_size: int = 4,
    levels: Sequence[float] = (),
    label: str = "forecast",
) -> Predicted:
    """Forecasts of the windows that end at `origins` (rows of the panel), with quantiles at `levels`.

    A matrix product of another shape may round differently, and a row of it by its place. So every batch has one size,
    and a window's place in it follows from its ordinal (`Panel.ordinals`), never from its row number or its company: a
    forecast made today is the forecast made in history. The newest window alone costs one batch.
    """
    model.eval()
    source, device = BatchSource(model, panel), _device(model)
    parts: list[tuple[Rows, list[npt.NDArray[np.float32]]]] = []
    with progress(label, len(origins), "windows") as bar:
        for rows, places, wanted in _fixed_batches(panel, origins, batch_size):
            found = _numbers(model, source.batch(rows).to(device), levels)
            parts.append((wanted, [values[places] for values in found]))
            bar.advance(len(wanted))
    columns = [_joined(parts, i, len(origins)) for i in range(len(parts[0][1]))]
    quantiles = dict(zip(levels, columns[2:], strict=False))
    classes = columns[-1] if len(columns) > 2 + len(levels) else None
    return Predicted(columns[0], quantiles, classes, columns[1])


def _device(model: Model) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _numbers(model: Model, batch: Batch, levels: Sequence[float]) -> list[npt.NDArray[np.float32]]:
    prediction = model(batch)
    labels = torch.where(batch.y_present, batch.y, 0.0)
    crps = torch.where(batch.y_present, prediction.crps(labels), torch.nan)
    tensors = [prediction.mean(), crps, *(prediction.quantile(level) for level in levels)]
    probabilities = prediction.probabilities()
    if probabilities is not None:
        tensors.append(probabilities)
    return [tensor.cpu().numpy() for tensor in tensors]


def _joined(parts: list[tuple[Rows, list[npt.NDArray[np.float32]]]], column: int, n: int) -> Array:
    out = np.empty((n, *parts[0][1][column].shape[1:]))
    for wanted, values in parts:
        out[wanted] = values[column]
    return out


def _fixed_batches(panel: Panel, origins: Rows, size: int) -> Iterator[tuple[Rows, Rows, Rows]]:
    """(rows of a batch [size], places in it, positions in `origins` that they answer).

    Each place has a queue of its own; a batch takes the next of every queue, and a place whose queue is empty is filled
    with a row of the batch, whose answer is not read.
    """
    place_of = panel.ordinals[origins] % size
    queues = [np.flatnonzero(place_of == place) for place in range(size)]
    for number in range(max(len(queue) for queue in queues)):
        places = np.array([place for place in range(size) if number < len(queues[place])], np.int64)
        wanted = np.array([queues[place][number] for place in places], np.int64)
        rows = np.full(size, origins[wanted[0]], np.int64)
        rows[places] = origins[wanted]
        yield rows, places, wanted
