"""Whole experiments at random, on markets of known truth: no traceback, no late refusal, and every figure possible.

A failing seed shows its experiment; `python -m tests.fuzz SEED` walks it again, and keeps it with `--folder DIR`.
"""

import numpy as np
import pytest
import torch

from tests.fuzz import runs
from tests.fuzz.__main__ import story
from tests.fuzz.campaign import Outcome, walk_seed
from tests.fuzz.experiments import draw, with_document
from tests.fuzz.markets import MarketSpec, make_market
from tests.fuzz.mistakes import MISTAKES, judge_mistake, judge_spoiled, options_out_of_reach, spoiled_keys
from tests.fuzz.summary import aggregate_faults

# Chosen from SOAK, so that together they meet every clock, law, target, head, signal and policy, and every scenario.
QUICK = (
    8, 13, 15, 27, 44, 66, 67, 77, 169, 186, 187, 201, 219,
    223, 238, 242, 265, 269, 270, 317, 452, 465, 470, 478, 497,
)  # fmt: skip
SOAK = range(500)
walked: dict[int, Outcome] = {}


def walk(seed, folder):
    outcome = walked[seed] = walk_seed(seed, folder)
    if outcome.faults:
        pytest.fail(f"{story(outcome)}\n\n{draw(seed).yaml}", pytrace=False)


@pytest.mark.parametrize("seed", QUICK)
def test_an_experiment_walks_the_whole_way(seed, tmp_path):
    walk(seed, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SOAK)
def test_many_experiments_walk_the_whole_way(seed, tmp_path):
    walk(seed, tmp_path)


@pytest.mark.soak
def test_many_experiments_are_right_on_average():
    """Stands behind the seeds, and judges those that this process has walked."""
    assert aggregate_faults(walked.values()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("seed", range(5))
def test_an_experiment_is_trained_on_a_gpu(seed, tmp_path):
    case = with_document(draw(seed), training__device="cuda", training__epochs=1, audit=False)
    _, refusal = runs.walk(runs.write_case(case, tmp_path), tmp_path / "out")
    assert refusal is None


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_said_in_time(mistake, tmp_path):
    assert judge_mistake(mistake, tmp_path) is None


def test_every_key_of_the_document_is_checked_before_anything_is_read():
    wrong = {f"{path}={value}": judge_spoiled(path, value) for path, value in spoiled_keys()}
    assert {key: said for key, said in wrong.items() if said} == {}


def test_every_option_of_the_account_can_be_written():
    assert options_out_of_reach() == []


@pytest.mark.parametrize("law", ["normal", "student", "garch"])
def test_the_truth_of_a_market_is_the_truth(law):
    """Realised over expected variance of the next bars is 1 on average, holes and all."""
    market = make_market(MarketSpec(law=law, bars=20_000, gaps=40), 1)
    asset = market.assets["AAA"]
    closes = asset.bars["timestamp"].dt.timestamp("ms").to_numpy() + market.step
    squares = np.diff(np.log(asset.bars["close"].to_numpy())) ** 2
    ahead = np.convolve(squares, np.ones(3), "valid")
    expected = asset.expected_variance(closes[:-3], closes[3:])
    assert np.mean(ahead / expected) == pytest.approx(1, abs=0.06)
