"""What the honest baselines of a kind of target would have forecast, each from what was known at its origin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from longtape.features.panel import Panel, Rows
from longtape.features.splits import Split
from longtape.forecasting.predict import Predicted
from longtape.models.base import Model, ModelInputs
from longtape.models.registry import build_model, config_of
from longtape.training.batches import BatchSource

_ROWS = 8_192  # forecast together


def baseline_forecast(name: str, inputs: ModelInputs, panel: Panel, split: Split) -> Predicted:
    """Forecasts of the closed-form model `name` at the test origins; K targets as in `inputs`.

    It is fitted on the training origins, or, where the model `refits_monthly`, each month on all origins since the
    first training one whose labels are known by the month's first origin.
    """
    own = _only(panel, inputs)
    model = build_model(config_of(name)(kind=name), inputs)
    periods = _months(own, split.test) if model.refits_monthly else [split.test]
    parts = []
    for origins in periods:
        train = _known(own, split.train, origins) if model.refits_monthly else split.train
        model.fit(own, train, split.validation)
        parts.append(_forecast(model, own, origins))
    mean = np.concatenate([part.mean for part in parts])
    classes = [part.probabilities for part in parts if part.probabilities is not None]
    return Predicted(mean, {}, np.concatenate(classes) if classes else None)


def _only(panel: Panel, inputs: ModelInputs) -> Panel:
    """The panel with the targets of `inputs` alone."""
    at = [panel.target_columns.index(target) for target in inputs.targets]
    return replace(
        panel,
        targets=panel.targets[:, at],
        target_columns=inputs.targets,
        target_ends=panel.target_ends[:, at],
    )


def _months(panel: Panel, origins: Rows) -> list[Rows]:
    months = panel.timestamps[origins].astype("datetime64[ms]").astype("datetime64[M]")
    return np.split(origins, np.flatnonzero(np.diff(months.astype(np.int64))) + 1)


def _known(panel: Panel, train: Rows, origins: Rows) -> Rows:
    rows = np.arange(train[0], origins[0] + 1)
    return rows[panel.targets_known[rows].max(axis=1) <= panel.known_at[origins[0]]]


@torch.no_grad()
def _forecast(model: Model, panel: Panel, origins: Rows) -> Predicted:
    source = BatchSource(model.eval(), panel)
    parts = [model(source.batch(origins[i : i + _ROWS])) for i in range(0, len(origins), _ROWS)]
    mean = torch.cat([part.mean() for part in parts])
    classes = [p for part in parts if (p := part.probabilities()) is not None]
    return Predicted(_float64(mean), {}, _float64(torch.cat(classes)) if classes else None)


def _float64(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = tensor.double().numpy()
    return values
