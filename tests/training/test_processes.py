"""Two processes train as one with the same global batch; a process that fails ends all of them with its message."""

import multiprocessing
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from longtape.core.errors import LongtapeError
from longtape.training.checkpoint import load_weights, save_weights
from longtape.training.observers import read_history, write_history
from longtape.training.processes import joined_processes
from tests.training.trainers import losses, make_panel, trainer

TOLERANCE = 1e-5  # of the losses, relative: the sums of a batch are taken in another order


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def together(act, folder, size=2, **options):
    """`act` in so many processes as torchrun would start them; their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.trainers"])
    port = free_port()
    started = [
        context.Process(target=in_group, args=(act, folder, rank, size, port, options))
        for rank in range(size)
    ]
    for one in started:
        one.start()
    for one in started:
        one.join(200)
    return [one.exitcode for one in started]


def in_group(act, folder, rank, size, port, options):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with joined_processes() as processes:
            act(folder, processes, options)
    except LongtapeError as error:
        (folder / f"said-{rank}").write_text(str(error))
        sys.exit(1)


def train(folder, processes, options):
    made = trainer(
        make_panel(), folder, "flash", {"dropout": options.pop("dropout", 0.0)}, processes, **options
    )
    history = made.fit(resume=True)
    save_weights(folder / f"weights-{processes.rank}.safetensors", made.model.state_dict())
    write_history(folder / f"history-{processes.rank}.jsonl", {0: losses(history)})


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "batch_size": 8, "ema": 0.9}])
def test_two_processes_are_one_with_the_same_global_batch(tmp_path, options):
    whole = losses(trainer(make_panel(), tmp_path, "flash", {"dropout": 0.0}, epochs=1, **options).fit())
    folder = tmp_path / "two"
    folder.mkdir()
    assert together(train, folder, epochs=1, **options) == [0, 0]
    first, second = (read_history(folder / f"history-{rank}.jsonl")[0] for rank in (0, 1))
    assert first == second
    for ours, theirs in zip(first, whole, strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE)


def test_two_processes_hold_the_same_weights_and_resume_to_the_same_bits(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    options = {"epochs": 1, "stride": 2, "dropout": 0.2}
    assert together(train, tmp_path / "whole", **options) == [0, 0]
    assert together(stop_after, tmp_path / "cut", **options) == [-9, -9]
    assert together(train, tmp_path / "cut", **options) == [0, 0]
    expected = load_weights(tmp_path / "whole" / "weights-0.safetensors")
    for name in ("whole/weights-1", "cut/weights-0", "cut/weights-1"):
        found = load_weights(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), name


def stop_after(folder, processes, options):
    """Killed as step 8 begins; a checkpoint was written after every step."""
    from longtape.training.loop import Trainer

    step = Trainer._step

    def killed(self, batch, rows, at):
        if at.step == 7:
            processes.wait()
            os.kill(os.getpid(), 9)
        return step(self, batch, rows, at)

    Trainer._step = killed
    train(folder, processes, {**options, "checkpoint_seconds": 1e-9})


def test_a_process_that_fails_ends_all_with_its_message(tmp_path):
    assert together(second_fails, tmp_path) == [1, 1]
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[1] == "the disk of the second is full"
    assert said[0] == "stopped with process 1: the disk of the second is full"


def second_fails(folder, processes, options):
    if processes.rank == 1:
        raise LongtapeError("the disk of the second is full")
    processes.sum(1.0)


def test_a_process_that_is_killed_ends_all(tmp_path):
    assert together(second_dies, tmp_path) == [1, -9]
    assert "gone" in (tmp_path / "said-0").read_text()


def second_dies(folder, processes, options):
    processes.wait()
    if processes.rank == 1:
        os.kill(os.getpid(), 9)
    processes.sum(1.0)


def test_more_processes_than_windows_in_a_batch(tmp_path):
    """The last batch holds 340 mod 113 = 1 window: one process has none, and its stand-in weighs nothing."""
    options = {"batch_size": 113, "epochs": 1, "learning_rate": 1e-4}
    whole = losses(trainer(make_panel(), tmp_path, "flash", {"dropout": 0.0}, **options).fit())
    folder = tmp_path / "two"
    folder.mkdir()
    assert together(train, folder, **options) == [0, 0]
    (found,) = read_history(folder / "history-0.jsonl").values()
    assert found[1] == pytest.approx(whole[1], rel=TOLERANCE)
    assert np.isfinite(found[1]["train"])


EXPERIMENT = """
data: {source: file, path: nowhere.parquet, symbols: [TEST], interval: 1h}
features: [log_return]
targets: [return(6)]
model: {lookback: 16, attention: flash, d_model: 8, n_heads: 2, n_layers: 1}
"""


def test_torchrun_ends_with_one_line_of_the_first_that_failed(tmp_path):
    (tmp_path / "x.yaml").write_text(EXPERIMENT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "longtape"]
    words = ["train", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "out")]
    ended = subprocess.run([*command, *words], capture_output=True, text=True, timeout=200)
    assert ended.returncode != 0
    lines = [line for line in ended.stderr.splitlines() if line.startswith("longtape: ")]
    assert lines
    assert all("nowhere.parquet" in line for line in lines)
    assert not (tmp_path / "out").exists()
