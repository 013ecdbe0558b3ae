"""Where a step runs is the matter of what surrounds it: batches follow the device, models never move them."""

import numpy as np
import torch

from longtape.features.build import FeaturesConfig, build
from longtape.models.base import Model, ModelConfig
from longtape.models.prediction import Point, Prediction
from longtape.training.batches import BatchSource
from longtape.training.execution import Execution
from tests.candles import candles
from tests.models.inputs import inputs_of


class Spy(Model):
    """Forecasts zero and remembers on which device its batches were."""

    def forward(self, batch):
        self.seen = {
            name: getattr(batch, name).device.type for name in ("x", "rows", "marks", "y", "present")
        }
        zero = torch.zeros(len(batch), 1, 1, device=batch.x.device)
        return Prediction((Point(zero, torch.ones(1, 1, device=batch.x.device)),), self.kind_columns)


def test_every_tensor_of_a_batch_goes_to_the_device_before_the_model():
    panel = build([candles(200)], FeaturesConfig(features=["log_return"], targets=["return(2)"]))
    model = Spy(ModelConfig(kind="zero", lookback=8), inputs_of(panel, np.arange(50, 150)))
    model.to("meta")
    batch = BatchSource(model, panel).batch(np.arange(100, 104))
    loss = Execution(torch.device("meta"), False).loss(model, batch)
    assert set(model.seen.values()) == {"meta"}
    assert loss.device.type == "meta"
    assert batch.x.device.type == "cpu"


def test_a_batch_in_parts_is_the_batch():
    panel = build([candles(200)], FeaturesConfig(features=["log_return"], targets=["return(2)"]))
    model = Spy(ModelConfig(kind="zero", lookback=8), inputs_of(panel, np.arange(50, 150)))
    batch = BatchSource(model, panel).batch(np.arange(100, 110))
    parts = list(batch.split(4))
    assert [len(part) for part in parts] == [4, 4, 2]
    for name in ("x", "y", "known_at", "y_present"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert torch.equal(batch.by_asset[:, :, 0], batch.x)
    assert batch.shared.shape[2] == 0
