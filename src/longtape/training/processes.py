"""Several processes on one training run: joined by torchrun (or Ray Train), each takes its share of every batch.

    torchrun --nproc-per-node 2 -m longtape train experiment.yaml --out runs/x

A step of P processes is the step of one on the same global batch: every loss is weighted by its share of the windows,
and DistributedDataParallel averages the gradients. The first process alone writes files and speaks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from longtape.core.errors import LongtapeError
from longtape.core.progress import set_silent
from longtape.features.panel import Rows

_FAILURE = "longtape/failure"
_GONE = "another process of the group has gone; go on with --resume"


class OtherProcessFailed(LongtapeError):
    """Another process of the group failed first; the text says which, and why."""


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine: the number of its GPU

    @property
    def is_first(self) -> bool:
        """True for the one that writes files."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes at the end of every backward."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def share_buffers(self, module: nn.Module) -> None:
        """What is counted and not learnt (a batch norm's statistics) is everywhere that of the first process."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def share(self, blocks: Rows) -> Rows:
        """Every so many of the blocks; may be none."""
        return blocks[self.rank :: self.size]

    def sum(self, *values: float) -> list[float]:
        """The sums over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return cast(list[float], total.tolist())

    def gather(self, state: Tensor) -> list[Tensor]:
        """A tensor of each process, by rank."""
        if self.size == 1:
            return [state]
        here = state.to(_device())
        found = [torch.empty_like(here) for _ in range(self.size)]
        dist.all_gather(found, here)
        return [one.cpu() for one in found]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Processes()


def without_sync(module: nn.Module) -> AbstractContextManager[object]:
    """Gradients of a backward that is not the step's last stay in the process."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def is_one_of_several() -> bool:
    """True in a process that torchrun or Ray Train started among others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined_processes(cuda: bool = False) -> Iterator[Processes]:
    """The processes that torchrun or Ray Train started, joined for as long as this runs; alone without them.

    OtherProcessFailed in all others where one raises, with its message.
    """
    if not is_one_of_several():
        yield ALONE
        return
    joined_here = not dist.is_initialized()
    if joined_here:
        dist.init_process_group("nccl" if cuda else "gloo")
    processes = Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    if cuda:
        torch.cuda.set_device(processes.local_rank)
    if not processes.is_first:
        set_silent(True)
    try:
        yield processes
    except BaseException as error:
        first = _first_failure(processes, error)
        if first is None:
            raise
        raise first from error
    finally:
        if joined_here:
            dist.destroy_process_group()


def _first_failure(processes: Processes, error: BaseException) -> OtherProcessFailed | None:
    """What to raise in this process's stead; None where it is the first that failed."""
    lost = isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))
    said = _GONE if lost else " ".join(str(error).split()) or type(error).__name__
    mine = json.dumps([processes.rank, said])
    try:
        kept = dist.distributed_c10d._get_default_store().compare_set(_FAILURE, "", mine).decode()
    except RuntimeError:  # the process that held the store has gone too
        return OtherProcessFailed(_GONE) if lost else None
    rank, message = json.loads(kept)
    if rank != processes.rank:
        return OtherProcessFailed(f"stopped with process {rank}: {message}")
    return OtherProcessFailed(_GONE) if lost else None


def _device() -> torch.device:
    cuda = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
