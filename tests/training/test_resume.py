"""N steps, kill −9, the rest: the same bits as without, whatever the options, at random moments."""

import numpy as np
import pytest
import torch

from longtape.core.errors import UserError
from tests.training.kills import OPTION_SETS, PHASES, Kill, outcome, run
from tests.training.trainers import make_panel, trainer

FEW = ("adam, average, accumulation", "float16, plateau, stride", "bfloat16, checkpointing, restarts")


def killed_and_resumed(folder, options, draw, kills=2):
    """Killed so many times, then to the end; the moments, for the message of a failure."""
    moments = [Kill(str(draw.choice(PHASES)), int(draw.integers(1, 15))) for _ in range(kills)]
    codes = [run(folder, options, kill) for kill in moments]
    assert codes[0] == -9, (moments, codes)
    assert run(folder, options) == 0
    return moments


def assert_same(folder, whole, moments):
    weights, history = outcome(folder)
    expected, entries = outcome(whole)
    assert history == entries, moments
    for name, tensor in expected.items():
        assert torch.equal(tensor, weights[name]), (name, moments)


def try_set(name, root, trials):
    options, draw = OPTION_SETS[name], np.random.default_rng(list(OPTION_SETS).index(name))
    whole = root / "whole"
    whole.mkdir()
    assert run(whole, options) == 0
    for trial in range(trials):
        folder = root / str(trial)
        folder.mkdir()
        assert_same(folder, whole, killed_and_resumed(folder, options, draw))


@pytest.mark.parametrize("name", FEW)
def test_a_killed_run_comes_to_the_same_bits(tmp_path, name):
    try_set(name, tmp_path, trials=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OPTION_SETS)
def test_a_run_killed_at_twenty_moments_comes_to_the_same_bits(tmp_path, name):
    try_set(name, tmp_path, trials=10)


def test_a_checkpoint_of_several_processes_is_not_one_of_one(tmp_path):
    made = trainer(make_panel(), tmp_path, epochs=1)
    made.fit()
    from longtape.training.checkpoint import load_checkpoint
    from longtape.training.processes import Processes

    with pytest.raises(UserError, match="written by 1 processes, and there are 2"):
        load_checkpoint(made.checkpoint, Processes(0, 2))
