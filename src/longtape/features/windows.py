"""Windows: the last `lookback` rows before each decision, copied out of the matrix one batch at a time."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from longtape.core.errors import UserError
from longtape.features.panel import Panel

Rows = npt.NDArray[np.int64]
_BLOCK = 64  # batches whose order is worked out together
A = TypeVar("A")
B = TypeVar("B")


class Windows:
    """Windows of `lookback` rows of a panel that end at the rows `origins`, with their targets.

    Nothing is copied before a batch is asked for; consecutive origins are kept as a range. Raises UserError where a
    window would begin before the panel's warm-up is over, or an origin lies outside the panel.
    """

    def __init__(self, panel: Panel, lookback: int, origins: Rows | range) -> None:
        self.panel, self.lookback = panel, lookback
        self.origins = _compact(origins)
        self._values = np.asarray(panel.values)
        if len(origins):
            _check_bounds(panel, lookback, *_extent(self.origins))

    def __len__(self) -> int:
        return len(self.origins)

    def rows(self, indices: npt.ArrayLike) -> Rows:
        """Panel rows at which the windows `indices` end."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"window index out of range: {len(self)} windows")
        if isinstance(self.origins, range):
            return wanted + self.origins.start
        return self.origins[wanted]

    def batch(self, indices: npt.ArrayLike) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Features [B, lookback, C] float32, unscaled, and targets [B, K] float64 of the windows `indices`."""
        rows = self.rows(indices)
        x = np.empty((len(rows), self.lookback, self._values.shape[1]), np.float32)
        for window, origin in zip(x, rows.tolist(), strict=True):
            window[...] = self._values[origin - self.lookback + 1 : origin + 1]
        return x, self.panel.targets[rows]

    def advise(self, indices: npt.ArrayLike) -> None:
        """Tell the system that these windows will be read soon, so that a memory-mapped matrix is paged in ahead."""
        file = _mapped(self._values)
        if file is None:
            return
        mapping, offset = file
        row = self._values.strides[0]
        for origin in self.rows(indices).tolist():
            begin = offset + (origin - self.lookback + 1) * row
            page = begin - begin % mmap.PAGESIZE
            mapping.madvise(mmap.MADV_WILLNEED, page, begin - page + self.lookback * row)


def _compact(origins: Rows | range) -> Rows | range:
    """Consecutive rows as a range, which takes no memory; others as int64."""
    if isinstance(origins, range):
        return origins if origins.step == 1 else np.asarray(origins, np.int64)
    rows = np.asarray(origins, dtype=np.int64)
    if rows.ndim != 1:
        raise ValueError(f"origins must be one row of row numbers, not an array of shape {rows.shape}")
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool((rows[1:] > rows[:-1]).all()):
        return range(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _extent(origins: Rows | range) -> tuple[int, int]:
    if isinstance(origins, range):
        return origins.start, origins.stop - 1
    return int(origins.min()), int(origins.max())


def _check_bounds(panel: Panel, lookback: int, low: int, high: int) -> None:
    first = first_origin(panel, lookback)
    if low < first or high >= len(panel):
        wrong = low if low < first else high
        raise UserError(
            f"window at row {wrong}: with lookback {lookback} and a warm-up of {panel.warm_up} bars, windows end"
            f" at rows {first} to {len(panel) - 1}"
        )


def first_origin(panel: Panel, lookback: int) -> int:
    """First row at which a whole window lies past the warm-up; UserError if the panel is too short for one."""
    if lookback < 1:
        raise UserError(f"lookback {lookback}: a window needs at least one bar")
    first = panel.warm_up + lookback - 1
    if first >= len(panel):
        raise UserError(
            f"lookback {lookback} after a warm-up of {panel.warm_up} bars needs {first + 1} bars, and there are"
            f" {len(panel)}: shorten the lookback or load more data"
        )
    return first


def _mapped(values: npt.NDArray[np.float32]) -> tuple[mmap.mmap, int] | None:
    """The memory map under an array and the array's offset in it, if it stands on one."""
    base: object = values
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap.mmap):
        return None
    start = np.frombuffer(base, np.uint8).ctypes.data
    return base, values.ctypes.data - start


def prefetch(make: Callable[[A], B], wanted: Iterable[A], depth: int = 1) -> Iterator[B]:
    """What `make` gives for each of `wanted`, in order, made `depth` items ahead by one thread.

    Copying releases Python's lock, so a training step goes on meanwhile. Closing the iterator ends the thread.
    """
    pending: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        for one in wanted:
            pending.append(pool.submit(make, one))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Sampler:
    """The order in which `n` windows are visited: a pure function of (seed, epoch, position).

    Any step of any epoch can be named without those before it, so training resumes in the middle of an epoch, and
    no list of 10⁷ numbers is shuffled or kept. Every epoch visits each window once; the last batch may be smaller.
    """

    n: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.n // self.batch_size)

    def batch(self, epoch: int, step: int) -> Rows:
        """Indices of batch number `step` of `epoch`."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of an epoch of {len(self)}")
        if not self.shuffle:
            return np.arange(step * self.batch_size, min((step + 1) * self.batch_size, self.n))
        block, within = divmod(step, _BLOCK)
        order = _permuted_block(self.n, _BLOCK * self.batch_size, self.seed, epoch, block)
        return order[within * self.batch_size : (within + 1) * self.batch_size]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Rows]:
        """The batches of an epoch from step `start` on."""
        return (self.batch(epoch, step) for step in range(start, len(self)))


@lru_cache(maxsize=4)
def _permuted_block(n: int, size: int, seed: int, epoch: int, block: int) -> Rows:
    """Part `block` of an epoch's order: many positions cost hardly more than one."""
    order = permuted(np.arange(block * size, min((block + 1) * size, n)), n, seed, epoch)
    order.flags.writeable = False
    return order


def permuted(positions: Rows, n: int, *key: int) -> Rows:
    """Where a pseudo-random permutation of 0 … n − 1, chosen by `key`, sends `positions`.

    A Feistel network over the next even power of two, walking on from values outside [0, n) (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002). Takes memory for `positions` alone.
    """
    half = max((n - 1).bit_length() + 1, 2) // 2
    rounds = np.random.SeedSequence(key).generate_state(6, np.uint64).astype(np.uint64)
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, rounds)
        outside = values >= n
    return values.astype(np.int64)


def _feistel(
    values: npt.NDArray[np.uint64], half: int, rounds: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in rounds:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << bits) | right


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
