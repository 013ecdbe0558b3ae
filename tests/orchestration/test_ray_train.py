"""Ray Train launches the same training function: two workers come to the losses of one process."""

import pytest

pytest.importorskip("ray", reason="needs longtape[ray]")

from longtape.core.errors import LongtapeError
from longtape.experiment import parse_experiment
from longtape.orchestration.ray_train import train_on_ray
from longtape.workflow import train
from tests.candles import candle_frame
from tests.training.trainers import losses

TOLERANCE = 1e-5  # of the losses, relative: the sums of a batch are taken in another order


def experiment(folder, **training):
    candle_frame(400).write_parquet(folder / "candles.parquet")
    model = {"lookback": 16, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1, "dropout": 0.0}
    return parse_experiment(
        {
            "data": {
                "source": "file", "path": str(folder / "candles.parquet"), "symbols": ["TEST"], "interval": "1h"
            },
            "features": ["log_return"],
            "targets": ["return(3)"],
            "model": model,
            "training": {"epochs": 1, **training},
        },
        "test",
    )  # fmt: skip


@pytest.mark.timeout(300)
def test_two_workers_are_one_process(tmp_path):
    described = experiment(tmp_path)
    made = train_on_ray(described, tmp_path / "ray", workers=2)
    whole = train(described, tmp_path / "whole")
    pairs = zip(losses(made.folder.histories[0]), losses(whole.folder.histories[0]), strict=True)
    assert all(ours == pytest.approx(theirs, rel=TOLERANCE) for ours, theirs in pairs)
    assert not list(tmp_path.glob(".*"))  # nothing of Ray's own is left


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_worker_that_fails_ends_all_with_its_message(tmp_path):
    described = experiment(tmp_path)
    (tmp_path / "candles.parquet").unlink()
    with pytest.raises(LongtapeError, match=r"candles\.parquet"):
        train_on_ray(described, tmp_path / "ray", workers=2)
