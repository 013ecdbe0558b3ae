"""`longtape bench training`: the parts of a step, and that their times add up."""

import re

import pytest
import torch
from typer.testing import CliRunner

from longtape.benchmarking.training import PARTS, Step, StepClock
from longtape.cli.bench import app


def test_the_command_prints_and_writes_a_row_for_every_part(tmp_path):
    words = ["training", "--lookback", "64", "--batch", "4", "--d-model", "8", "--repeats", "2"]
    result = CliRunner().invoke(app, [*words, "--attention", "flash", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.exception
    assert re.findall(r"^\| ([\w-]+) \| [\d.]+ \| -?[\d.]+% \|$", result.stdout, re.M) == list(PARTS)
    assert (tmp_path / "training.md").read_text() == result.stdout


def test_every_part_takes_time_and_together_they_are_the_step():
    run = Step("bigbird", 64, 8, 4, {"attention_options": {"block_size": 8}})
    run.step()
    parts = run.step()
    assert set(parts) == set(PARTS)
    assert all(seconds > 0 for seconds in parts.values())


class Burn(torch.nn.Module):
    """Holds another module; each takes the time that the test's clock gives it."""

    def __init__(self, clock, inner=None):
        super().__init__()
        self.clock, self.inner = clock, inner

    def forward(self, x):
        self.clock.now += 1
        return x if self.inner is None else self.inner(x) * 1.0


def test_what_a_part_holds_of_another_is_not_its_own(monkeypatch):
    class Time:
        now = 0.0

    time = Time()
    monkeypatch.setattr("longtape.benchmarking.training.time.perf_counter", lambda: time.now)
    inner = Burn(time)
    outer, clock = Burn(time, inner), StepClock()
    clock.watch(outer, "attention")
    clock.watch(inner, "dropout")
    clock.start()
    outer(torch.ones(1, requires_grad=True)).backward()
    time.now += 3
    assert clock.stop() == {"attention": 1.0, "dropout": 1.0, "rest": pytest.approx(3.0)}
