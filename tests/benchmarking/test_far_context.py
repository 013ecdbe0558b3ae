"""The two tasks of benchmarks/far_context.py: their bounds, and who can see the bar that matters."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "far_context.py"
LAG = 100


@pytest.fixture(scope="module")
def far():
    spec = importlib.util.spec_from_file_location("far_context", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["far_context"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["far_context"]


def test_who_knows_the_lag_reaches_the_bound_and_who_does_not_reaches_nothing(far):
    task = far.LagTask(LAG, tokens=128)
    x, y = task.draw(20_000, far.seeded(0))
    share, low, high = far.score(task, x[:, -1 - LAG], y)
    assert low < 1 < high
    assert abs(share - 1) < 0.01
    nothing = far.score(task, torch.zeros_like(y), y)[0]
    assert abs(nothing) < 1e-3
    best = (x[:, :, 0] * y).mean(0).abs()
    assert best.argmax() == 127 - LAG  # no other bar tells of the target
    assert best.sort().values[-2] < 5 * 20_000**-0.5


def test_the_pair_asked_for_is_there_once_and_at_its_distance(far):
    task = far.RecallTask(LAG, tokens=256)
    x, y = task.draw(64, far.seeded(0))
    key, value = x[:, :-1, : task.bits], x[:, :-1, task.bits :]
    found = (key == x[:, -1:, : task.bits]).all(-1)
    assert (found.sum(1) == 1).all()
    assert found[:, 255 - LAG].all()
    assert torch.equal(value[:, 255 - LAG].argmax(-1), y)
    assert ((key != 0).any(-1).sum(1) == 2**task.bits).all()
    assert (x[:, -1, task.bits :] == 0).all()


def test_pairs_stand_at_all_distances_in_training(far):
    x, _ = far.RecallTask(tokens=256).draw(512, far.seeded(0))
    found = (x[:, :-1, :4] == x[:, -1:, :4]).all(-1).int().argmax(1)
    assert found.min() < 30
    assert found.max() == 254


@pytest.mark.parametrize("task", ["LagTask", "RecallTask"])
@pytest.mark.parametrize(
    ("attention", "sees"),
    [("full", True), ("flash", True), ("bigbird", True), ("longformer", True), ("local", False)],
)
@torch.no_grad()
def test_the_bar_at_the_lag_changes_the_answer_of_those_alone_that_can_see_it(far, attention, sees, task):
    torch.manual_seed(0)
    task = getattr(far, task)(LAG, tokens=256)
    reader = far.Reader(task, attention)
    x, _ = task.draw(4, far.seeded(0))
    changed = x.clone()
    changed[:, -1 - LAG] += 1
    assert torch.equal(reader(x), reader(changed)) is not sees
    assert far.whole_differs(reader, task) < 1e-5


def test_a_finished_cell_is_not_done_again(far, tmp_path, monkeypatch):
    trained = []

    def train(task, attention, seed):
        trained.append((task.name, task.lag, attention, seed))
        return far.Reader(task, attention), 1.0

    monkeypatch.setattr(far, "train", train)
    monkeypatch.setattr(far, "TEST_WINDOWS", 8)
    monkeypatch.setattr(
        far, "answers", lambda reader, task, seed, windows: task.draw(8, far.seeded(0))[1:] * 2
    )
    monkeypatch.setattr(far, "score", lambda task, output, y: (0.5, 0.4, 0.6))
    monkeypatch.setattr(far, "whole_differs", lambda reader, task: 0.0)
    path = tmp_path / "cells.jsonl"
    far.work(path, "lag", "flash", [100, 1_000], 0)
    far.work(path, "lag", "flash", [100, 1_000, 3_900], 0)
    far.work(path, "recall", "flash", [100, 1_000], 0)
    assert trained == [("lag", lag, "flash", 0) for lag in (100, 1_000, 3_900)] + [
        ("recall", None, "flash", 0)
    ]
    cells = far.load(path)
    assert [cell.lag for cell in cells] == [100, 1_000, 3_900, 100, 1_000]
    far.report(cells, tmp_path)
    assert "50.0% (40.0% to 60.0%)" in (tmp_path / "far_context.md").read_text()
    assert (tmp_path / "far_context.png").stat().st_size > 10_000
