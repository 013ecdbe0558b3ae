"""How numeric libraries wait and how many threads they take: they read it from the environment when they are loaded."""

from __future__ import annotations

import os

_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
)


def wait_passively() -> None:
    """Threads that wait sleep, unless the user said otherwise; call it before torch is loaded.

    OpenMP's threads spin by default: beside one busy neighbour process on two cores a training step then takes nine
    times as long. On a quiet machine nothing is lost.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def worker_environment(threads: int) -> dict[str, str]:
    """What a worker process is started with, so that it takes `threads` threads and lets others work while it waits."""
    passive = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    return {"OMP_WAIT_POLICY": passive, **dict.fromkeys(_COUNTS, str(threads))}


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
