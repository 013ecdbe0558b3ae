"""One training run on several workers of a Ray cluster: Ray Train starts them, the training function stays the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from longtape.core.errors import LongtapeError, require
from longtape.core.threads import usable_cores, worker_environment
from longtape.experiment import Experiment, parse_experiment
from longtape.training.execution import uses_cuda
from longtape.training.run_folder import RunFolder
from longtape.workflow.run import Run, load_run, train


def train_on_ray(
    experiment: Experiment, out: str | Path, workers: int, address: str | None = None, resume: bool = False
) -> Run:
    """`workflow.train` on so many workers, which share every batch and see the same folder `out`.

    LongtapeError with the message of the first that failed.
    """
    ray: Any = require("ray", "ray")
    train_room: Any = require("ray.train.torch", "ray")
    from ray.train import RunConfig, ScalingConfig

    if not resume:
        RunFolder(out).refuse_existing()
    threads = max(1, usable_cores() // workers) if address is None else 1
    if not ray.is_initialized():
        cores = workers * threads + 1 if address is None else None  # one more for Ray's own controller
        ray.init(
            address=address, num_cpus=cores, log_to_driver=False, include_dashboard=False,
            runtime_env={"env_vars": worker_environment(threads)},
        )  # fmt: skip
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=uses_cuda(experiment.training),
        resources_per_worker=None if uses_cuda(experiment.training) else {"CPU": threads},
    )
    task = {"experiment": experiment.to_yaml(), "out": str(Path(out).resolve()), "resume": resume}
    root = Path(out).resolve()
    notes = RunConfig(storage_path=str(root.parent / f".{root.name}.ray"))  # Ray's own; all workers see it
    trainer = train_room.TorchTrainer(
        _train_there, train_loop_config=task, scaling_config=scaling, run_config=notes
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray wraps what a worker raised
        raise LongtapeError(f"Ray Train: {_innermost(error)}") from error
    finally:
        shutil.rmtree(str(notes.storage_path), ignore_errors=True)
    return load_run(out)


def _train_there(task: dict[str, Any]) -> None:
    train(parse_experiment(yaml.safe_load(task["experiment"]), "experiment"), task["out"], task["resume"])


def _innermost(error: BaseException) -> str:
    """What the first worker that failed said."""
    failures = getattr(error, "worker_failures", None)
    found: BaseException = min(failures.items())[1] if failures else error
    while found.__cause__ is not None:
        found = found.__cause__
    return " ".join(str(found).split()) or type(found).__name__
