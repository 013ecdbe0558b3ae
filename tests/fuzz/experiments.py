"""Experiments at random: valid documents over markets of known truth, each a function of its seed alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import yaml

from longtape.attention import MECHANISMS
from longtape.backtest.signals import SIGNALS, signal_options
from longtape.core.errors import UserError
from longtape.experiment import parse_experiment
from longtape.features.target_kinds import TargetKind, target_kind
from longtape.models.registry import MODELS, config_of
from tests.fuzz import schema
from tests.fuzz.markets import Market, MarketSpec, describe, draw_spec, make_market

Document = dict[str, Any]
Rng = np.random.Generator

FEATURES = (
    "volatility(10)", "rsi(7)", "volume_ratio(10)", "range", "body", "momentum(8)", "hour", "weekday", "log_volume",
    "zscore(close, 20)", "parkinson(10)", "close_ratio(12)", "atr_ratio(3)", 'resample("{longer}").log_return',
)  # fmt: skip
LONGER = {"1m": "5m", "5m": "30m", "30m": "2h", "1h": "4h", "4h": "8h", "1d": "2d"}
HEADS = {"return": ("regression", "huber", "student_t", "quantile"), "volatility": ("volatility",)}
HEADS["path"] = HEADS["return"]
WEIGHTS = ("allocation", "sharpe")
ATTENTION: dict[str, Document] = {
    "local": {"block_size": 4, "window_size": 3},
    "longformer": {"window_size": 5, "n_global": 1},
    "bigbird": {"block_size": 4, "n_random": 1},
    "linformer": {"k": 4},
    "performer": {"n_features": 8},
    "reformer": {"bucket_size": 4, "n_hashes": 2},
    "probsparse": {"factor": 2},
}
OPTIONS: dict[str, tuple[float, ...]] = {
    "threshold": (0.0, 1e-4, 1e-3), "gain": (5.0, 200.0), "volatility": (0.1, 0.5), "max_leverage": (1.0, 2.0),
    "quantile": (0.2, 0.34, 0.5),
}  # fmt: skip
# Options of the account, wherever in `backtest` the document keeps them.
ACCOUNT: dict[str, tuple[Any, ...]] = {
    "stop_loss": (0.01, 0.05), "take_profit": (0.01, 0.05), "max_leverage": (0.5, 1.0), "maintenance_margin": (0.1,),
    "close_at_end": (True,), "rebalance": ("every_bar",), "lot_size": (0.001,), "initial_capital": (1_000.0,),
    "fill": ("next_close",), "zero_volume": ("fill",), "risk_free_rate": (0.02,), "risk_free": (0.02,),
}  # fmt: skip
# What is drawn with a meaning of its own below, or must stay as it is.
HANDLED = {
    "model.attention", "model.kind", "model.assets", "training.device", "audit", "missing", "data.source",
    "data.drop_last", "data.kind", "backtest.signal.holding", "backtest.signal.long_only", "backtest.costs.funding",
    "backtest.fill", "forecast.intervals", "model.skip", "backtest.signal.cost",
}  # fmt: skip
CAUSAL = ("full", "flash", "local", "longformer", "bigbird", "performer")
GLOBAL_TOKENS = ("encoder", "channels", "portfolio")
ORDERED = ("longformer", "linformer", "reformer", "probsparse")  # which cannot be joint in a portfolio
# Keys that a kind of model has for itself, small enough for these markets.
OWN_KEYS: dict[str, Document] = {
    "lightgbm": {"rounds": 12, "least_rows": 10},
    "seasonal_naive": {"season": 12},
    "dlinear": {"kernel": 5},
    "ols": {"lookback": 3},  # with as many inputs as rows it says anything
}
NAMED = ("seasonal_naive", "ridge", "ols", "dlinear", "lightgbm", "ewma", "last_value")


@dataclass(frozen=True, eq=False)
class Case:
    """An experiment and the market it is about."""

    seed: int
    market: Market
    document: Document
    refused: tuple[str, ...] = ()  # drawn options that the document refused in this company
    said: Document = field(default_factory=dict)  # what was drawn, for the summary

    @property
    def yaml(self) -> str:
        """The experiment as a file."""
        return yaml.safe_dump(self.document, sort_keys=False)

    def option(self, path: str, default: Any = None) -> Any:
        """A value of the document."""
        return schema.get(self.document, path, default)

    @property
    def horizons(self) -> dict[str, int]:
        """Bars ahead of each target, the longest where there are several."""
        return {target: horizon_of(target) for target in self.document["targets"]}


def horizon_of(target: str) -> int:
    """`return(6)` → 6."""
    return int(target.split("(")[1].rstrip(")").split(",")[0])


def kind_of(target: str) -> str:
    """`open_return(6)` → `return`: how the document names its head."""
    name = target.split("(")[0]
    return {"open_return": "return", "mid_direction": "direction"}.get(name, name)


def draw(seed: int) -> Case:
    """The case of a seed."""
    rng = np.random.default_rng([seed, 0])
    spec = draw_spec(rng, seed)
    market = make_market(spec, seed)
    document: Document = {
        "name": f"fuzz {seed}",
        "seed": int(rng.integers(0, 1000)),
        "data": _data(rng, spec),
    }
    document["targets"] = _targets(rng)
    document["model"] = _model(rng, spec)
    document["features"] = _features(rng, spec, market, document)
    document["missing"] = _missing(rng, spec)
    document["training"] = _training(rng)
    document["forecast"] = {"level": float(rng.choice([0.5, 0.8, 0.9, 0.95]))}
    document["audit"] = bool(rng.random() < 0.8)
    _split(rng, market, document)
    _heads(rng, document)
    _backtest(rng, spec, document)
    _marks(rng, spec, document)
    least = 3 if schema.get(document, "backtest.signal.name") == "rank" else 2
    if spec.symbols > 1 and rng.random() < 0.15 and spec.symbols >= least and not spec.twins:
        document["symbols"] = market.symbols[:-1]
    _weights(np.random.default_rng([seed, 3]), document)
    _other_model(np.random.default_rng([seed, 4]), document)
    _baselines(np.random.default_rng([seed, 6]), document)
    document, refused = _with_extras(document, _extras(rng, document))
    options = _options_of_model(np.random.default_rng([seed, 5]), document)
    document, refused_options = _with_extras(document, options)
    return Case(seed, market, document, refused + refused_options, _said(spec, document))


def with_document(case: Case, **changes: Any) -> Case:
    """The same market under a document with some keys changed (`section.key` written `section__key`)."""
    document: Document = yaml.safe_load(yaml.safe_dump(case.document))
    for path, value in changes.items():
        schema.put(document, path.replace("__", "."), value)
    return replace(case, document=document)


# --- sections ---


def _data(rng: Rng, spec: MarketSpec) -> Document:
    ending = str(rng.choice(["parquet", "csv"]))
    symbols = ["AAA", "BBB", "CCC"][: spec.symbols]
    data: Document = {
        "source": "file",
        "path": f"{{symbol}}.{ending}",
        "symbols": symbols,
        "interval": spec.interval,
    }
    if spec.calendar != "24/7":
        data["calendar"] = spec.calendar
    category = (
        rng.choice(["none", "spot", "linear"]) if spec.calendar == "24/7" else rng.choice(["none", "stock"])
    )
    if category != "none" and spec.calendar != "24/5":
        data["category"] = str(category)
    if data.get("category") == "linear" and rng.random() < 0.4:
        del data["path"]
        data |= {"source": "store", "store": "store"}
    if rng.random() < 0.1:
        data["drop_last"] = True
    return data


def _targets(rng: Rng) -> list[str]:
    h, k = (
        int(x) for x in rng.choice([1, 2, 3, 5, 8, 12], 2, replace=False, p=[0.3, 0.2, 0.15, 0.15, 0.1, 0.1])
    )
    sets = [
        [f"return({h})", f"volatility({h})"], [f"return({h})"], [f"volatility({h})"], [f"open_return({h})"],
        [f"return({h})", f"return({k})"], [f"return({h})", f"volatility({k})"], [f"path({min(h, 5) + 1})"],
        [f"open_return({h})", f"volatility({h})"], [f"return({h})", f"open_return({h})"],
        [f"return({h})", f"direction({k})"], [f"return({h})", f"up({k})"],
    ]  # fmt: skip
    chances = np.array([5, 2, 3, 3, 1.5, 1.5, 1.5, 2, 1, 0.5, 0.5])
    return list(sets[int(rng.choice(len(sets), p=chances / chances.sum()))])


def _model(rng: Rng, spec: MarketSpec) -> Document:
    mechanism = str(rng.choice(sorted(MECHANISMS)))
    model: Document = {
        "lookback": int(rng.choice([16, 24, 40] if spec.bars < 400 else [16, 24, 40, 64, 96])),
        "attention": mechanism,
        "d_model": 8,
        "n_heads": int(rng.choice([1, 2])),
        "n_layers": 1,
        "dropout": float(rng.choice([0.0, 0.1])),
        "patch": int(rng.choice([1, 1, 2, 3])),
    }
    options = ATTENTION.get(mechanism, {})
    if options and rng.random() < 0.7:
        model["attention_options"] = dict(options)
    if rng.random() < 0.25:
        model["skip"] = False
    return model


def _features(rng: Rng, spec: MarketSpec, market: Market, document: Document) -> list[str]:
    usable = [
        name for name in FEATURES if not (spec.interval == "1d" and name.startswith(("hour", "resample")))
    ]
    usable = [name for name in usable if spec.calendar == "24/7" or not name.startswith("resample")]
    chosen = [str(name) for name in rng.choice(usable, int(rng.integers(1, 5)), replace=False)]
    chosen = [name.replace("{longer}", LONGER[spec.interval]) for name in chosen]
    if spec.symbols > 1 and rng.random() < 0.3:
        chosen.append(
            str(rng.choice(['of("BBB").volume_ratio(5)', "relative(log_return)", "average(log_return)"]))
        )
    if spec.law == "lag of volume":
        chosen = ["log_volume", *(name for name in chosen if name != "log_volume")]
    return ["log_return", *chosen]


def _missing(rng: Rng, spec: MarketSpec) -> str:
    policies = [policy for policy in schema.choices("missing") if policy != "error"]
    if spec.gaps or rng.random() < 0.2:
        return str(rng.choice(policies))
    return "error"


def _training(rng: Rng) -> Document:
    return {
        "epochs": int(rng.choice([0, 1, 2])),
        "batch_size": int(rng.choice([16, 32])),
        "stride": int(rng.choice([2, 4])),
        "learning_rate": float(rng.choice([1e-3, 1e-2])),
    }


WARM_UP = 180  # bars that recursive features lack at the beginning, and labels at the end


def _split(rng: Rng, market: Market, document: Document) -> None:
    way = rng.choice(["default", "fractions", "few", "dates", "dates until"], p=[0.2, 0.2, 0.1, 0.25, 0.25])
    if way == "default":
        if market.spec.bars < 400:  # of which 15 % would not hold a label of several bars twice
            document["split"] = {"train": 0.5, "validation": 0.35}
        return
    split: Document = {"embargo": int(rng.choice([0, 0, 3]))}
    gap = split["embargo"] + max(horizon_of(target) for target in document["targets"])
    if way in ("fractions", "few"):
        split["train"] = float(rng.choice([0.6, 0.7]))
        origins = max(len(market.shared_opens()) - document["model"]["lookback"] - WARM_UP, 80)
        few = min((2 * gap + 12) / origins, 0.4)
        split["validation"] = round(few if way == "few" else max(0.2, few), 4)
        split["train"] = min(split["train"], 0.5 if few > 0.2 else 0.7)
    else:
        split |= _dates(rng, market, document, gap, until=way == "dates until")
    document["split"] = split


def _dates(rng: Rng, market: Market, document: Document, gap: int, until: bool) -> Document:
    opens = market.shared_opens()
    first = document["model"]["lookback"] + 40
    train = first + round((len(opens) - first) * float(rng.uniform(0.55, 0.65)))
    few = rng.random() < 0.25
    held = 2 * gap + int(rng.integers(8, 16)) if few else round((len(opens) - first) * 0.18)
    dates = {"train_until": _iso(opens[train]), "validation_until": _iso(opens[train + held])}
    if until:
        rest = len(opens) - train - held
        dates["test_until"] = _iso(opens[train + held + round(rest * float(rng.uniform(0.5, 0.8)))])
    return dates


def _iso(time: int) -> str:
    return str(np.datetime64(int(time), "ms").astype("datetime64[m]"))


def _heads(rng: Rng, document: Document) -> None:
    kinds = {kind_of(target) for target in document["targets"]}
    chosen = {
        kind: str(rng.choice(HEADS[kind])) for kind in sorted(kinds) if kind in HEADS and rng.random() < 0.7
    }
    if chosen:
        document["model"]["heads"] = chosen


def _backtest(rng: Rng, spec: MarketSpec, document: Document) -> None:
    perpetual = document["data"].get("category") == "linear"
    backtest: Document = {}
    costs = _costs(rng, perpetual, document["data"]["source"] == "store")
    if costs is not None:
        backtest["costs"] = costs
    if any(kind_of(target) != "volatility" for target in document["targets"]):
        backtest["signal"] = _signal(rng, spec, document)
        if backtest["signal"]["name"] in ("threshold", "equal") and rng.random() < 0.3:
            backtest["traded"] = 0.3
        if rng.random() < 0.15:
            backtest["fill"] = "next_close"
    if backtest:
        document["backtest"] = backtest


def _costs(rng: Rng, perpetual: bool, stored: bool) -> Document | None:
    """None: left out entirely."""
    if not perpetual and rng.random() < 0.3:
        return None
    costs: Document = {"fee": float(rng.choice([0.0, 0.0005, 0.002]))}
    if rng.random() < 0.4:
        costs |= {"spread": 0.0003, "slippage": 0.0002}
    if rng.random() < 0.15:
        costs["impact"] = 0.001
    if not perpetual:
        return costs | ({"borrow": 0.03} if rng.random() < 0.2 else {})
    funding = "history" if stored and rng.random() < 0.7 else str(rng.choice(["excluded", "rate"]))
    return costs | {"funding": funding} | ({"funding_rate": 0.0001} if funding == "rate" else {})


def _signal(rng: Rng, spec: MarketSpec, document: Document) -> Document:
    targets = [target for target in document["targets"] if kind_of(target) in ("return", "path")]
    traded = str(rng.choice(targets))
    name = str(rng.choice(_signals(spec, document, traded)))
    signal: Document = {"name": name}
    options = {key: _option(rng, key, default) for key, default in signal_options(name).items()}
    if chosen := {key: value for key, value in options.items() if value is not None}:
        signal["options"] = chosen
    others = [
        target for target in document["targets"] if kind_of(target) != "volatility" and target != traded
    ]
    if others or rng.random() < 0.5:
        signal["target"] = traded
    if traded.startswith("path"):
        signal["horizon"] = int(rng.integers(1, horizon_of(traded) + 1))
    signal["holding"] = str(rng.choice([*schema.choices("backtest.signal.holding"), "ladder"]))
    limits = {
        "long_only": True,
        "max_weight": 0.3,
        "max_gross": 0.5,
        "band": 0.05,
        "max_turnover": 0.4,
        "cost": 1e-4,
    }
    return signal | {key: value for key, value in limits.items() if rng.random() < 0.12}


def _signals(spec: MarketSpec, document: Document, traded: str) -> list[str]:
    """Signals that this experiment can have; weights of an allocation come from a model of weights only."""
    unfit = {"allocation"}
    if len(document.get("symbols", document["data"]["symbols"])) < 2:
        unfit.add("rank")
    same = f"volatility({horizon_of(traded)})"
    if same not in document["targets"] or traded.startswith(("path", "open_return")):
        unfit.add("volatility_target")
    return [name for name in SIGNALS if name not in unfit]


def _weights(rng: Rng, document: Document) -> None:
    """Now and then the head of what is traded gives weights, which the account takes as they are."""
    signal = schema.get(document, "backtest.signal")
    if signal is None or rng.random() > 0.12:
        return
    kinds = {kind_of(target) for target in document["targets"]} & {"return", "path"}
    head: Document = {"name": str(rng.choice(WEIGHTS)), "long_only": bool(rng.random() < 0.5)}
    if rng.random() < 0.5 or head["name"] == "sharpe":
        head |= {"turnover_cost": 0.001, "block": 4}
    document["model"].setdefault("heads", {}).update(dict.fromkeys(sorted(kinds), head))
    document["backtest"].pop("traded", None)
    for key in ("options", "cost"):
        signal.pop(key, None)
    signal["name"] = "allocation"


def _dense(rng: Rng, document: Document) -> None:
    """Now and then a causal encoder that also learns from every token."""
    model = document["model"]
    weights = schema.get(document, "backtest.signal.name") == "allocation"
    if weights or model["attention"] not in CAUSAL or rng.random() > 0.1:
        return
    model.setdefault("attention_options", {})["causal"] = True
    model["dense"] = 0.3


def _other_model(rng: Rng, document: Document) -> None:
    """Now and then a model of another kind, with the keys that it shares with the encoder and some of its own."""
    if rng.random() > 0.3:
        return _dense(rng, document)
    kind = str(rng.choice(other_kinds(document)))
    config = config_of(kind)
    model = {key: value for key, value in document["model"].items() if key in config.model_fields}
    model |= {"kind": kind} | OWN_KEYS.get(kind, {})
    if kind == "informer":
        model |= {"n_layers": 2, "replicas": int(rng.choice([0, 1])), "calendar": bool(rng.random() < 0.5)}
        if model["attention"] in ("linformer", "reformer"):
            model["decoder_attention"] = "flash"
    if kind == "portfolio":
        model["layout"] = "axial" if model["attention"] in ORDERED else str(rng.choice(["joint", "axial"]))
    if not config.trains:
        document.get("forecast", {}).pop("intervals", None)
    if kind not in GLOBAL_TOKENS:
        document.pop("marks", None)
    document["model"] = model


def other_kinds(document: Document) -> list[str]:
    """Kinds of model beside the encoder that can forecast the targets; weights come from those that have heads."""
    weights = schema.get(document, "backtest.signal.name") == "allocation"
    kinds = {kind: target_kind(kind) for kind in sorted({kind_of(target) for target in document["targets"]})}
    return [kind for kind in MODELS if kind != "encoder" and _forecasts(kind, kinds, weights)]


def _forecasts(kind: str, kinds: Mapping[str, TargetKind], weights: bool) -> bool:
    config = config_of(kind)
    if not config.reads_market or (weights and not config.trains):
        return False
    made = config.model_validate({"kind": kind})
    try:
        made.refuse_targets(kinds)
    except UserError:
        return False
    return not any(made.gives_weights(one) for one in kinds.values())


def _baselines(rng: Rng, document: Document) -> None:
    """Now and then some models beside the one that is judged, of those that apply."""
    if rng.random() > 0.2:
        return
    weights = schema.get(document, "backtest.signal.name") == "allocation"
    kinds = {kind_of(target): target_kind(kind_of(target)) for target in document["targets"]}
    kinds = {name: kind for name, kind in kinds.items() if not (weights and name in ("return", "path"))}
    fit = [name for name in NAMED if any(_forecasts(name, {one: kinds[one]}, False) for one in kinds)]
    if fit:
        chosen = rng.choice(fit, min(2, len(fit)), replace=False)
        document["baselines"] = [{"kind": str(name)} | OWN_KEYS.get(str(name), {}) for name in chosen]


def _option(rng: Rng, name: str, default: float | None) -> float | None:
    if default is not None and rng.random() < 0.5:
        return None
    return float(rng.choice(OPTIONS[name])) if name in OPTIONS else default


def _marks(rng: Rng, spec: MarketSpec, document: Document) -> None:
    if document["model"]["attention"] not in ("bigbird", "longformer") or rng.random() > 0.4:
        return
    kinds = ["day", "week"] + (["session_open"] if spec.calendar in ("XNYS", "CMES") else [])
    document["marks"] = {"kinds": [str(rng.choice(kinds))], "limit": 4}


# --- options that the schema lists ---


def _with_extras(document: Document, extras: list[tuple[str, Any]]) -> tuple[Document, tuple[str, ...]]:
    """Some further options, each kept where the document takes it in this company."""
    refused = []
    for path, value in extras:
        tried: Document = yaml.safe_load(yaml.safe_dump(document))
        schema.put(tried, path, value)
        try:
            parse_experiment(tried, "fuzz")
        except UserError as error:
            refused.append(f"{path}={value}: {error}")
        else:
            document = tried
    return document, tuple(refused)


def _options_of_model(rng: Rng, document: Document) -> list[tuple[str, Any]]:
    """Some options of the model that take one of a few values, or names of features and targets."""
    fields = config_of(document["model"].get("kind", "encoder")).model_json_schema()["properties"]
    h = max(horizon_of(target) for target in document["targets"])
    values: dict[str, list[Any]] = {
        "static": [document["features"][1:]],
        "auxiliary": [{f"volatility({h})": 0.5}, {f"up({h})": 0.2, f"path({h})": 0.1}],
    }
    for name, about in fields.items():
        values[name] = values.get(name) or about.get(
            "enum", [False, True] if about.get("type") == "boolean" else []
        )
    unfit = {"kind", "skip"} | set(fields.keys() ^ values.keys())
    if document["model"].get("skip") is False or "volatility" not in map(kind_of, document["targets"]):
        unfit.add("volatility_start")
    drawn = [name for name in fields if values[name] and name not in unfit and rng.random() < 0.08]
    return [(f"model.{name}", values[name][int(rng.integers(len(values[name])))]) for name in drawn]


def _extras(rng: Rng, document: Document) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for path, about in schema.leaves():
        values = _values(path, document)
        if values and rng.random() < _chance(path):
            found.append((path, values[int(rng.integers(len(values)))]))
        elif about.get("type") == "array" and path == "forecast.levels" and rng.random() < 0.2:
            found.append((path, [0.5, 0.9]))
    return found


def _chance(path: str) -> float:
    return 0.35 if path in ("forecast.intervals", "model.assets") else 0.08


def _values(path: str, document: Document) -> list[Any]:
    """Values to draw from for a key; none where it is drawn elsewhere."""
    last = path.rsplit(".", 1)[-1]
    if path == "model.assets":
        return ["joint", "pooled"] if len(document["data"]["symbols"]) > 1 else []
    if path == "forecast.intervals":
        return schema.choices(path) or ["conformal", "cqr", "quantile", "student_t", "adaptive"]
    if path == "training.seeds":
        return [2]
    if (
        path.startswith("backtest.")
        and last in ACCOUNT
        and schema.get(document, "backtest.signal") is not None
    ):
        return list(ACCOUNT[last])
    if path in HANDLED or path.startswith(("data.", "search.", "backtest.costs")):
        return []
    return schema.choices(path)


# --- what the summary counts ---


def _said(spec: MarketSpec, document: Document) -> Document:
    model, backtest = document["model"], document.get("backtest", {})
    heads = model.get("heads", {})
    targets = sorted({target.split("(")[0] for target in document["targets"]})
    split = document.get("split", {})
    return describe(spec) | {
        "targets": "+".join(targets),
        "heads": [
            f"{kind}: {head['name'] if isinstance(head, dict) else head}" for kind, head in heads.items()
        ],
        "attention": model.get("attention", "none"),
        "model": model.get("kind", "encoder"),
        "missing": document["missing"],
        "signal": backtest.get("signal", {}).get("name", "none"),
        "holding": backtest.get("signal", {}).get("holding", "none"),
        "split": "test_until"
        if "test_until" in split
        else "dates"
        if "train_until" in split
        else "fractions",
        "costs": "default" if "costs" not in backtest else backtest["costs"].get("funding", "named"),
        "data": document["data"]["source"],
        "skip": model.get("skip", True),
        "epochs": document["training"]["epochs"],
        "intervals": document["forecast"].get("intervals", "default"),
    }


def signature_names(function: Callable[..., Any]) -> set[str]:
    """Names of a function's parameters."""
    return set(inspect.signature(function).parameters)
