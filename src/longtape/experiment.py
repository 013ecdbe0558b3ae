"""The experiment: one typed document that describes a run, and its YAML.

Every section is the configuration of the room that does the work. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    create_model,
    model_validator,
)

from longtape.backtest.config import AccountConfig
from longtape.backtest.of_books import SIGNALS_OF_EVENTS
from longtape.backtest.selection import Target, mismatch
from longtape.backtest.signals import SignalConfig
from longtape.core.clock import Interval
from longtape.core.errors import UserError, unknown_name
from longtape.core.instrument import PERPETUALS
from longtape.features.build import FeaturesConfig
from longtape.features.catalogue import check_features, find_target, target_horizons
from longtape.features.expression import parse
from longtape.features.marks import MarksConfig
from longtape.features.splits import SplitConfig
from longtape.features.target_kinds import TERCILES, TargetKind, target_kind
from longtape.forecasting.config import ForecastConfig
from longtape.market.load import DataConfig
from longtape.models.base import ModelConfig
from longtape.models.encoder import EncoderConfig
from longtape.models.registry import Baseline, config_of, why_beside_none
from longtape.training.config import TrainingConfig
from longtape.training.search_space import SearchSpace


class BacktestConfig(AccountConfig):
    """What is done with the forecasts of returns, and the account that follows them."""

    signal: SignalConfig = Field(SignalConfig(), description="how forecasts become weights")
    traded: float | None = Field(
        None,
        gt=0,
        le=1,
        description="trade this share of the largest forecasts: the threshold is a quantile of |forecast| on the"
        " calibration windows, chosen anew in each fold of a walk forward",
    )

    mid_bars: str | None = Field(
        None,
        description="for books: trade on bars of this length (1s) made of the mid, with the constant half spread that"
        " costs.spread names; of classes P(up) − P(down) is traded. Left out: nothing is traded",
    )

    @model_validator(mode="after")
    def _bars_of_the_mid_fit(self) -> BacktestConfig:
        if self.mid_bars is None:
            return self
        Interval.parse(self.mid_bars)
        if self.signal.name not in SIGNALS_OF_EVENTS or self.signal.holding != "newest":
            listed = ", ".join(SIGNALS_OF_EVENTS)
            raise ValueError(
                "mid_bars: forecasts over events are traded as they come;"
                f" name signal.holding: newest and one of {listed}"
            )
        if self.traded is not None or self.signal.cost is not None:
            raise ValueError("mid_bars: traded and signal.cost are for bars of candles; leave them away")
        return self

    @model_validator(mode="after")
    def _traded_has_an_effect(self) -> BacktestConfig:
        if self.traded is not None and self.signal.name not in ("threshold", "equal"):
            raise ValueError(
                f"traded goes with the signals 'threshold' and 'equal', not '{self.signal.name}'"
            )
        return self


class Experiment(BaseModel):
    """A whole run: data → features → model → training → forecast → backtest.

    `model` is the configuration of one kind of model; a document is read by the type of `experiment_type(kind)`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("experiment", pattern=r"^[\w .\-]{1,80}$", description="what pages and tables call it")
    seed: int = Field(0, ge=0, description="of everything that is drawn: weights, order of windows, dropout")
    data: DataConfig = Field(DataConfig(), description="where the rows come from")
    features: list[str] = Field(
        min_length=1, description="what a model sees of each row, as expressions (docs/features.md)"
    )
    targets: list[str] = Field(min_length=1, description="what is forecast (docs/features.md)")
    symbols: list[str] | None = Field(
        None, description="symbols to forecast; the others are only read by of(…). All by default"
    )
    marks: MarksConfig | None = Field(None, description="moments of market time that become global tokens")
    missing: Literal["error", "forward_fill", "drop", "mask"] = Field(
        "error", description=str(FeaturesConfig.model_fields["missing"].description)
    )
    split: SplitConfig = Field(SplitConfig(), description="training, validation, calibration and test")
    model: SerializeAsAny[ModelConfig] = Field(EncoderConfig(), description="what forecasts, by its kind")
    baselines: list[str | dict[str, Any]] = Field(
        default=[],
        description="models that stand beside the result where they apply, after those of the kind of target: names, or"
        " {kind: name} with options. They read windows of the model's lookback, or of a shorter one that is named;"
        " those that train do so as the section training says, from one seed",
    )
    training: TrainingConfig = Field(TrainingConfig(), description="how a model is fitted")
    forecast: ForecastConfig = Field(ForecastConfig(), description="intervals, and batches of forecasts")
    backtest: BacktestConfig = Field(BacktestConfig(), description="what is traded, and the account")
    audit: bool = Field(
        True, description="a short audit for look-ahead after training; `longtape audit` does the long one"
    )
    search: SearchSpace = Field(
        default_factory=dict,
        description="longtape tune: field (model.d_model, …) → list of values, or {low, high, step, log}",
    )

    @model_validator(mode="after")
    def _features_can_be_read(self) -> Experiment:
        check_features(self.features, self.data.symbols)
        for symbol in self.symbols or []:
            if symbol not in self.data.symbols:
                raise unknown_name("symbol", symbol, self.data.symbols, "symbols")
        self.model.refuse_features([str(parse(text)) for text in self.features])
        plain = [str(parse(text)) for text in (*self.targets, *self.model.auxiliary_targets)]
        for text in plain:
            if plain.count(text) > 1:
                raise UserError(f"targets: '{text}' is listed twice")
        kinds = self.kinds | _kinds_of(self.model.auxiliary_targets)
        self.model.refuse_targets(kinds)
        return self

    @model_validator(mode="after")
    def _baselines_apply(self) -> Experiment:
        beside = self.beside
        for one in beside:
            config = one.config
            if beside.count(one) > 1:
                raise UserError(f"baselines: '{config.kind}' is listed twice")
            config.refuse_features([str(parse(text)) for text in self.features])
            reasons = [why_beside_none(config, k, self.model.forecast_kind(k)) for k in self.kinds.values()]
            if None not in reasons:
                raise UserError(f"baselines: {reasons[0]}")
            if config.chosen_on_validation and not self.has_validation:
                raise UserError(
                    f"baselines: of '{config.kind}' {config.chosen_on_validation} on validation windows, and there are"
                    " none; name some (split)"
                )
        return self

    @model_validator(mode="after")
    def _events_have_no_calendar(self) -> Experiment:
        if self.model.reads_calendar and self.data.kind != "candles":
            raise ValueError(
                "model.calendar: events come at no fixed time, so the calendar says nothing of them"
            )
        return self

    @model_validator(mode="after")
    def _bars_are_pooled(self) -> Experiment:
        if self.model.pooled is not None and self.data.kind != "candles":
            raise ValueError("model.assets: pooled is for candles; events are those of one symbol")
        return self

    @model_validator(mode="after")
    def _mid_is_that_of_books(self) -> Experiment:
        if self.backtest.mid_bars is not None and self.data.kind != "books":
            raise ValueError(
                f"backtest.mid_bars has no effect with data.kind '{self.data.kind}', only with books"
            )
        return self

    @model_validator(mode="after")
    def _signal_fits_the_targets(self) -> Experiment:
        if self.has_account:
            expressions = [parse(text) for text in self.targets]
            targets = [
                Target(str(one), self._traded_as(find_target(one).kind), horizon)
                for one in expressions
                for horizon in target_horizons(one)
            ]
            line = mismatch(self.backtest.signal, targets, self.symbols or self.data.symbols)
            if line is not None:
                raise ValueError(f"backtest.{line}")
        return self

    @model_validator(mode="after")
    def _intervals_fit_the_heads(self) -> Experiment:
        for kind in self.kinds.values():
            if self.model.forecast_kind(kind).error is not None:
                self.forecast.method(self.model.head_of(kind), self.model)
        return self

    @model_validator(mode="after")
    def _batches_hold_whole_blocks(self) -> Experiment:
        size, block = self.training.batch_size, self.model.block
        if size % block:
            raise ValueError(
                f"training.batch_size: {size} windows do not hold whole blocks of {block} consecutive ones, which"
                " the loss of the head asks for (model.heads)"
            )
        return self

    @model_validator(mode="after")
    def _training_has_validation(self) -> Experiment:
        if not self.has_validation and self.model.chosen_on_validation:
            by_dates = self.split.train_until is not None
            raise ValueError(
                f"split: {self.model.chosen_on_validation} on validation windows, and there are none; name some"
                f" ({'validation_until' if by_dates else 'validation'})"
            )
        if not self.has_validation and self.backtest.traded is not None:
            raise ValueError(
                "backtest.traded: the threshold is chosen on validation windows; name some (split)"
            )
        return self

    @model_validator(mode="after")
    def _funding_is_named(self) -> Experiment:
        if self.has_account and self.data.category is not None:
            self.refuse_instrument(self.data.category)
        return self

    @model_validator(mode="after")
    def _funding_is_recorded_where_it_is_read(self) -> Experiment:
        recorded = self.has_account and self.backtest.costs.funding == "history"
        if self.data.funding_path is not None and not recorded:
            raise ValueError("data.funding_path has no effect without backtest.costs.funding: history")
        if recorded and self.data.source == "file" and self.data.funding_path is None:
            raise ValueError(
                "backtest.costs.funding: history of a candle file needs data.funding_path; or name rate or excluded"
            )
        return self

    @model_validator(mode="after")
    def _marks_have_an_effect(self) -> Experiment:
        if self.marks is not None and not self.model.has_global_tokens:
            raise ValueError("marks become global tokens, which this model does not have; use bigbird")
        if self.marks is not None and self.data.source == "file":
            self.marks.refuse_market_without_sessions(str(self.data.calendar))
        return self

    def refuse_instrument(self, category: str) -> None:
        """UserError where the account cannot trade an instrument of this category as the costs are named."""
        if category == "inverse":
            raise UserError(
                "data.category: inverse contracts are not modelled; use the linear perpetual or spot"
            )
        if category in PERPETUALS and self.backtest.costs.funding is None:
            raise UserError("backtest.costs.funding must be named for a perpetual: history, rate or excluded")

    @property
    def kinds(self) -> dict[str, TargetKind]:
        """The kinds of target by name, in order of appearance."""
        return _kinds_of(self.targets)

    @property
    def has_validation(self) -> bool:
        """True where the split has a validation period."""
        if self.split.train_until is not None:
            return self.split.validation_until is not None
        return self.split.validation > 0

    @property
    def beside(self) -> list[Baseline]:
        """The section `baselines`. UserError for what is no model, an option that it has not, a longer lookback."""
        return [_baseline(choice, self.model.lookback) for choice in self.baselines]

    @property
    def has_account(self) -> bool:
        """True where forecasts can be traded: some target is a return, and there are bars to trade on."""
        kinds = [target_kind(self._traded_as(name)) for name in self.kinds]
        has_bars = self.data.kind == "candles" or self.backtest.mid_bars is not None
        return has_bars and any(kind.traded for kind in kinds)

    def _traded_as(self, kind: str) -> str:
        """Of books, classes are traded by how far they lean to one side, in the place of a return."""
        if self.data.kind == "books" and kind == TERCILES.name:
            return "return"
        return self.model.forecast_kind(target_kind(kind)).name

    @property
    def feature_config(self) -> FeaturesConfig:
        """The section that the features room takes."""
        return FeaturesConfig(
            features=self.features,
            targets=self.targets,
            auxiliary=list(self.model.auxiliary_targets),
            symbols=self.symbols,
            missing=self.missing,
            pooled=self.model.pooled,
        )

    def to_yaml(self) -> str:
        """The whole document with every default written out."""
        document = self.model_dump(mode="json")
        # Dates and fractions exclude each other, so that only what was chosen can be written out.
        names = ("train", "validation", "calibration", "embargo")
        by_fractions = {name: document["split"][name] for name in names}
        chosen = self.split.model_dump(mode="json", exclude_none=True, exclude={"train", "validation"})
        document["split"] = by_fractions if self.split.train_until is None else chosen
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _kinds_of(targets: Iterable[str]) -> dict[str, TargetKind]:
    found = [find_target(parse(text)).kind for text in targets]
    return {name: target_kind(name) for name in found}


