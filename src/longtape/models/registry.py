"""Models by name, as `model.kind` in an experiment says them."""

from __future__ import annotations

from longtape.core.registry import Registry
from longtape.features.panel import Panel, TargetColumn
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
        "ar1": "longtape.models.closed_forms:Ar1",
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


def title_of(kind: str, target: TargetColumn) -> str:
    """How tables call a model of a target."""
    model: type[Model] = MODELS.load(kind)
    return model.titles.get(target.of_kind.name, model.title or kind)


def baselines_of(inputs: ModelInputs, panel: Panel) -> list[str]:
    """The closed-form models that stand beside one kind of target, of those that can read the panel."""
    named = inputs.targets[0].of_kind.baselines
    return [name for name in named if MODELS.load(name).reads(panel)]
