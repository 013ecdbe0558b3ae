"""Gradient-boosted trees on the window: LightGBM (Ke et al. 2017), small trees, stopped early on validation windows.

Fitted on the rows and inputs of the ridge (`longtape.models.window_ridge`): every scaled column at every lag, which
pass by in chunks and are kept in bins of one byte. Returns by squared error; volatilities by the gamma deviance of y²,
which is QLIKE; classes by cross-entropy. Each target has trees of its own. They are kept as tensors, so that a run
forecasts without the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from longtape.core.errors import require
from longtape.core.scoring import SMALLEST_VARIANCE
from longtape.features.panel import Panel, Rows
from longtape.features.target_kinds import TargetKind
from longtape.models.base import Array, ModelInputs, only_kinds
from longtape.models.batch import Batch
from longtape.models.closed_forms import MOVES, ClosedForm, space_of
from longtape.models.embedding import InputScaling
from longtape.models.har import FLOOR
from longtape.models.prediction import Prediction
from longtape.models.window_ridge import ScaledWindows, WindowConfig

OBJECTIVES = {"mean": "regression", "log_variance": "gamma", "logits": "multiclass"}  # by the space of a head


class TreesConfig(WindowConfig):
    """How large and how many the trees are."""

    package = "lightgbm"

    rounds: int = Field(200, ge=1, description="trees of each target (classes: of each class) at most")
    depth: int = Field(4, ge=1, le=12, description="splits from the root of a tree to a leaf, at most")
    leaves: int = Field(15, ge=2, description="leaves of a tree, at most")
    learning_rate: float = Field(0.05, gt=0, le=1, description="part of each tree that is added")
    least_rows: int = Field(50, ge=1, description="training rows of a leaf, at least")
    share: float = Field(0.5, gt=0, le=1, description="of the inputs, drawn anew for each tree")
    patience: int = Field(20, ge=1, description="rounds without a better validation loss before it stops")
    seed: int = Field(0, ge=0, description="of the draws")

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        only_kinds(self, kinds, (*MOVES, "volatility", "direction", "up", "terciles"))

    @property
    def chosen_on_validation(self) -> str:
        """The number of trees."""
        return "the number of trees is chosen"

    @model_validator(mode="after")
    def _leaves_fit(self) -> TreesConfig:
        if self.leaves > 2**self.depth:
            raise ValueError(f"leaves: a tree of depth {self.depth} has {2**self.depth} at most")
        return self

    def parameters(self, space: str, n_classes: int) -> dict[str, Any]:
        """As LightGBM names them."""
        classes = {"num_class": n_classes} if space == "logits" else {}
        return classes | {
            "objective": OBJECTIVES[space], "max_depth": self.depth, "num_leaves": self.leaves,
            "learning_rate": self.learning_rate, "min_data_in_leaf": self.least_rows, "feature_fraction": self.share,
            "seed": self.seed, "deterministic": True, "force_row_wise": True, "use_missing": False, "verbosity": -1,
        }  # fmt: skip


class Trees(ClosedForm):
    """Gradient-boosted trees on every number of the window; each target has its own.

    Nodes of a tree stand in rows of `feature`, `threshold`, `below` and `above` [S, R, N] (S scores, R trees, N nodes):
    from a node one goes to `below` where its feature is at most the threshold, else to `above`; a leaf leads to itself.
    """

    Config = TreesConfig
    title = "LightGBM"
    config: TreesConfig
    feature: Tensor
    threshold: Tensor
    below: Tensor
    above: Tensor
    value: Tensor

    def __init__(self, config: TreesConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.scaling = InputScaling(inputs.mean, inputs.deviation, config.clip)
        self.n_classes = [max(target.of_kind.classes, 1) for target in inputs.targets]
        self.first = np.cumsum([0, *self.n_classes]).tolist()  # score of each target's first class
        shape = (self.first[-1], config.rounds, 2 * config.leaves - 1)
        for name in ("feature", "below", "above"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64))
        for name in ("threshold", "value"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        """UserError where the package `lightgbm` is missing."""
        fitting = _Fitting(self, panel, train, validation)
        for k in range(len(self.inputs.targets)):
            for name in ("feature", "threshold", "below", "above", "value"):
                getattr(self, name)[self.first[k] : self.first[k + 1]] = 0
            for number, tree in enumerate(fitting.trees(k)):
                round_, which = divmod(number, self.n_classes[k])
                self._keep(tree, self.first[k] + which, round_)

    def _keep(self, tree: Mapping[str, Any], score: int, number: int) -> None:
        """Write a tree as LightGBM states it into its row of the tensors."""
        places = iter(range(self.value.shape[2]))

        def write(node: Mapping[str, Any]) -> int:
            at = next(places)
            leaf = "leaf_value" in node
            self.feature[score, number, at] = 0 if leaf else node["split_feature"]
            self.threshold[score, number, at] = 0.0 if leaf else node["threshold"]
            self.value[score, number, at] = node["leaf_value"] if leaf else 0.0
            self.below[score, number, at] = at if leaf else write(node["left_child"])
            self.above[score, number, at] = at if leaf else write(node["right_child"])
            return at

        write(tree)

    def forward(self, batch: Batch) -> Prediction:
        x = self.scaling(batch.x).flatten(1).double()
        scores = torch.stack([self._score(x, s) for s in range(len(self.value))], 1)
        parts = []
        for kind, columns in self.inputs.kinds.items():
            own = torch.stack([self._of_target(scores, int(k)) for k in columns.ravel()], 1)
            parts.append(self.point(kind, own.unflatten(1, columns.shape).float()))
        return Prediction(tuple(parts), self.kind_columns)

    def _of_target(self, scores: Tensor, k: int) -> Tensor:
        """Log variance or value in original units [B], or logits [B, M]."""
        target, own = self.inputs.targets[k], scores[:, self.first[k] : self.first[k + 1]]
        space, unit = space_of(self.inputs, target.kind), float(self.inputs.target_deviation[k])
        if space == "logits":
            return own
        return own[:, 0] * unit if space == "mean" else own[:, 0] + 2 * float(np.log(unit))

    def _score(self, x: Tensor, s: int) -> Tensor:
        """The sum [B] of the leaves that inputs x [B, L·C] come to, in the trees of one score."""
        n_nodes = self.value.shape[2]
        roots = n_nodes * torch.arange(self.value.shape[1], device=x.device)
        at = torch.zeros(len(x), len(roots), dtype=torch.int64, device=x.device)
        for _ in range(self.config.depth):
            node = at + roots
            small = x.gather(1, self.feature[s].flatten()[node]) <= self.threshold[s].flatten()[node]
            at = torch.where(small, self.below[s].flatten()[node], self.above[s].flatten()[node])
        return self.value[s].flatten()[at + roots].sum(1)


class _Fitting:
    """Windows in LightGBM's bins, made once for targets whose labels are known at the same rows."""

    def __init__(self, model: Trees, panel: Panel, train: Rows, validation: Rows) -> None:
        self.model, self.panel, self.periods = model, panel, (train, validation)
        self.library = require("lightgbm", "baselines")
        self.binned: dict[bytes, tuple[Any, Any]] = {}

    def trees(self, k: int) -> list[Mapping[str, Any]]:
        """Those of one target, round by round, up to the round of least validation loss."""
        model, target = self.model, self.model.inputs.targets[k]
        space, classes = space_of(model.inputs, target.kind), target.of_kind.classes
        parts = [_Labels.of(self.panel, k, rows, space, model) for rows in self.periods]
        known = b"".join(part.origins.tobytes() for part in parts)
        parameters = model.config.parameters(space, classes)
        if known not in self.binned:
            self.binned[known] = self._bins(parts[0].origins, parts[1].origins, parameters)
        learnt, checked = self.binned[known]
        learnt.set_label(parts[0].values)
        checked.set_label(parts[1].values)
        stop = self.library.early_stopping(model.config.patience, verbose=False)
        booster = self.library.train(
            parameters, learnt, model.config.rounds, valid_sets=[checked], callbacks=[stop]
        )
        stated = booster.dump_model(num_iteration=booster.best_iteration)["tree_info"]
        return [tree["tree_structure"] for tree in stated]

    def _bins(self, train: Rows, validation: Rows, parameters: Mapping[str, Any]) -> tuple[Any, Any]:
        library = self.library

        class Lazy(library.Sequence):  # type: ignore[name-defined]
            batch_size = 1_024

            def __init__(self, windows: ScaledWindows) -> None:
                self.windows = windows

            def __len__(self) -> int:
                return len(self.windows)

            def __getitem__(self, at: int | slice | list[int]) -> Array:
                if isinstance(at, int | np.integer):
                    return self.windows.at(slice(at, at + 1))[0]
                return self.windows.at(at if isinstance(at, slice) else np.asarray(at))

        def rows(origins: Rows) -> Lazy:
            lookback, nothing = self.model.config.lookback, np.empty((len(origins), 0))
            return Lazy(ScaledWindows(self.panel, origins, nothing, self.model.scaling, lookback))

        options = {
            name: parameters[name] for name in ("seed", "use_missing", "verbosity", "min_data_in_leaf")
        }
        learnt = library.Dataset(rows(train), params=options)
        return learnt, library.Dataset(rows(validation), reference=learnt, params=options)


@dataclass(frozen=True, eq=False)
class _Labels:
    """Labels [m] as the trees learn them, at the origins where they are known."""

    origins: Rows
    values: Array

    @classmethod
    def of(cls, panel: Panel, k: int, origins: Rows, space: str, model: Trees) -> _Labels:
        """Moves in their deviation, variances in its square, classes as they are."""
        labels, unit = panel.targets[origins, k], float(model.inputs.target_deviation[k])
        known = np.isfinite(labels)
        found = labels[known]
        if space == "mean":
            found = found / unit
        if space == "log_variance":
            squares = (found / unit) ** 2
            found = np.maximum(squares, max(FLOOR * float(squares.mean()), SMALLEST_VARIANCE))
        return cls(origins[known], found)
