"""What goes wrong within a step is one line: the step, the times, the way out. The checkpoint before it stands."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from longtape.core.errors import UserError
from longtape.training.checkpoint import load_checkpoint
from longtape.training.loop import Trainer
from longtape.training.update import WeightUpdate
from tests.training.trainers import ROWS, make_panel, trainer


@pytest.fixture(scope="module")
def panel():
    return make_panel()


def fails_at(monkeypatch, made, owner, name, step, act):
    """Let `act` happen in place of a call once `step` steps are done."""
    original = getattr(owner, name)

    def instead(*args, **kwargs):
        done = made.schedule.total if not hasattr(made, "seen") else made.seen
        made.seen = 1 if done == made.schedule.total else done + 1
        return act(original, *args, **kwargs) if made.seen > step else original(*args, **kwargs)

    monkeypatch.setattr(owner, name, instead)


def refused(made, *words):
    with pytest.raises(UserError) as raised:
        made.fit()
    line = str(raised.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line
    return line


def assert_stands(made, steps):
    """The checkpoint is that after the last good step."""
    state, at = load_checkpoint(made.checkpoint)
    assert (at.epoch, at.step) == (0, steps)
    assert all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point())


def test_a_loss_that_is_not_finite(panel, tmp_path, monkeypatch):
    made = trainer(panel, tmp_path, "flash", checkpoint_seconds=1e-9)
    fails_at(monkeypatch, made, Trainer, "_loss", 5, lambda loss, *args: loss(*args) * np.nan)
    refused(
        made, "epoch 1, step 6", "the loss is nan", "learning_rate (0.001)", "2020-09", "checkpoint stands"
    )
    assert_stands(made, 5)


def test_a_gradient_that_explodes(panel, tmp_path, monkeypatch):
    made = trainer(panel, tmp_path, "flash", checkpoint_seconds=1e-9)

    def explode(backward, update, loss):
        backward(update, loss)
        update.parameters[0].grad[...] = float("inf")

    fails_at(monkeypatch, made, WeightUpdate, "backward", 3, explode)
    refused(made, "epoch 1, step 4", "norm of the gradient is", "clip_norm")
    assert_stands(made, 3)


def test_float16_leaves_out_steps_until_its_scale_is_used_up(panel, tmp_path, monkeypatch):
    made = trainer(panel, tmp_path, "flash", precision="float16", epochs=1)

    def explode(backward, update, loss):
        backward(update, loss)
        update.parameters[0].grad[...] = float("inf")

    fails_at(monkeypatch, made, WeightUpdate, "backward", 0, explode)
    refused(made, "step 17", "bfloat16 or float32")  # 2¹⁶ halved sixteen times


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory: …")],
)
def test_a_memory_that_is_used_up(panel, tmp_path, monkeypatch, error):
    made = trainer(panel, tmp_path, "flash", checkpoint_seconds=1e-9)

    def fail(*args):
        raise error

    fails_at(monkeypatch, made, Trainer, "_loss", 2, fail)
    refused(made, "step 3", "batch_size=8 with accumulate=2", "gradient_checkpointing")
    assert_stands(made, 2)


def test_other_errors_stay_what_they_are(panel, tmp_path, monkeypatch):
    made = trainer(panel, tmp_path, "flash")

    def fail(*args):
        raise RuntimeError("something else")

    fails_at(monkeypatch, made, Trainer, "_loss", 0, fail)
    with pytest.raises(RuntimeError, match="something else"):
        made.fit()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_gone_bad_is_named(panel, tmp_path, bad):
    """As where a file under a memory map changes while it is read: the time, the column, the value."""
    made = trainer(panel, tmp_path, "flash", epochs=1)
    made._begun()  # what has a closed form is fitted on the good rows
    values = panel.values.copy()
    values[200, 1] = bad
    made.panel = replace(panel, values=values)
    made.source.panel = made.panel
    blocks = ROWS[(ROWS >= 200) & (ROWS < 232)][:4, None]
    with pytest.raises(UserError, match=rf"2020-09-2\d .* has {bad} as 'TEST volatility\(20\)'"):
        made._batch(blocks)
