"""What one forward pass and one training step of a model cost."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from longtape.core.markdown import markdown_table
from longtape.models.base import Model
from longtape.models.batch import Batch

Row = dict[str, Any]


def seconds_of(work: Callable[[], Any], repeats: int = 3) -> float:
    """The median, after one run that does not count."""
    work()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return float(np.median(found))


def peak_mib() -> float:
    """Of this process so far; on Linux the kernel counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forward_and_step(model: Model, batch: Batch, tokens: int) -> list[Row]:
    """Seconds of each, and the peak of memory after it."""
    optimizer = torch.optim.AdamW(model.parameters())

    def forward() -> None:
        with torch.no_grad():
            model.eval()(batch)

    def step() -> None:
        model.train()(batch).loss(batch.y, batch.y_present).backward()
        optimizer.step()
        optimizer.zero_grad()

    rows = []
    for name, work in (("forward", forward), ("training step", step)):
        took = seconds_of(work)
        rows.append({"step": f"{name}, {tokens:,} tokens", "seconds": took, "peak MiB": peak_mib()})
    return rows


def passes_table(rows: list[Row]) -> str:
    """In Markdown."""
    texts = [[row["step"], f"{row['seconds']:.2f}", f"{row['peak MiB']:,.0f}"] for row in rows]
    return markdown_table(["step", "seconds", "peak MiB"], texts)
