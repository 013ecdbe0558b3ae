"""The measuring itself: every child process reports, failures are named, ratios are taken within rounds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longtape.benchmarking import attention as bench
from longtape.benchmarking.attention_peers import PEERS, Shape
from longtape.benchmarking.attention_worker import (
    ATTEND,
    BUILD,
    ERROR,
    FORWARD,
    TRAIN,
    Job,
    run_job,
)
from longtape.core.errors import UserError

SMALL = Job("flash", 64, d_model=16, n_heads=2, seconds=0.01)


def test_bench_writes_a_table_the_facts_and_a_picture(tmp_path: Path) -> None:
    text = bench.bench([64], ["full", "flash"], peers=False, repeats=1, out=tmp_path)
    assert "| full | 64 |" in text
    assert "| flash | 64 |" in text
    assert "AMD" in text or "CPU" in text or "cores" in text
    assert (tmp_path / "attention.md").read_text(encoding="utf-8").endswith(text)
    facts = json.loads((tmp_path / "attention.json").read_text(encoding="utf-8"))
    rounds = [row["rounds"] for row in facts["rows"]]
    assert all(len(each) == 1 and each[0]["forward_s"] > 0 and each[0]["error"] < 1e-5 for each in rounds)
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_what_fails_in_a_child_is_named_in_its_row() -> None:
    row = bench.Row(replace(SMALL, options={"no_such": 1}), "flash")
    bench.measure([row], 2)
    assert "no_such" in row.failure
    assert not row.rounds
    assert row.failure in bench.table([row])


def test_a_child_that_takes_too_long_is_stopped() -> None:
    row = bench.Row(SMALL, "flash")
    bench.measure_once(row, {}, limit=0.01)
    assert "longer than" in row.failure


@pytest.mark.parametrize("part", [FORWARD, TRAIN, ATTEND, BUILD, ERROR])
def test_every_part_gives_its_fact(part: str) -> None:
    facts = run_job(replace(SMALL, subject="full", parts=(part,)))
    assert (facts["error"] < 1e-5) if part == ERROR else (facts[f"{part}_s"] > 0)
    assert {name.split("_")[0] for name in facts} == {part}


def test_peak_counts_what_a_call_holds() -> None:
    """In a process of its own, as measurements are: one that has worked before reuses what it freed."""
    code = (
        "import torch\n"
        "from longtape.benchmarking.attention_worker import PeakMemory\n"
        "print(PeakMemory('cpu').measure(lambda: torch.ones(16 * 2**20).sum()))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert 55 < float(told.stdout) < 120


def test_ratios_are_taken_within_a_round() -> None:
    mine, theirs = bench.Row(SMALL, "a"), bench.Row(SMALL, "b")
    mine.rounds = [{"forward_s": 1.0}, {"forward_s": 10.0}, {"forward_s": 2.0}]
    theirs.rounds = [{"forward_s": 3.0}, {"forward_s": 30.0}, {"forward_s": 8.0}]
    assert mine.ratio(theirs, "forward_s") == 3.0
    assert mine.ratio(theirs, "train_s") is None


def test_jobs_survive_the_way_to_the_child() -> None:
    job = replace(SMALL, options={"global_tokens": "both"}, parts=(TRAIN, ERROR))
    assert Job.from_json(job.to_json()) == job


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'bigbird'"):
        bench.bench([64], ["bigbrid"])
    with pytest.raises(UserError, match="--lengths: 0"):
        bench.bench([0], ["flash"])
    with pytest.raises(UserError, match="--repeats"):
        bench.bench([64], ["flash"], repeats=0)
    with pytest.raises(UserError, match="--heads 3"):
        bench.bench([64], ["flash"], n_heads=3)
    with pytest.raises(UserError, match="dtype"):
        bench.bench([64], ["flash"], dtype="float31")


def test_weights_in_memory_stop_at_the_limit() -> None:
    rows = bench.planned_rows([1024, 16_384], ["full", "flash"], peers=False)
    assert [(row.label, row.job.tokens) for row in rows] == [
        ("full", 1024),
        ("flash", 1024),
        ("flash", 16_384),
    ]


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.package != "neuralforecast"])
def test_peers_run_and_learn(name: str) -> None:
    """All but the one whose package takes long to import."""
    peer = PEERS[name]
    if not peer.installed:
        pytest.skip(f"{peer.package} is not installed")
    torch.manual_seed(0)
    layer, x = peer.build(Shape(1024, 1, 32, 4)).eval(), torch.randn(1, 1024, 32)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        y = layer(x)
        losses.append((y - x).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert y.shape == x.shape
    assert losses[0] > losses[1] > losses[2]
