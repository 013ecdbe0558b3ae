"""Training runs in processes of their own that end by SIGKILL at a named moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import longtape.core.files as files
import longtape.training.checkpoint as checkpoint
from longtape.core.progress import set_silent
from longtape.training.checkpoint import load_weights, save_weights
from longtape.training.loop import Trainer
from longtape.training.observers import write_history
from longtape.training.update import WeightUpdate
from tests.training.trainers import losses, make_panel, trainer

# One name → the options of the training section; what begins with a dot is the model's.
OPTION_SETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "adam, average, accumulation": {"optimizer": "adam", "ema": 0.9, "accumulate": 2, "batch_size": 8},
    "float16, plateau, stride": {
        "precision": "float16",
        "schedule": "plateau",
        "stride": 2,
        "learning_rate": 0.02,
    },
    "bfloat16, checkpointing, restarts": {
        "precision": "bfloat16",
        "schedule": "cosine_restarts",
        "restart_epochs": 1,
        ".gradient_checkpointing": True,
    },
    "halving, performer": {"schedule": "halving", ".attention": "performer"},
    "cosine, probsparse": {"schedule": "cosine", ".attention": "probsparse"},
    "compiled": {"compile": True, ".attention": "flash"},
}
PHASES = ("before the step", "before the weights move", "after the step", "half written", "not yet renamed")
EPOCHS = 2


class Kill(NamedTuple):
    """In the `occasion`-th step, or writing, of a process."""

    phase: str
    occasion: int


def run(folder: Path, options: dict[str, Any], kill: Kill | None = None) -> int:
    """Train, or go on, in a process of its own; its exit code, −9 where it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.kills"])
    process = context.Process(target=_train, args=(folder, options, kill))
    process.start()
    process.join(300)
    return process.exitcode if process.exitcode is not None else 1


def outcome(folder: Path) -> tuple[dict[str, Any], str]:
    """Final weights and history of a run that came to its end."""
    return load_weights(folder / "final.safetensors"), (folder / "final.jsonl").read_text("utf-8")


def _train(folder: Path, options: dict[str, Any], kill: Kill | None) -> None:
    set_silent(True)
    if kill is not None:
        _arm(kill)
    model = {name[1:]: value for name, value in options.items() if name.startswith(".")}
    training = {name: value for name, value in options.items() if not name.startswith(".")}
    attention = model.pop("attention", "bigbird")
    often = {"epochs": EPOCHS, "checkpoint_seconds": 1e-9}  # after every step
    made = trainer(make_panel(), folder, attention, model, **often, **training)
    history = made.fit(resume=True)
    save_weights(folder / "final.safetensors", made.model.state_dict())
    write_history(folder / "final.jsonl", {0: losses(history)})


def _arm(kill: Kill) -> None:
    """Let the process kill itself; it never comes to know."""
    owner, name, after = {
        "before the step": (Trainer, "_step", False),
        "before the weights move": (WeightUpdate, "step", False),
        "after the step": (Trainer, "_step", True),
        "half written": (checkpoint, "save_file", True),
        "not yet renamed": (files, "_sync", True),
    }[kill.phase]
    original, seen = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        due = len(seen) == kill.occasion
        if due and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if due and kill.phase == "half written":
            os.truncate(args[1], os.path.getsize(args[1]) // 2)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)
