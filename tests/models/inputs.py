"""What a model must know of a panel, from its training rows."""

import numpy as np

from longtape.features.scaling import Standardizer
from longtape.models.base import ModelInputs


def inputs_of(panel, rows):
    scaler = Standardizer.fit(panel.values, rows)
    return ModelInputs(
        panel.columns,
        panel.assets,
        panel.target_columns,
        panel.interval,
        panel.calendar,
        scaler.mean,
        scaler.std,
        np.nanstd(panel.targets[rows], axis=0),
    )
