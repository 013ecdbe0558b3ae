"""The perceptron: begins at its start, reads means over spans and what the start says, learns what is left."""

import numpy as np
import pytest
import torch

from longtape.core.errors import UserError
from longtape.experiment import parse_experiment
from longtape.models.heads import VolatilityConfig, VolatilityHead
from longtape.training.batches import BatchSource
from longtape.workflow.pipeline import ExperimentPipeline
from tests.candles import candles

DOCUMENT = {
    "data": {"source": "file", "path": "none.parquet", "symbols": ["TEST"], "interval": "1h"},
    "features": ["log_return", "volatility(10)"],
    "targets": ["return(3)", "volatility(4)"],
    "model": {"kind": "mlp", "lookback": 16, "hidden": [8, 4], "dropout": 0.0},
    "training": {"epochs": 1, "stride": 2},
}


def fitted(**model):
    document = DOCUMENT | {"model": DOCUMENT["model"] | model}
    pipeline = ExperimentPipeline(parse_experiment(document, "test"))
    panel = pipeline.panel([candles(700)])
    split = pipeline.split(panel)
    return pipeline.fit(panel, split).model, panel, split


def test_untrained_it_is_its_start():
    model, panel, split = fitted()
    batch = BatchSource(model, panel).batch(split.test[:5])
    for kind in model.heads:
        torch.nn.init.zeros_(model.head(kind).linear.weight)
        torch.nn.init.zeros_(model.head(kind).linear.bias)
    made = model(batch)
    starts = dict(model.starts(model.scaling(batch.x), batch.rows))
    assert torch.equal(made.parts[0].value, starts["return"])
    assert torch.equal(made.parts[1].log_variance, starts["volatility"])


def test_what_it_reads_is_means_and_the_scaled_starts():
    model, panel, split = fitted()
    assert model.spans == (1, 4, 16)
    assert model.layers[0][0].in_features == 2 * 3 + 2
    seen = []
    model.layers.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model(BatchSource(model, panel).batch(split.train))
    assert seen[0][:, -2:].mean(0).abs().max() < 1e-3
    assert seen[0][:, -2:].std(0, correction=0) == pytest.approx(torch.ones(2), abs=0.05)
    scaled = model.scaling(torch.from_numpy(panel.values[split.train[0] - 3 : split.train[0] + 1]))
    assert seen[0][0, 2:4] == pytest.approx(scaled.mean(0), abs=1e-6)


@pytest.mark.parametrize(("model", "width"), [({"wide": False}, 4), ({}, 4 + 8), ({"skip": False}, 4 + 6)])
def test_the_wide_part_stands_beside_the_layers(model, width):
    made, _, _ = fitted(**model)
    assert made.head("return").linear.in_features == width


def test_impossible_widths_are_refused():
    with pytest.raises(UserError, match="at least one unit, not 0"):
        parse_experiment(DOCUMENT | {"model": {"kind": "mlp", "hidden": [8, 0]}}, "test")
    with pytest.raises(UserError, match="unknown key 'attention'"):
        parse_experiment(DOCUMENT | {"model": {"kind": "mlp", "attention": "flash"}}, "test")


def gated(share, level, n=4_000):
    """A gate set on forecasts to which `added` was added, where `share` of it belongs there."""
    rng = torch.Generator().manual_seed(1)
    head = VolatilityHead(3, torch.ones(1, 1), config=VolatilityConfig(name="volatility", gate=True))
    base, added = torch.randn(n, 1, 1, generator=rng), torch.randn(n, 1, 1, generator=rng)
    made = head.distribution(added[..., None], base, torch.ones(1, 1))
    y = (0.5 * (base + share * added + level)).exp()
    head.calibrate([(made, y)])
    return head, head.distribution(added[..., None], base, torch.ones(1, 1)), y


@pytest.mark.parametrize(("share", "level"), [(0.0, 0.0), (0.35, 0.4), (1.0, -0.2), (1.7, 0.0), (-0.5, 0.0)])
def test_a_gate_keeps_the_share_that_belongs_there(share, level):
    head, made, y = gated(share, level)
    kept = float(np.clip(share, 0, 1))
    assert head.gate.item() == pytest.approx(kept, abs=1e-6)
    assert ((y**2) / made.mean() ** 2).mean().item() == pytest.approx(1.0, rel=1e-4)
    if kept == share:
        assert made.loss(y).max().item() < 1e-6


def test_a_gate_is_kept_with_the_weights():
    head, _, _ = gated(0.35, 0.0)
    assert {"gate", "level"} <= set(head.state_dict())
    without = VolatilityHead(3, torch.ones(1, 1), config=VolatilityConfig(name="volatility"))
    assert not {"gate", "level"} & set(without.state_dict())
