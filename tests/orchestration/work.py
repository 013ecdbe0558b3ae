"""What the jobs of these tests do."""

import os
import signal
from pathlib import Path

import torch

from longtape.core.errors import UserError


def add(folder: Path, a: int, b: int) -> dict[str, int]:
    """The sum, and which attempt this is."""
    attempts = folder / "attempts"
    with open(attempts, "a") as file:
        file.write("x")
    return {"sum": a + b, "threads": torch.get_num_threads()}


def dies_at_first(folder: Path, times: int = 1) -> int:
    """Killed as often as it is told, then it goes on with what it had written."""
    progress = folder / "progress"
    done = len(progress.read_text()) if progress.exists() else 0
    progress.write_text("x" * (done + 1))
    if done < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return done


def mistaken(folder: Path) -> None:
    """A user's mistake."""
    raise UserError("the lookback is too long")


def broken(folder: Path) -> None:
    """A fault of the program."""
    raise ZeroDivisionError("a fault")


def draw(folder: Path, seed: int) -> list[float]:
    """Numbers that hang on how a sum is divided among threads."""
    torch.manual_seed(seed)
    x = torch.randn(301, 301)
    return [float(v) for v in (x @ x).sum(0)[:3]]
