"""Engines: one job after the other here, each in a process of its own, or on a Ray cluster.

With the same number of threads a job gives the same numbers on each of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtape.core.errors import LongtapeError, UserError, require
from longtape.core.progress import progress, say
from longtape.core.threads import usable_cores, worker_environment
from longtape.orchestration.jobs import Engine, perform

ATTEMPTS = 3  # of a job whose worker dies
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class InProcess:
    """One job after the other, in this process."""

    threads: int

    def carry(self, folders: Sequence[Path]) -> None:
        """Bring about an outcome in every folder."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            for folder in folders:
                say(f"job {folder.name}")
                perform(folder)
        finally:
            torch.set_num_threads(before)


@dataclass
class Worker:
    """A process at work on a folder."""

    folder: Path
    attempt: int
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, folder: Path, attempt: int, threads: int) -> Worker:
        """With its own threads; what it says goes to log.txt."""
        command = [sys.executable, "-m", "longtape.orchestration.worker", str(folder)]
        with open(folder / "log.txt", "ab") as log:
            environment = os.environ | worker_environment(threads)
            return cls(folder, attempt, subprocess.Popen(command, stdout=log, stderr=log, env=environment))  # noqa: S603

    def explain(self) -> str:
        """Why it ended without an outcome."""
        code = self.process.returncode
        said = (self.folder / "log.txt").read_text("utf-8", errors="replace").strip().splitlines()
        return f"killed by signal {-code}" if code < 0 else f"{said[-1] if said else f'exit code {code}'}"


@dataclass(frozen=True)
class ProcessPool:
    """Up to `workers` processes, one for each job. One that dies is replaced, and its job goes on."""

    workers: int
    threads: int

    def carry(self, folders: Sequence[Path]) -> None:
        """Bring about an outcome in every folder. LongtapeError where a worker dies again and again."""
        waiting = deque((folder, 1) for folder in folders)
        running: list[Worker] = []
        try:
            with progress("jobs", len(folders), "jobs") as bar:
                while waiting or running:
                    while waiting and len(running) < self.workers:
                        running.append(Worker.start(*waiting.popleft(), self.threads))
                    time.sleep(_POLL_SECONDS)
                    for ended in [one for one in running if one.process.poll() is not None]:
                        running.remove(ended)
                        if (ended.folder / "outcome.json").exists():
                            bar.advance(1, ended.folder.name)
                        else:
                            waiting.appendleft((ended.folder, _next_attempt(ended)))
        finally:
            for left in running:  # asked to stop, a worker saves what it has
                left.process.terminate()
            for left in running:
                left.process.wait()


def _next_attempt(ended: Worker) -> int:
    if ended.process.returncode > 0 or ended.attempt == ATTEMPTS:
        where = f"{ended.folder / 'log.txt'} says more"
        raise LongtapeError(f"job {ended.folder.name}: its worker ended ({ended.explain()}); {where}")
    say(f"job {ended.folder.name}: its worker was {ended.explain()}; another one goes on")
    return ended.attempt + 1


@dataclass(frozen=True)
class RayCluster:
    """Ray's workers, here or at an address. All of them must see the same folders."""

    threads: int
    address: str | None = None
    workers: int | None = None  # of a cluster that is started here

    def carry(self, folders: Sequence[Path]) -> None:
        """Bring about an outcome in every folder."""
        ray: Any = require("ray", "ray")
        if not folders:
            return
        if not ray.is_initialized():
            cores = None if self.address else (self.workers or 1) * self.threads
            ray.init(address=self.address, num_cpus=cores, log_to_driver=False, include_dashboard=False)
        environment = {"env_vars": worker_environment(self.threads)}
        options = {"num_cpus": self.threads, "max_retries": ATTEMPTS - 1, "runtime_env": environment}
        remote = ray.remote(**options)(_perform_there)
        try:
            ray.get([remote.remote(str(folder.resolve())) for folder in folders])
        except (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError) as error:
            raise LongtapeError(f"Ray: a job ended without an outcome: {error}") from error


def _perform_there(folder: str) -> None:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    perform(Path(folder))


def build_engine(name: str, workers: int | None, threads: int | None, address: str | None) -> Engine:
    """`process`, `pool` or `ray`; by default as many workers as cores, and cores divided among them.

    UserError for another name, and for an option that this engine does not have.
    """
    if address is not None and name != "ray":
        raise UserError("--address goes with --engine ray")
    if name == "process":
        if workers not in (None, 1):
            raise UserError("--workers goes with --engine pool or ray; --engine process has one")
        return InProcess(threads or usable_cores())
    several = workers or max(1, usable_cores() // (threads or 1))
    each = threads or max(1, usable_cores() // several)
    if name == "pool":
        return ProcessPool(several, each)
    if name == "ray":
        return RayCluster(each, address, several)
    raise UserError(f"--engine: unknown engine '{name}'; known: process, pool, ray")
