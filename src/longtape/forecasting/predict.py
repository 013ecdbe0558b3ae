"""Point predictions of many windows, the same bits whichever other windows are asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from longtape.core.progress import progress
from longtape.features.panel import Panel
from longtape.features.windows import Windows, first_origin
from longtape.models.forecaster import Forecaster

Rows = npt.NDArray[np.int64]


@torch.no_grad()
def predict(
    model: Forecaster, panel: Panel, origins: Rows, batch_size: int = 32, label: str = "forecast"
) -> npt.NDArray[np.float64]:
    """Predictions [n, K] in original units of the windows that end at `origins` (ascending rows of the panel).

    Every window stands at a fixed place of a batch of a fixed size, given by its row number, because matrix products
    of another shape may round differently: a forecast made today is then the forecast made in history.
    """
    model.eval()
    device = model.scaling.mean.device
    out = np.empty((len(origins), len(model.inputs.targets)))
    with progress(label, len(origins), "windows") as bar:
        for rows, wanted in _fixed_batches(panel, model.config.lookback, origins, batch_size):
            x, _ = Windows(panel, model.config.lookback, rows).batch(np.arange(batch_size))
            given = (x, panel.known_at[rows], panel.mark_positions(rows, model.config.lookback))
            mean = (
                model.predict(*(torch.from_numpy(part).to(device) for part in given)).double().cpu().numpy()
            )
            out[wanted] = mean[origins[wanted] % batch_size]
            bar.advance(len(wanted))
    return out


def _fixed_batches(
    panel: Panel, lookback: int, origins: Rows, batch_size: int
) -> Iterator[tuple[Rows, Rows]]:
    """(rows of a batch [batch_size], positions in `origins` that it answers). Places outside the data repeat a row."""
    first, last = first_origin(panel, lookback), len(panel) - 1
    blocks = origins // batch_size
    for block in np.unique(blocks):
        rows = np.arange(block * batch_size, (block + 1) * batch_size)
        yield np.clip(rows, first, last), np.flatnonzero(blocks == block)


def model_inputs(model: Forecaster, panel: Panel, origins: Rows) -> npt.NDArray[np.float32]:
    """What the encoder is given: scaled windows [n, L, C]."""
    x, _ = Windows(panel, model.config.lookback, origins).batch(np.arange(len(origins)))
    device = model.scaling.mean.device
    with torch.no_grad():
        return model.scaling(torch.from_numpy(x).to(device)).cpu().numpy()
