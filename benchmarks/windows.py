"""Windows at 10⁷ rows: memory above the matrix, speed against memcpy, cold memory maps, waiting in a training step.

    python benchmarks/windows.py

Writes benchmarks/results/windows.md. Each part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.clock import Interval
from longtape.core.markdown import markdown_table
from longtape.features.panel import Column, Panel, TargetColumn
from longtape.features.windows import Sampler, Windows, prefetch

ROWS, COLUMNS, BATCH, LOOKBACK = 10_000_000, 10, 32, 2_048
MIB = 2**20
RESULT = Path(__file__).parent / "results" / "windows.md"
Table = list[tuple[str, str]]


def panel_of(values: np.ndarray) -> Panel:
    """A panel around a matrix. Clock, labels and ends are broadcast: they belong to the panel, not to its windows."""
    n = len(values)
    column = np.broadcast_to(np.zeros(1), (n, 1))
    ends = np.broadcast_to(np.zeros(1, np.int64), (n, 1))
    return Panel(
        timestamps=ends[:, 0],
        known_at=ends[:, 0],
        values=values,
        ordinals=ends[:, 0],
        columns=tuple(Column(None, f"f{c}") for c in range(values.shape[1])),
        present=np.broadcast_to(np.ones(1, bool), (n, 1)),
        targets=column,
        target_columns=(TargetColumn("return(1)", "return", "AAA", 1),),
        target_ends=ends,
        assets=("AAA",),
        interval=Interval.parse("1h"),
        calendar="24/7",
        warm_up=0,
        closes=column,
        calendar_values=np.empty((n, 0), np.float32),
    )


def matrix() -> np.ndarray:
    return np.random.default_rng(0).random((ROWS, COLUMNS), np.float32)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory() -> Table:
    """Peak of the process above what it had with the matrix alone; batches are what the caller asked for."""
    values = matrix()
    before = peak()
    lookback = 8_192
    windows = Windows(panel_of(values), lookback, range(lookback - 1, ROWS))
    sampler = Sampler(len(windows), 1)
    for step in range(100):
        windows.batch(sampler.batch(0, step))
    one = peak() - before
    shorter = Windows(panel_of(values), LOOKBACK, range(LOOKBACK - 1, ROWS))
    order = Sampler(len(shorter), BATCH)
    for _ in prefetch(shorter.batch, (order.batch(0, step) for step in range(50))):
        pass
    loading = peak() - before
    return [
        ("windows of 8,192 rows", f"{len(windows):,} from a matrix of {values.nbytes / MIB:.0f} MiB"),
        ("peak above the matrix, windows read one by one", _share(one, values.nbytes)),
        ("peak above the matrix, prefetching 32 × 2,048", _share(loading, values.nbytes)),
        (
            "of which three batches: in use, ready, being read",
            f"{3 * BATCH * LOOKBACK * COLUMNS * 4 / MIB:.1f} MiB",
        ),
    ]


def _share(nbytes: int, whole: int) -> str:
    return f"{nbytes / MIB:.1f} MiB, {nbytes / whole:.2%}"


def rate(work: Callable[[int], None], n: int, nbytes: int) -> float:
    """Median GB/s over `n` calls."""
    times = []
    for i in range(n):
        begin = time.perf_counter()
        work(i)
        times.append(time.perf_counter() - begin)
    return nbytes / float(np.median(times)) / 1e9


def speed() -> Table:
    """Random batches against copies of the same size from the same random places, and against one long copy."""
    values = matrix()
    windows = Windows(panel_of(values), LOOKBACK, range(LOOKBACK - 1, ROWS))
    sampler = Sampler(len(windows), BATCH)
    nbytes = BATCH * LOOKBACK * COLUMNS * 4
    places = [windows.rows(sampler.batch(0, i)) - LOOKBACK + 1 for i in range(400)]
    target, flat = np.empty((BATCH, LOOKBACK, COLUMNS), np.float32), values.reshape(-1)
    buffer = target.reshape(-1)
    chunk = LOOKBACK * COLUMNS

    def copies(i: int) -> None:
        for slot, row in enumerate(places[i].tolist()):
            np.copyto(buffer[slot * chunk : (slot + 1) * chunk], flat[row * COLUMNS : row * COLUMNS + chunk])

    def one_copy(i: int) -> None:
        begin = int(places[i][0]) * COLUMNS % (flat.size - buffer.size)
        np.copyto(buffer, flat[begin : begin + buffer.size])

    rates = {
        "memcpy from random places": rate(copies, 200, nbytes),
        "memcpy of one block": rate(one_copy, 200, nbytes),
        "Windows.batch, order and labels included": rate(
            lambda i: windows.batch(sampler.batch(1, i)), 200, nbytes
        ),
    }
    ours = rates["Windows.batch, order and labels included"]
    base = rates["memcpy from random places"]
    table = [(name, f"{value:.1f} GB/s") for name, value in rates.items()]
    return [*table, ("share of memcpy from random places", f"{ours / base:.0%}")]


def cold() -> Table:
    """A matrix on disk whose pages are dropped before each batch, with and without advice one batch ahead."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "matrix.npy"
        np.save(path, matrix())
        mapped = np.load(path, mmap_mode="r")
        windows = Windows(panel_of(mapped), LOOKBACK, range(LOOKBACK - 1, ROWS))
        sampler = Sampler(len(windows), BATCH)
        plain, advised = [], []
        for i in range(16):
            drop_pages(path, mapped)
            plain.append(timed(lambda i=i: windows.batch(sampler.batch(0, i))))
            drop_pages(path, mapped)
            windows.advise(sampler.batch(1, i))
            time.sleep(0.2)  # a training step
            advised.append(timed(lambda i=i: windows.batch(sampler.batch(1, i))))
    return [
        ("cold memory map, a batch", f"{np.median(plain) * 1e3:.1f} ms"),
        ("the same, advised 0.2 s before", f"{np.median(advised) * 1e3:.1f} ms"),
    ]


