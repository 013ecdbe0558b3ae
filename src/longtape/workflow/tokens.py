"""Token ids from an experiment file to their scores.

Sequences have no clock, no market and nothing to trade, so their document has four sections (`data`, `model`,
`training`, and its head), and a run of it a folder with fewer files: experiment.yaml, run.json, model.safetensors,
history.jsonl, predictions.parquet, metrics.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longtape.core import scoring
from longtape.core.classification import confusion, macro_f1
from longtape.core.errors import UserError
from longtape.core.files import atomic_path, make_folder, read_json, write_json, write_text
from longtape.core.progress import say
from longtape.evaluation.skill import MODEL
from longtape.experiment import apply_override, one_line, read_yaml
from longtape.forecasting.predict import predict
from longtape.models.registry import build_model
from longtape.models.tokens import TokensConfig
from longtape.report.text import TextTable
from longtape.training.checkpoint import save_weights
from longtape.training.config import TrainingConfig
from longtape.training.execution import Execution
from longtape.training.loop import Trainer
from longtape.training.run_folder import FINISHED, UNFINISHED, versions
from longtape.workflow.token_baselines import bag_of_tokens, frequencies, usual_label_of_id
from longtape.workflow.token_data import TokenData, read_tokens

Array = npt.NDArray[np.float64]
Scores = list[dict[str, Any]]


class TokenFile(BaseModel):
    """Where the sequences come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(description="Parquet with ids, label and split (train, validation, test)")


class TokenExperiment(BaseModel):
    """A run on token ids: data → model → training → scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("tokens", pattern=r"^[\w .\-]{1,80}$", description="what pages and tables call it")
    seed: int = Field(0, ge=0, description="of everything that is drawn: weights, order of windows, dropout")
    data: TokenFile = Field(description="where the sequences come from")
    model: TokensConfig = Field(description="an encoder of token ids")
    training: TrainingConfig = Field(TrainingConfig(), description="how the model is fitted")

    @model_validator(mode="after")
    def _trained_once(self) -> TokenExperiment:
        if self.training.seeds > 1:
            raise ValueError("training.seeds: models of tokens are trained from one seed; run others by seed")
        return self

    def to_yaml(self) -> str:
        """The whole document with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def is_token_file(path: str | Path) -> bool:
    """True where an experiment file names `model.kind: tokens`."""
    model = read_yaml(Path(path)).get("model")
    return isinstance(model, Mapping) and model.get("kind") == "tokens"


def load_token_experiment(path: str | Path, overrides: list[str] | None = None) -> TokenExperiment:
    """Read an experiment file on token ids; a relative path of data is the file's. UserError as for any experiment."""
    path = Path(path)
    document = read_yaml(path)
    for override in overrides or []:
        apply_override(document, override)
    try:
        found = TokenExperiment.model_validate(document)
    except ValidationError as error:
        raise one_line(error, str(path), TokenExperiment) from None
    moved = found.data.model_copy(update={"path": str((path.parent / found.data.path).resolve())})
    return found.model_copy(update={"data": moved})


@dataclass(frozen=True, eq=False)
class TokenRun:
    """A finished run and what it came to."""

    root: Path
    scores: Scores
    history: list[dict[str, float]]

    def blocks(self) -> list[TextTable | str]:
        """Losses and scores: what the terminal shows."""
        return [TextTable(self.history, "training"), TextTable(self.scores, "Test sequences")]