def _baseline(choice: str | Mapping[str, Any], lookback: int) -> Baseline:
    """A model of windows has the lookback of the experiment's own, if it names none."""
    options = {"kind": choice} if isinstance(choice, str) else dict(choice)
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError(f"baselines: write a name, or {{kind: name}} with options, not {choice}")
    try:
        config = config_of(kind)
    except UserError as error:
        raise UserError(f"baselines: {error}") from None
    reads_windows = config.model_fields["lookback"].default != 1
    own = {"lookback": lookback} if reads_windows else {}
    try:
        made = config.model_validate({"kind": kind, **own, **options})
    except ValidationError as error:
        raise one_line(error, f"baselines: {kind}", config) from None
    if made.lookback > lookback:
        raise UserError(
            f"baselines: {kind}: lookback {made.lookback} is longer than that of the model, {lookback}; it shares the"
            " windows of the model"
        )
    return Baseline(made, ", ".join(f"{name} {value}" for name, value in options.items()))


def load_experiment(
    path: str | Path, overrides: Sequence[str] | Mapping[str, Any] | None = None
) -> Experiment:
    """Read an experiment file; `overrides` are `key.path=value` in YAML notation, or a mapping of keys (dotted or
    nested). Relative paths are the file's.

    UserError naming the file and the key, with the nearest known key, for anything that is not understood.
    """
    path = Path(path)
    document = with_overrides(read_yaml(path), as_overrides(overrides or ()))
    experiment = parse_experiment(document, str(path))
    return _resolve_paths(experiment, path.parent)


