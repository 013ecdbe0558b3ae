"""From a panel to the batches that a model reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from longtape.core.errors import UserError
from longtape.features.panel import Panel, Rows
from longtape.features.windows import Windows, prefetch
from longtape.models.base import Model
from longtape.models.batch import Batch


class BatchSource:
    """Batches of a panel for a fitted model; what the model reads of each row is computed once.

    `block`: so many of the origins of each batch, as they are asked for, are consecutive rows. `trained`: the rows
    whose labels may be learnt, where the model reads labels of rows before the origin.
    """

    def __init__(self, model: Model, panel: Panel, block: int = 1, trained: Rows | None = None) -> None:
        self.panel, self.lookback, self.steps = panel, model.config.lookback, model.future_steps
        self.reads_calendar, self.block = model.config.reads_calendar, block
        self.label_offsets = model.label_offsets if trained is not None else model.label_offsets[:0]
        self.trained = np.zeros(len(panel), bool)
        self.trained[[] if trained is None else trained] = True
        self.row_inputs = torch.from_numpy(model.row_inputs(panel))
        self.all_present = bool(panel.present.all())

    def batch(self, origins: Rows) -> Batch:
        """The windows that end at `origins`, on the CPU. UserError where one does not lie in the panel."""
        panel = self.panel
        x, y = Windows(panel, self.lookback, origins).batch(np.arange(len(origins)))
        return Batch(
            x=torch.from_numpy(x),
            present=self._present(origins),
            known_at=torch.from_numpy(panel.known_at[origins]),
            rows=self.row_inputs[origins],
            marks=torch.from_numpy(panel.mark_positions(origins, self.lookback)),
            calendar=self._calendar(origins),
            future=torch.from_numpy(panel.future(origins, self.steps)),
            y=torch.from_numpy(y).float(),
            y_present=torch.from_numpy(np.isfinite(y)),
            y_rows=self._earlier_labels(origins),
            n_shared=panel.n_shared,
            block=self.block,
        )

    def batches(self, order: Iterable[Rows]) -> Iterator[Batch]:
        """A batch for each array of origins, read ahead by a thread."""
        return prefetch(self.batch, order)

    def _calendar(self, origins: Rows) -> torch.Tensor:
        if not self.reads_calendar:
            return torch.empty(len(origins), self.lookback, 0)
        return torch.from_numpy(self.panel.calendar_of(origins, self.lookback))

    def _earlier_labels(self, origins: Rows) -> torch.Tensor:
        rows = origins[:, None] + self.label_offsets
        labels = np.where(self.trained[rows][..., None], self.panel.targets[rows], np.nan)
        return torch.from_numpy(labels).float()

    def _present(self, origins: Rows) -> torch.Tensor:
        n_assets = len(self.panel.assets)
        if self.all_present:
            return torch.ones(1, 1, 1, dtype=torch.bool).expand(len(origins), self.lookback, n_assets)
        rows = origins[:, None] + np.arange(1 - self.lookback, 1)
        return torch.from_numpy(self.panel.present[rows])


def in_blocks(origins: Rows, block: int) -> Rows:
    """Ascending origins as [n, block], each row consecutive; what a run has left over at its beginning stands in none.

    UserError where there is no such row.
    """
    if block == 1:
        return origins[:, None]
    runs = np.split(origins, np.flatnonzero(np.diff(origins) != 1) + 1)
    blocks = np.concatenate([run[len(run) % block :].reshape(-1, block) for run in runs])
    if not len(blocks):
        raise UserError(
            f"training: the loss is one of {block} consecutive windows (model.heads), and a period holds"
            f" {len(origins)}; name a shorter block or a longer period"
        )
    return blocks


def in_order(blocks: Rows, batch_size: int, stride: int = 1) -> Iterator[Rows]:
    """Every `stride`-th block [n, block], in order of time: the origins of whole batches of `batch_size`."""
    rows = blocks[::stride]
    size = max(1, batch_size // blocks.shape[1])
    return (rows[start : start + size].ravel() for start in range(0, len(rows), size))
