"""Seeds that are averaged go on between two of them and within one."""

import pytest
import torch

from longtape.experiment import parse_experiment
from longtape.training.loop import Trainer
from longtape.training.run_folder import RunFolder
from longtape.workflow.pipeline import ExperimentPipeline
from tests.candles import candles

DOCUMENT = {
    "seed": 4,
    "data": {"source": "file", "path": "none.parquet", "symbols": ["TEST"], "interval": "1h"},
    "features": ["log_return"],
    "targets": ["return(3)"],
    "model": {"lookback": 16, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1},
    "training": {"epochs": 1, "seeds": 3, "stride": 4, "checkpoint_seconds": 1e-9, "learning_rate": 0.01},
}


class Killed(Exception):
    """Stands for a process that ends without a word."""


def fit(folder):
    pipeline = ExperimentPipeline(parse_experiment(DOCUMENT, "test"))
    panel = pipeline.panel([candles(500)])
    return pipeline.fit_in(RunFolder(folder), panel, pipeline.split(panel))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole")).model.state_dict()


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6])
def test_the_average_has_the_same_bits(whole, tmp_path, monkeypatch, at):
    """Two steps a seed: the first of a seed, its last, those of the next."""
    step, seen = Trainer._step, []

    def dies(self, *args):
        seen.append(1)
        if len(seen) == at:
            raise Killed
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", dies)
    with pytest.raises(Killed):
        fit(tmp_path)
    monkeypatch.undo()
    found = fit(tmp_path).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    assert {name.split(".")[1] for name in whole if name.startswith("members")} == {"0", "1", "2"}
