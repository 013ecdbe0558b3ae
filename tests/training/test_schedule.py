"""Learning rates: pure functions of the step and of the losses before it."""

import pytest
import torch

from longtape.training.config import TrainingConfig
from longtape.training.schedule import Schedule

NAMES = ["onecycle", "cosine", "cosine_restarts", "plateau", "halving", "constant"]


def schedule(name, epochs=5, steps=20, **options):
    return Schedule(TrainingConfig(schedule=name, epochs=epochs, patience=99, **options), steps)


def factors(made, losses=()):
    return [made.factor(step, losses) for step in range(made.total)]


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_rises_first_and_stays_between_zero_and_one(name):
    found = factors(schedule(name))
    assert all(0 <= factor <= 1 for factor in found)
    assert found[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert found[10] == pytest.approx(1 if name != "cosine_restarts" else found[10])


@pytest.mark.parametrize("name", ["onecycle", "cosine"])
def test_a_half_cosine_is_torchs(name):
    floor = 1e-3 if name == "onecycle" else 0.0
    weights = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weights], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=floor)
    for ours in factors(schedule(name, warmup=0.0)):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_restarts_are_torchs():
    weights = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weights], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 60)
    for ours in factors(schedule("cosine_restarts", warmup=0.0, restart_epochs=3)):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_halving_halves_after_each_epoch():
    found = factors(schedule("halving", warmup=0.0))
    assert found == [0.5 ** (step // 20) for step in range(100)]


@pytest.mark.parametrize(
    ("losses", "factor"),
    [
        ([1.0], 1),
        ([1.0, 0.9, 0.8], 1),
        ([1.0, 1.0], 0.5),
        ([1.0, 1.1, 0.9, 0.95], 0.25),
        ([1, 2, 3, 4], 0.125),
    ],
)
def test_a_plateau_halves_once_for_every_epoch_without_progress(losses, factor):
    assert schedule("plateau").factor(50, losses) == factor


def test_a_plateau_waits_as_long_as_it_is_told():
    assert schedule("plateau", plateau_epochs=2).factor(50, [1.0, 1.1, 1.2, 1.3, 0.5]) == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": "cosine", "restart_epochs": 2}, "cosine_restarts"),
        ({"plateau_epochs": 2}, "plateau"),
        ({"schedule": "plateau", "plateau_epochs": 3}, "patience 3"),
    ],
)
def test_an_option_without_effect_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        TrainingConfig(**options)
