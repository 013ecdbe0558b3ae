"""Training stops, resumes and repeats to the bit."""

import os
import signal

import numpy as np
import pytest
import torch

import longtape.training.loop as loop
from longtape.core.errors import UserError
from longtape.features.build import FeaturesConfig, build
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from longtape.training.checkpoint import load_weights
from longtape.training.config import TrainingConfig
from longtape.training.loop import Trainer
from longtape.training.schedule import rate_factor
from tests.candles import candles
from tests.models.inputs import inputs_of


@pytest.fixture(scope="module")
def panel():
    config = FeaturesConfig(features=["log_return", "volatility(20)"], targets=["return(6)", "volatility(6)"])
    return build([candles(700)], config)


def trainer(panel, folder, attention="bigbird", **options):
    torch.manual_seed(3)
    rows = np.arange(60, 400)
    block = {"block_size": 4} if attention == "bigbird" else {}
    config = EncoderConfig(
        lookback=32,
        attention=attention,
        attention_options=block,
        d_model=8,
        n_heads=2,
        n_layers=1,
        dropout=0.2,
    )
    training = TrainingConfig(**{"epochs": 3, "batch_size": 16, "patience": 9, **options})
    model = EncoderForecaster(config, inputs_of(panel, rows))
    return Trainer(model, panel, rows, np.arange(410, 500), training, 5, folder / "checkpoint.safetensors")


def losses(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def whole(panel, tmp_path_factory):
    made = trainer(panel, tmp_path_factory.mktemp("whole"))
    return losses(made.fit()), made.model.state_dict()


def test_the_same_seed_gives_the_same_bits(panel, whole, tmp_path):
    again = trainer(panel, tmp_path)
    assert losses(again.fit()) == whole[0]
    same_bits(again.model.state_dict(), whole[1])


def test_training_begins_at_the_baseline_and_counts_its_epochs(panel, whole, tmp_path):
    history = whole[0]
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3]
    baseline = trainer(panel, tmp_path, epochs=0)  # the closed forms alone
    assert baseline.fit()[0]["validation"] == history[0]["validation"] == baseline.validate()
    assert len({entry["validation"] for entry in history}) == 4


@pytest.mark.parametrize("at", [1, 7, 22, 30, 63])
def test_an_interrupted_run_goes_on_to_the_same_bits(panel, whole, tmp_path, monkeypatch, at):
    """SIGINT during step `at`: the step ends, the state is kept, and the rest is what it would have been."""
    made, steps = trainer(panel, tmp_path), []
    step = Trainer._step

    def interrupted(self, batch, number):
        steps.append(number)
        if len(steps) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, number)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.fit()
    monkeypatch.undo()
    torch.manual_seed(99)  # whatever happened in between
    resumed = trainer(panel, tmp_path)
    assert losses(resumed.fit(resume=True)) == whole[0]
    same_bits(resumed.model.state_dict(), whole[1])


def test_a_killed_run_resumes_from_its_last_checkpoint(panel, whole, tmp_path, monkeypatch):
    made = trainer(panel, tmp_path, checkpoint_seconds=1e-9)
    step = Trainer._step

    def dies(self, batch, number):
        if number == 30:
            raise MemoryError
        return step(self, batch, number)

    monkeypatch.setattr(Trainer, "_step", dies)
    with pytest.raises(MemoryError):
        made.fit()
    monkeypatch.undo()
    resumed = trainer(panel, tmp_path)
    assert losses(resumed.fit(resume=True)) == whole[0]
    same_bits(resumed.model.state_dict(), whole[1])


def test_the_best_epoch_is_kept(panel, tmp_path):
    made = trainer(panel, tmp_path, learning_rate=0.5, epochs=4)  # far too fast: the baseline stays the best
    history = made.fit()
    best = min(entry["validation"] for entry in history)
    assert history[-1]["validation"] > best
    assert made.validate() == pytest.approx(best, rel=1e-6)


def test_patience_ends_training(panel, tmp_path):
    made = trainer(panel, tmp_path, learning_rate=0.5, epochs=50, patience=2)
    history = made.fit()
    best = min(history, key=lambda entry: entry["validation"])
    assert history[-1]["epoch"] == best["epoch"] + 2


def test_accumulation_gives_the_gradient_of_the_larger_batch(panel, tmp_path):
    """Without dropout, 2 batches of 8 move the weights as one of 16 (up to rounding)."""
    made = {}
    for name, options in (("one", {}), ("two", {"batch_size": 8, "accumulate": 2})):
        (tmp_path / name).mkdir()
        t = trainer(panel, tmp_path / name, "flash", epochs=1, **options)
        for module in t.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        t.fit()
        made[name] = load_weights(t.checkpoint)
    for key in (name for name in made["one"] if name.startswith("model.")):
        assert torch.allclose(made["one"][key], made["two"][key], atol=1e-4), key


def test_a_stride_visits_every_window_over_its_cycle(panel, tmp_path):
    made = trainer(panel, tmp_path, stride=3, batch_size=4)
    visited = np.concatenate([rows for epoch in range(3) for rows in made._order(epoch, 0)])
    assert len(np.unique(visited)) == len(visited)
    assert len(visited) >= len(made.train) - 3 * 4


def test_a_diverged_loss_is_named(panel, tmp_path, monkeypatch):
    made = trainer(panel, tmp_path)
    monkeypatch.setattr(
        loop.Trainer, "_loss", lambda self, batch: next(self.model.parameters()).sum() * np.nan
    )
    monkeypatch.setattr(loop.Trainer, "validate", lambda self: 1.0)
    with pytest.raises(UserError, match="learning_rate"):
        made.fit()


def test_a_broken_checkpoint_is_named(panel, tmp_path):
    made = trainer(panel, tmp_path)
    made.checkpoint.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        made.fit(resume=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_never_replaced_in_silence(panel, tmp_path):
    with pytest.raises(UserError, match="CUDA"):
        trainer(panel, tmp_path, device="cuda")


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "halving", "constant"])
def test_schedules_stay_between_zero_and_one(schedule):
    factors = [rate_factor(schedule, step, 100, 20, 0.1) for step in range(100)]
    assert min(factors) >= 0
    assert max(factors) <= 1
    if schedule == "constant":
        assert factors[10:] == [1.0] * 90
    if schedule == "halving":
        assert factors[19:41:20] == [1.0, 0.5]
    if schedule in ("onecycle", "cosine"):
        assert factors.index(max(factors)) == 10
        assert factors[-1] < 0.01
