"""Training stops, resumes and repeats to the bit."""

import os
import signal

import numpy as np
import pytest
import torch

from longtape.core.errors import UserError
from longtape.training.checkpoint import load_weights
from longtape.training.loop import Trainer
from tests.training.trainers import losses, make_panel, trainer


class Killed(Exception):
    """What stands for a process that ends without a word."""


@pytest.fixture(scope="module")
def panel():
    return make_panel()


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

    def interrupted(self, batch, rows, at_):
        steps.append(at_.step)
        if len(steps) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, rows, at_)

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

    def dies(self, batch, rows, at):
        if at.epoch == 1 and at.step == 8:
            raise Killed
        return step(self, batch, rows, at)

    monkeypatch.setattr(Trainer, "_step", dies)
    with pytest.raises(Killed):
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


def test_a_broken_checkpoint_is_named(panel, tmp_path):
    made = trainer(panel, tmp_path)
    made.checkpoint.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        made.fit(resume=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_never_replaced_in_silence(panel, tmp_path):
    with pytest.raises(UserError, match="CUDA"):
        trainer(panel, tmp_path, device="cuda")
