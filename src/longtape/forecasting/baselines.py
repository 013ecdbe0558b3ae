"""What the honest baselines of a kind of target would have forecast, each from what was known at its origin."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from longtape.features.panel import Panel, Rows
from longtape.features.splits import Split
from longtape.forecasting.predict import Predicted
from longtape.models.base import Model, ModelConfig, ModelInputs
from longtape.models.registry import build_model, config_of
from longtape.training.batches import BatchSource
from longtape.training.config import TrainingConfig
from longtape.training.loop import Trainer

_ROWS = 8_192  # forecast together
_NUMBERS = 2**24  # of windows that are forecast together


@dataclass(frozen=True)
class Training:
    """How a baseline that has something to learn by gradients is trained."""

    config: TrainingConfig
    seed: int = 0


USUAL = Training(TrainingConfig())


def baseline_forecast(
    model: str | ModelConfig, inputs: ModelInputs, panel: Panel, split: Split, training: Training = USUAL
) -> Predicted:
    """Forecasts of a model, described or by name, at the test origins; K targets as in `inputs`.

    It is fitted, or trained, on the training origins, or, where the model `refits_monthly`, each month on all origins
    since the first training one whose labels are known by the month's first origin.
    """
    config = config_of(model)(kind=model) if isinstance(model, str) else model
    own = _only(panel, inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        built = build_model(config, inputs)
        periods = _months(own, split.test) if built.refits_monthly else [split.test]
        parts = []
        for origins in periods:
            train = _known(own, split.train, origins) if built.refits_monthly else split.train
            _fit(built, own, replace(split, train=train), training)
            parts.append(_forecast(built, own, origins))
    mean = np.concatenate([part.mean for part in parts])
    classes = [part.probabilities for part in parts if part.probabilities is not None]
    return Predicted(mean, {}, np.concatenate(classes) if classes else None)


def _fit(model: Model, panel: Panel, split: Split, training: Training) -> None:
    if not model.is_trained:
        return model.fit(panel, split.train, split.validation)
    with tempfile.TemporaryDirectory(prefix="longtape-") as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        Trainer(model, panel, split.train, split.validation, training.config, training.seed, checkpoint).fit()


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
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    size = int(np.clip(_NUMBERS // (model.config.lookback * panel.values.shape[1]), 1, _ROWS))
    batches = (source.batch(origins[i : i + size]).to(device) for i in range(0, len(origins), size))
    parts = [model(batch) for batch in batches]
    mean = torch.cat([part.mean() for part in parts])
    classes = [p for part in parts if (p := part.probabilities()) is not None]
    return Predicted(_float64(mean), {}, _float64(torch.cat(classes)) if classes else None)


def _float64(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = tensor.double().cpu().numpy()
    return values
