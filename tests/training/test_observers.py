"""What a user sees of a training run: a live line, a history that grows, curves."""

import json
import re

import pytest
import torch

from longtape.core.progress import set_silent
from longtape.training.checkpoint import load_checkpoint
from longtape.training.observers import (
    HistoryFile,
    LiveLine,
    Observer,
    TensorBoard,
    read_history,
    write_history,
)
from longtape.training.update import WeightUpdate, under
from tests.training.trainers import losses, make_panel, trainer


@pytest.fixture(scope="module")
def panel():
    return make_panel()


class Reader(Observer):
    """Reads the history whenever an epoch is over."""

    def __init__(self, path):
        self.path, self.lengths = path, []

    def on_epoch(self, history):
        self.lengths.append(len(self.path.read_text().splitlines()))


def test_the_history_grows_while_it_happens(panel, tmp_path):
    path = tmp_path / "history.jsonl"
    write_history(path, {0: [{"epoch": 0, "validation": 1.0}]})
    made, reader = trainer(panel, tmp_path, "flash"), Reader(path)
    made.watchers.observers = [HistoryFile(path, member=1), reader]
    history = made.fit()
    assert reader.lengths == [3, 4, 5]  # another member's line, epoch 0, and the epochs so far
    assert read_history(path) == {0: [{"epoch": 0, "validation": 1.0}], 1: history}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_resumed_history_forgets_what_is_done_again(panel, tmp_path):
    path = tmp_path / "history.jsonl"
    trainer(panel, tmp_path, "flash", epochs=1).fit()
    write_history(path, {0: [{"epoch": epoch, "validation": 9.0} for epoch in range(5)]})
    resumed = trainer(panel, tmp_path, "flash", epochs=2)
    resumed.watchers.observers = [HistoryFile(path)]
    history = resumed.fit(resume=True)
    assert losses(read_history(path)[0]) == losses(history)


class EveryStep(LiveLine):
    """Shows every step, however quick."""

    def on_step(self, report):
        super().on_step(report)
        self.bar._every = 0.0


def test_the_live_line_says_where_training_stands(panel, tmp_path, capsys):
    set_silent(False)
    made = trainer(panel, tmp_path, "flash", epochs=1)
    made.watchers.observers = [EveryStep()]
    made.fit()
    line = capsys.readouterr().err.splitlines()[2]
    assert re.search(
        r"epoch 1/1: 4/22 steps  [\d.,]+/s  \d+:\d\d left  loss \d\.\d{4}  validation \d\.\d{4}  rate \d\.\de-0\d"
        r"  [\d,]+ windows/s  [\d,]+ MiB",
        line,
    ), line


def test_curves_for_tensorboard(panel, tmp_path):
    pytest.importorskip("tensorboard", reason="needs longtape[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = trainer(panel, tmp_path, "flash", epochs=2)
    made.watchers.observers = [TensorBoard(tmp_path / "curves")]
    history = made.fit()
    curves = EventAccumulator(str(tmp_path / "curves"))
    curves.Reload()
    assert len(curves.Scalars("step/loss")) == 2 * made.steps
    found = [event.value for event in curves.Scalars("epoch/validation")]
    assert found == pytest.approx([entry["validation"] for entry in history[1:]], rel=1e-6)


def test_nobody_who_watches_changes_a_number(panel, tmp_path):
    alone = trainer(panel, tmp_path, "flash", epochs=1)
    expected = losses(alone.fit())
    (tmp_path / "watched").mkdir()
    watched = trainer(panel, tmp_path / "watched", "flash", epochs=1)
    watched.watchers.observers = [LiveLine(), HistoryFile(tmp_path / "history.jsonl")]
    assert losses(watched.fit()) == expected


def test_the_average_of_the_weights_is_what_is_judged(panel, tmp_path, monkeypatch):
    """w̄ ← 0.9·w̄ + 0.1·w after every step, from the weights after the first on."""
    name, seen = "embedding.project.weight", []
    step = WeightUpdate.step

    def remember(self, rate):
        norm = step(self, rate)
        seen.append(self.model.state_dict()[name].double().clone())
        return norm

    monkeypatch.setattr(WeightUpdate, "step", remember)
    made = trainer(panel, tmp_path, "flash", epochs=1, ema=0.9)
    made.fit()
    expected = seen[0]
    for weights in seen[1:]:
        expected = 0.9 * expected + 0.1 * weights
    state, _ = load_checkpoint(made.checkpoint)
    averaged = under("average.module.", state)
    assert torch.allclose(averaged[name].double(), expected, atol=1e-7)
    assert not torch.allclose(averaged[name], under("model.", state)[name], atol=1e-5)
    judged = made.judged.state_dict()
    assert torch.equal(judged[name], averaged[name])