def drop_pages(path: Path, mapped: np.memmap) -> None:
    mapped._mmap.madvise(mmap.MADV_DONTNEED)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def waiting() -> Table:
    """Training steps of a small transformer on prefetched batches: how much of them is waiting for data."""
    import torch

    torch.set_num_threads(2)
    values = matrix()
    windows = Windows(panel_of(values), LOOKBACK, range(LOOKBACK - 1, ROWS))
    layer = torch.nn.TransformerEncoderLayer(64, 4, 256, 0.0, batch_first=True)
    entry, head = torch.nn.Linear(COLUMNS, 64), torch.nn.Linear(64, 1)
    parameters = [*layer.parameters(), *entry.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters)
    waited, began = 0.0, time.perf_counter()
    batches = prefetch(windows.batch, (Sampler(len(windows), BATCH).batch(0, i) for i in range(8)))
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        x, y = (torch.from_numpy(part).float() for part in batch)
        loss = torch.nn.functional.mse_loss(head(layer(entry(x))[:, -1]), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    whole = time.perf_counter() - began
    return [
        ("8 training steps, batch 32 × 2,048, one layer of width 64", f"{whole / 8 * 1e3:.0f} ms a step"),
        ("of which waiting for data", f"{waited / 8 * 1e3:.2f} ms, {waited / whole:.2%}"),
    ]


PARTS: dict[str, Callable[[], Table]] = {"memory": memory, "speed": speed, "cold": cold, "waiting": waiting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parts = parser.parse_args().parts
    rows: Table = []
    for name in parts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows += pool.apply(PARTS[name])
    table = markdown_table(["", ""], rows, numbers=False)
    text = f"# Windows\n\n{machine_line(describe_machine())}\n\n{table}\n"
    print(text)
    if len(parts) == len(PARTS):
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
