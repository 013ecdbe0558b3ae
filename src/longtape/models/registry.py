"""Models by name, as `model.kind` in an experiment says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtape.core.errors import UserError, require
from longtape.core.registry import Registry
from longtape.features.panel import Panel, TargetColumn
from longtape.features.target_kinds import TargetKind, target_kind
from longtape.models.base import Model, ModelConfig, ModelInputs

MODELS = Registry(
    "model",
    {
        "encoder": "longtape.models.encoder:EncoderForecaster",
        "channels": "longtape.models.encoder:Channels",
        "portfolio": "longtape.models.portfolio:Portfolio",
        "mlp": "longtape.models.mlp:Mlp",
        "informer": "longtape.models.informer:Informer",
        "order_book": "longtape.models.order_book:OrderBook",
        "tokens": "longtape.models.tokens:TokenEncoder",
        "zero": "longtape.models.closed_forms:Zero",
        "mean": "longtape.models.closed_forms:Mean",
        "equal_weight": "longtape.models.closed_forms:EqualWeight",
        "last_value": "longtape.models.closed_forms:LastValue",
        "seasonal_naive": "longtape.models.closed_forms:SeasonalNaive",
        "ar1": "longtape.models.closed_forms:Ar1",
        "ridge": "longtape.models.window_ridge:Ridge",
        "ols": "longtape.models.window_ridge:Ols",
        "dlinear": "longtape.models.dlinear:DLinear",
        "lightgbm": "longtape.models.boosted:Trees",
        "ewma": "longtape.models.ewma:Ewma",
        "garch": "longtape.models.garch:Garch",
        "log_har": "longtape.models.closed_forms:LogHarModel",
        "log_har_mean": "longtape.models.closed_forms:LogHarMean",
        "imbalance_sign": "longtape.models.book_baselines:ImbalanceSignModel",
        "book_logit": "longtape.models.book_baselines:BookLogitModel",
        "tape_logit": "longtape.models.book_baselines:TapeLogitModel",
    },
)


def build_model(config: ModelConfig, inputs: ModelInputs) -> Model:
    """The model that `config` describes, with weights from torch's current seed."""
    kind: type[Model] = MODELS.load(config.kind)
    return kind(config, inputs)


def config_of(kind: str) -> type[ModelConfig]:
    """The configuration of a kind of model; UserError with the nearest name."""
    model: type[Model] = MODELS.load(kind)
    return model.Config


@dataclass(frozen=True)
class Baseline:
    """A model that stands beside another one, and the options that were named for it, in words."""

    config: ModelConfig
    options: str = ""

    def title(self, target: TargetColumn) -> str:
        """How tables call it where it forecasts a target."""
        model: type[Model] = MODELS.load(self.config.kind)
        usual = model.titles.get(target.of_kind.name, model.title or self.config.kind)
        return f"{usual} ({self.options})" if self.options else usual


def baselines_of(inputs: ModelInputs, panel: Panel, named: Sequence[Baseline] = ()) -> list[Baseline]:
    """The models that stand beside one kind of target: its own, of those that can read the panel, and `named` ones."""
    first = inputs.targets[0]
    usual = [Baseline(config_of(name)(kind=name)) for name in first.of_kind.baselines]
    usual = [one for one in usual if MODELS.load(one.config.kind).reads(panel)]
    kind = target_kind(first.kind)
    more = [one for one in named if why_beside_none(one.config, kind, first.of_kind) is None]
    return [*usual, *(one for one in more if one not in usual)]


def why_beside_none(config: ModelConfig, kind: TargetKind, forecast: TargetKind) -> str | None:
    """Why a model cannot stand beside forecasts of a kind of target, which are of kind `forecast`; None: it can."""
    if not config.reads_market:
        return f"'{config.kind}' reads token ids and no market"
    if config.auxiliary_targets:
        return f"'{config.kind}': auxiliary targets are those of the model (model.auxiliary)"
    if config.pooled is not None:
        return f"'{config.kind}' is fitted to the symbols of the result; leave assets: pooled to the model"
    try:
        config.refuse_targets({kind.name: kind})
    except UserError as reason:
        return str(reason).removeprefix("model.kind: ")
    if config.forecast_kind(kind) != forecast:
        return f"'{config.kind}' says {config.forecast_kind(kind).unit}, and the model {forecast.unit}"
    return None


def require_package(config: ModelConfig) -> None:
    """UserError naming the extra where the package that fits a model is missing."""
    if config.package:
        require(config.package, "baselines")
