"""Model: batches in, predictions out. What every entry of `MODELS` is, trained or fitted in closed form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from longtape.core.clock import Interval
from longtape.core.errors import UserError
from longtape.features.build import PooledConfig
from longtape.features.panel import Column, Panel, Rows, TargetColumn
from longtape.features.target_kinds import WEIGHT, TargetKind
from longtape.models.batch import Batch
from longtape.models.prediction import Prediction

Array = npt.NDArray[np.float64]


ALL_ROWS = 2**31  # the reach of what is fitted anew as time goes on: every row there is


class ModelConfig(BaseModel):
    """What describes a model: its kind, a name of `MODELS`, and the bars it looks back over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="a model of the registry")
    lookback: int = Field(1, ge=1, description="bars in a window")

    package: ClassVar[str] = ""  # of the extra `baselines`, without which the model cannot be fitted
    reads_market: ClassVar[bool] = True  # False: token ids of a file, which `longtape run` takes by itself
    trains: ClassVar[bool] = False  # by gradients, which takes validation windows to stop at
    reads_presence: ClassVar[bool] = (
        False  # an asset that is absent has no tokens, so windows differ in theirs
    )

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        """UserError where the model cannot forecast one of these kinds of target."""

    def head_of(self, kind: TargetKind) -> str | None:
        """The name of the head that forecasts a kind of target; None where the model has no heads."""
        return None

    def gives_weights(self, kind: TargetKind) -> bool:
        """True where a share of the equity is forecast for a kind of target, and not its label."""
        return False

    def forecast_kind(self, kind: TargetKind) -> TargetKind:
        """What the model's forecasts of a kind of target are: of that kind, or weights."""
        return WEIGHT if self.gives_weights(kind) else kind

    def refuse_features(self, features: Sequence[str]) -> None:
        """UserError where the model cannot read these features, as written in the experiment."""

    def refuse_clock(self, interval: Interval, calendar: str) -> None:
        """UserError where the model cannot be built for bars of this length in this market."""

    @property
    def chosen_on_validation(self) -> str:
        """What validation windows are needed for, as the subject of a sentence; empty where they are not."""
        return "training stops early" if self.trains else ""

    @property
    def auxiliary_targets(self) -> Mapping[str, float]:
        """Targets that are learnt beside those of the experiment and not forecast, and what each label weighs."""
        return {}

    @property
    def reads_calendar(self) -> bool:
        """True where `forward` reads the calendar of bars."""
        return False

    @property
    def pooled(self) -> PooledConfig | None:
        """How symbols are made alike, where the model sees one at a time; None where it sees all together."""
        return None

    @property
    def block(self) -> int:
        """Consecutive rows that stand together in a batch, which the loss asks for; 1: in any order."""
        return 1

    @property
    def summary(self) -> str:
        """The model in a few words, for a heading."""
        return self.kind

    @property
    def has_dropout(self) -> bool:
        """True where a pass in training leaves something out by chance."""
        return False

    @property
    def has_global_tokens(self) -> bool:
        """True where marks of market time can become global tokens."""
        return False


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """What a model must know of its data: columns, targets, clock, and the statistics of the training rows."""

    columns: tuple[Column, ...]
    assets: tuple[str, ...]
    targets: tuple[TargetColumn, ...]
    interval: Interval
    calendar: str
    mean: Array  # [C]
    deviation: Array  # [C]
    target_deviation: Array  # [K]

    @cached_property
    def kinds(self) -> dict[str, Rows]:
        """For each kind of target the columns [A, n] that are of it: one row per asset, its targets in order."""
        found: dict[str, list[list[int]]] = {}
        for k, target in enumerate(self.targets):
            rows = found.setdefault(target.kind, [[] for _ in self.assets])
            rows[self.assets.index(target.asset)].append(k)
        return {kind: np.array(rows, np.int64) for kind, rows in found.items()}

    def targets_of(self, kind: str) -> list[TargetColumn]:
        """The targets of a kind, in order."""
        return [target for target in self.targets if target.kind == kind]

    def only(self, kind: str) -> ModelInputs:
        """The same with the targets of one kind alone that are forecast."""
        chosen = np.array([k for k in np.sort(self.kinds[kind].ravel()) if not self.targets[k].auxiliary])
        targets = tuple(self.targets[k] for k in chosen)
        return replace(self, targets=targets, target_deviation=self.target_deviation[chosen])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives the same bits back."""
        kept = asdict(self)
        return kept | {
            "interval": self.interval.name,
            **{name: kept[name].tolist() for name in ("mean", "deviation", "target_deviation")},
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> ModelInputs:
        """Back from `to_dict`."""
        options = [tuple((name, value) for name, value in t["options"]) for t in kept["targets"]]
        targets = [TargetColumn(**{**t, "options": o}) for t, o in zip(kept["targets"], options, strict=True)]
        return cls(
            tuple(Column(**c) for c in kept["columns"]),
            tuple(kept["assets"]),
            tuple(targets),
            Interval.parse(kept["interval"]) if kept["interval"] != "event" else Interval(0, "event"),
            kept["calendar"],
            *(np.array(kept[name]) for name in ("mean", "deviation", "target_deviation")),
        )


class Model(nn.Module):
    """Anything that forecasts the targets of a batch. A new one is one file and one line in `MODELS`.

    What is learnt by gradients are parameters; what `fit` finds in closed form are buffers, so that both are kept in
    one state dict. A model without parameters is not trained further.
    """

    Config: ClassVar[type[ModelConfig]]
    title: ClassVar[str] = ""  # how tables call it; its name in the registry by default
    titles: ClassVar[Mapping[str, str]] = {}  # where it differs for a kind of target
    refits_monthly: ClassVar[bool] = (
        False  # as a baseline: fitted anew each month on all labels known by then
    )

    def __init__(self, config: ModelConfig, inputs: ModelInputs) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        for position, columns in enumerate(inputs.kinds.values()):
            self.register_buffer(f"columns_{position}", torch.from_numpy(columns), persistent=False)

    @abstractmethod
    def forward(self, batch: Batch) -> Prediction:
        """The prediction of every target at the end of every window."""

    @classmethod
    def reads(cls, panel: Panel) -> bool:
        """True where the panel holds what the model needs: as a baseline it is left out elsewhere."""
        return True

    def refuse_rows(self, panel: Panel, train: Rows) -> None:
        """UserError where the training origins are too few to fit on; asked before anything is trained."""

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        """What has a closed form is fitted here, once, on the training origins; `validation` chooses penalties."""

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """What is set once training is over is set here, from the validation windows, in order of time."""

    def row_inputs(self, panel: Panel) -> Array:
        """[T, S]: what the model reads of each row beside the window; a function of that row and those before it."""
        return np.empty((len(panel), 0))

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """Tokens after each layer, [B, N, d_model] each. UserError for a model that has none."""
        raise UserError(f"model '{self.config.kind}' has no hidden states")

    def token_bars(self) -> Rows:
        """The newest bar of the window [0, lookback) that each token holds, [N]; −1 for a token that is no bar.

        UserError for a model whose tokens do not stand in time.
        """
        raise UserError(f"model '{self.config.kind}' has no tokens that are bars of the window")

    def token_assets(self, layer: nn.Module) -> Rows | None:
        """The asset of each token that an attention layer reads, [N]; None where they are all of one.

        UserError for a model whose tokens hold all assets side by side.
        """
        raise UserError(
            f"model '{self.config.kind}' has no tokens that are assets: all stand side by side in one"
        )

    def token_levels(self) -> list[str]:
        """Names of the levels of one snapshot of a book, in the order in which its tokens stand: `bid 2`, `bid 1`, …

        UserError for a model whose tokens are no levels.
        """
        raise UserError(f"model '{self.config.kind}' has no tokens that are levels of a book")

    def pooled_weights(self, batch: Batch) -> Tensor:
        """The share of each token of the last layer in what the head is given, [B, N]. UserError as `token_bars`."""
        raise UserError(f"model '{self.config.kind}' has no tokens that are bars of the window")

    @property
    def future_steps(self) -> int:
        """Rows of known-ahead calendar that `forward` reads from `Batch.future`."""
        return 0

    @property
    def label_offsets(self) -> Rows:
        """Rows before the origin, 0 or less, whose labels training reads from `Batch.y_rows`; in order."""
        return np.empty(0, np.int64)

    @property
    def reach(self) -> int:
        """Rows up to the origin that a forecast may depend on, features aside."""
        return self.config.lookback

    @property
    def is_trained(self) -> bool:
        """True where there is something to learn by gradients."""
        return any(p.requires_grad for p in self.parameters())

    @property
    def kind_columns(self) -> tuple[Tensor, ...]:
        """`inputs.kinds` as tensors, in the same order."""
        return tuple(getattr(self, f"columns_{i}") for i in range(len(self.inputs.kinds)))

    def scale_of(self, kind: str) -> Tensor:
        """Training deviation [A, n] of the targets of a kind, original units."""
        return torch.from_numpy(self.inputs.target_deviation[self.inputs.kinds[kind]]).float()


def only_kinds(config: ModelConfig, kinds: Mapping[str, TargetKind], allowed: tuple[str, ...]) -> None:
    """UserError naming a kind of target that a closed-form model cannot forecast."""
    for name in kinds:
        if name not in allowed:
            raise UserError(
                f"model.kind: '{config.kind}' forecasts targets of kind {' or '.join(allowed)}, not '{name}'"
            )
