"""A job: a function, its arguments and a folder. Done once, whoever does it; gone on with where it was interrupted.

| file | what it holds |
|---|---|
| job.json | the function, its arguments, and the key of both with all else that the outcome depends on |
| outcome.json | what the function returned, or the one line that it failed with |
| log.txt | what the process that did it said |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import longtape
from longtape.core.errors import LongtapeError, UserError
from longtape.core.files import read_json, write_json
from longtape.core.progress import say


@dataclass(frozen=True)
class Job:
    """`function`, "module:name", takes its folder and the arguments (plain values) and returns plain values."""

    name: str  # of its folder
    function: str
    arguments: Mapping[str, Any]
    depends_on: Mapping[str, Any] = field(default_factory=dict)  # fingerprints of data, say

    @property
    def key(self) -> str:
        """Hash of all that the outcome depends on, longtape's version included."""
        content = {**asdict(self), "version": longtape.__version__}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What a job came to."""

    result: Any = None
    error: str | None = None


class Engine(Protocol):
    """What carries jobs: in this process, in others, on other machines."""

    def carry(self, folders: Sequence[Path]) -> None:
        """Bring about an outcome in every folder."""


def execute(
    jobs: Sequence[Job], root: str | Path, engine: Engine, keep_errors: bool = False
) -> list[Outcome]:
    """Outcomes of the jobs, in order, each in its folder below `root`. What is there already is not done again.

    UserError with the message of the first that failed, unless `keep_errors`; where a folder holds another job.
    """
    folders = [Path(root) / job.name for job in jobs]
    open_ones = [folder for job, folder in zip(jobs, folders, strict=True) if not _is_done(job, folder)]
    if len(open_ones) < len(jobs):
        say(f"{len(jobs) - len(open_ones)} of {len(jobs)} jobs were done before")
    try:
        engine.carry(open_ones)
    except KeyboardInterrupt:
        done = sum((folder / "outcome.json").exists() for folder in folders)
        raise KeyboardInterrupt(
            f"{root} holds {done} of {len(jobs)} jobs, and what the others have trained; go on with --resume"
        ) from None
    outcomes = [Outcome(**read_json(folder / "outcome.json")) for folder in folders]
    for job, outcome in zip(jobs, outcomes, strict=True):
        if outcome.error is not None and not keep_errors:
            (Path(root) / job.name / "outcome.json").unlink()  # the next time it is tried again
            raise UserError(f"{job.name}: {outcome.error}")
    return outcomes


def _is_done(job: Job, folder: Path) -> bool:
    described = folder / "job.json"
    if described.exists() and read_json(described)["key"] != job.key:
        raise UserError(
            f"{folder}: was begun for another experiment, other data or by another version; name another folder"
        )
    if not described.exists():
        write_json(described, {"key": job.key, "function": job.function, "arguments": dict(job.arguments)})
    return (folder / "outcome.json").exists()


def perform(folder: Path) -> None:
    """Do the job of a folder in this process. What longtape raises on purpose is an outcome; all else is raised."""
    job = read_json(folder / "job.json")
    module, name = job["function"].split(":")
    try:
        outcome = Outcome(result=getattr(import_module(module), name)(folder, **job["arguments"]))
    except LongtapeError as error:
        outcome = Outcome(error=str(error))
    write_json(folder / "outcome.json", asdict(outcome))