def run_tokens(experiment: TokenExperiment, out: str | Path, resume: bool = False) -> TokenRun:
    """Train into a new folder `out`, or go on there to the same numbers (`resume`), and score the test sequences."""
    root = Path(out)
    Execution.of(experiment.training)
    data = read_tokens(experiment.data.path, experiment.model)
    parts = {part: len(getattr(data, part)) for part in ("train", "validation", "test")}
    say("sequences: " + ", ".join(f"{count:,} {part}" for part, count in parts.items()))
    _open_folder(root, experiment, data, resume)
    torch.manual_seed(experiment.seed)
    model = build_model(experiment.model, data.inputs())
    checkpoint = root / "checkpoint.safetensors"
    trainer = Trainer(
        model, data.panel, data.train, data.validation, experiment.training, experiment.seed, checkpoint
    )
    history = trainer.fit(resume=True)
    save_weights(root / "model.safetensors", model.state_dict())
    write_text(root / "history.jsonl", "".join(json.dumps(entry) + "\n" for entry in history))
    found = predict(model, data.panel, data.test, experiment.training.batch_size, label="test")
    assert found.probabilities is not None  # noqa: S101 (the model has classes alone)
    scores = _scores(data, experiment.model, found.probabilities)
    _write_predictions(root, data, found.probabilities)
    write_json(root / "metrics.json", {"scores": scores})
    write_json(root / "run.json", read_json(root / "run.json") | {"status": FINISHED})
    checkpoint.unlink(missing_ok=True)
    return TokenRun(root, scores, history)


def _open_folder(root: Path, experiment: TokenExperiment, data: TokenData, resume: bool) -> None:
    """A new folder marked unfinished, or the one of the same experiment on the same file."""
    if resume and (root / "run.json").exists():
        same = (root / "experiment.yaml").read_text("utf-8") == experiment.to_yaml()
        if not same or read_json(root / "run.json")["fingerprint"] != data.fingerprint:
            raise UserError(f"{root}: was begun with another experiment or file; name another folder")
        if read_json(root / "run.json")["status"] == FINISHED:
            raise UserError(f"{root}: is finished; its scores are in metrics.json")
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: is there already and not empty; go on with --resume or name another folder")
    make_folder(root)
    write_text(root / "experiment.yaml", experiment.to_yaml())
    facts = {"seed": experiment.seed, "fingerprint": data.fingerprint, "versions": versions()}
    write_json(root / "run.json", {"status": UNFINISHED, **facts})


def _scores(data: TokenData, config: TokensConfig, own: Array) -> Scores:
    """The model's scores on the test sequences, beside those of what needs no order of tokens."""
    labels = data.panel.targets[data.test]
    known = np.isfinite(labels)
    of_tokens = config.outputs == "tokens"
    simple = usual_label_of_id(data, config) if of_tokens else bag_of_tokens(data, config)
    rivals = {
        MODEL: own,
        "majority class": frequencies(data, config),
        "usual label of the id" if of_tokens else "bag of tokens": simple,
    }
    return [{"model": name, **_scored(labels[known], p[known])} for name, p in rivals.items()]


def _scored(actual: Array, probabilities: Array) -> dict[str, float]:
    """Accuracy with its standard error, macro F1 and mean log loss of labels [n] and probabilities [n, M]."""
    hits = probabilities.argmax(axis=1) == actual
    table = confusion(actual, probabilities.argmax(axis=1), probabilities.shape[1])
    return {
        "accuracy": float(hits.mean()),
        "± s.e.": float(hits.std() / np.sqrt(len(hits))),
        "macro F1": macro_f1(table),
        "log loss": float(scoring.log_loss(actual, probabilities).mean()),
        "labels": len(actual),
    }


def _write_predictions(root: Path, data: TokenData, probabilities: Array) -> None:
    """`row` of the file, `place` of the label in it, `label`, `foreseen`, of every known label of the test."""
    labels = data.panel.targets[data.test]
    sequence, place = np.nonzero(np.isfinite(labels))
    frame = pl.DataFrame(
        {
            "row": data.test[sequence],
            "place": place,
            "label": labels[sequence, place].astype(np.int64),
            "foreseen": probabilities.argmax(axis=2)[sequence, place],
        }
    )
    with atomic_path(root / "predictions.parquet") as temporary:
        frame.write_parquet(temporary, compression="zstd")