def with_overrides(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A document with some of its keys at other values."""
    for override in overrides:
        apply_override(document, override)
    return document


def as_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """`{"training": {"epochs": 3}}` or `{"training.epochs": 3}` as `training.epochs=3`; a list stays as it is."""
    if isinstance(overrides, str):
        raise UserError(f"overrides: give a list or a mapping, not the text '{overrides}'")
    if not isinstance(overrides, Mapping):
        return list(overrides)
    found = []
    for key, value in overrides.items():
        if isinstance(value, Mapping) and value:
            found += [f"{key}.{inner}" for inner in as_overrides(value)]
        else:
            found.append(f"{key}={json.dumps(value, default=str)}")
    return found


def _resolve_paths(experiment: Experiment, folder: Path) -> Experiment:
    """Relative paths become those beside the experiment file."""
    moved: dict[str, Any] = {"data": experiment.data.resolve_paths(folder)}
    marks = experiment.marks
    if marks is not None and marks.events is not None:
        moved["marks"] = marks.model_copy(update={"events": (folder / marks.events).resolve()})
    return experiment.model_copy(update=moved)


def parse_experiment(document: dict[str, Any], where: str) -> Experiment:
    """A plain mapping → Experiment, or one line that says what is wrong."""
    model = document.get("model") or {}
    kind = model.get("kind", "encoder") if isinstance(model, dict) else "encoder"
    try:
        if not config_of(str(kind)).reads_market:
            raise UserError(f"'{kind}' reads token ids and no market; give the file to longtape run")
        typed = experiment_type(str(kind))
        return typed.model_validate(document)
    except ValidationError as error:
        raise one_line(error, where, typed) from None
    except UserError as error:
        raise UserError(f"{where}: model.kind: {error}") from None


@lru_cache(maxsize=32)
def experiment_type(kind: str) -> type[Experiment]:
    """The document of experiments with one kind of model; UserError with the nearest name of a model."""
    config = config_of(kind)
    default = config(kind=kind)
    return create_model("Experiment", __base__=Experiment, model=(config, default))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a file holds; UserError naming the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        document = yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader that refuses repeated keys
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(document, dict):
        raise UserError(
            f"{path}: an experiment is a mapping of keys such as data:, features:, targets:, model:"
        )
    return document


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def apply_override(document: dict[str, Any], override: str) -> None:
    """Write `key.path=value` into the document."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"-o {override}: write key=value, for example -o training.epochs=3")
    try:
        set_field(document, key.strip(), yaml.safe_load(value), f"-o {override}")
    except yaml.YAMLError:
        raise UserError(f"-o {override}: the value is not valid YAML") from None


def set_field(document: dict[str, Any], field: str, value: Any, where: str) -> None:
    """Set `section.key` of a plain document. UserError, beginning with `where`, if a section is a value."""
    *parents, last = field.split(".")
    at = document
    for parent in parents:
        at = at.setdefault(parent, {})
        if not isinstance(at, dict):
            raise UserError(f"{where}: '{parent}' holds a value, not further keys")
    at[last] = value


def one_line(error: ValidationError, where: str, document: type[BaseModel]) -> UserError:
    """The first mistake of a document in one line, with the key that may have been meant."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return _unknown_key(location, where, document)
    message = first["msg"].removeprefix("Value error, ")
    return UserError(f"{where}: {'.'.join(location)}: {message}".replace(": :", ":"))


def _unknown_key(location: list[str], where: str, document: type[BaseModel]) -> UserError:
    """Names the key's true place where it stands in the wrong section, else the nearest key of its section."""
    *section, key = location
    elsewhere = [path for path in _paths(document) if path.rpartition(".")[2] == key]
    place = ": ".join([where, ".".join(section)]) if section else where
    if elsewhere:
        return UserError(f"{place}: unknown key '{key}'; did you mean '{elsewhere[0]}'?")
    known = [path for path in _paths(document) if path.split(".")[:-1] == section]
    return unknown_name("key", key, [path.rpartition(".")[2] for path in known], place)


def _paths(document: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of the document with the sections it stands in, joined by dots."""
    found = []
    for name, field in document.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _paths(field.annotation, f"{prefix}{name}.")
    return found
