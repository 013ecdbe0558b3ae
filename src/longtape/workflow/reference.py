"""Every key of an experiment file, from the types that read it: a JSON schema for editors, and a page.

`python -m longtape.workflow.reference docs` writes docs/experiment.md, and the schema beside this file, which
examples and the files of `longtape init` name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from longtape.attention import MECHANISMS, mechanism_class
from longtape.attention.base import AttentionConfig
from longtape.backtest.signals import SIGNALS, signal_options
from longtape.core.errors import UserError
from longtape.core.files import write_text
from longtape.core.markdown import markdown_table
from longtape.experiment import Experiment
from longtape.features.target_kinds import KINDS, WEIGHT
from longtape.models.base import ModelConfig
from longtape.models.heads import HEADS
from longtape.models.network import NetworkConfig, TrainedConfig
from longtape.models.registry import MODELS, config_of
from longtape.models.tokens import TokensConfig
from longtape.models.transformer import TransformerConfig
from longtape.training.search_space import SearchRange
from longtape.workflow.init import SCHEMA
from longtape.workflow.tokens import TokenExperiment

Schema = dict[str, Any]
NAME = "experiment"
_GIVEN_BY_MODEL = {
    "d_model",
    "n_heads",
    "seq_len",
    "dropout",
    "rotary",
}  # of a layer, which keys of the model say
_WORDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true · false",
    "array": "list",
    "object": "mapping",
}
_HEAD = """# Every key of an experiment file

Written from the types that read the file by `python -m longtape.workflow.reference docs`; the same for
editors is `src/longtape/workflow/experiment.schema.json`. A file that begins with

```
# yaml-language-server: $schema=experiment.schema.json
```

(with the way to that file, which `longtape init` writes) is completed and checked as it is typed, where the editor
has the YAML language server.
`longtape init --from candles.csv --out experiment.yaml` begins a file for your own data, and `longtape config FILE`
prints one with every default written out. A key that is not listed here is refused, with the nearest one;
`-o key=value` sets one from the command line.
"""


def schema() -> Schema:
    """JSON schema (draft 2020-12) of an experiment file: of a market, or of token ids where `model.kind` says so."""
    market, tokens = _flat(Experiment), _flat(TokenExperiment)
    kinds = [_flat(config_of(kind), kind) for kind in MODELS if config_of(kind).reads_market]
    market["properties"]["model"] = {"description": "what forecasts, by its kind", "anyOf": kinds}
    is_tokens = {"properties": {"model": {"properties": {"kind": {"const": "tokens"}}, "required": ["kind"]}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "longtape experiment",
        "type": "object",
        "if": {"required": ["model"], **is_tokens},
        "then": tokens,
        "else": market,
    }


def _flat(model: type[BaseModel], kind: str | None = None) -> Schema:
    """A model's schema with every reference replaced by what it names, and without titles; of a model of one kind."""
    whole = model.model_json_schema()
    found: Schema = _plain(whole, whole.get("$defs", {}))
    _name_what_there_is(found["properties"])
    if kind is not None:
        found["properties"]["kind"] = {"const": kind, "description": "a model of the registry"}
        found["required"] = ["kind"] if kind != "encoder" else []  # without a kind it is an encoder
    return found


def _name_what_there_is(properties: Schema) -> None:
    """Names of registries, which are text to the types."""
    for key in {"attention", "decoder_attention"} & set(properties):
        properties[key] = {"enum": [*MECHANISMS, *([None] if key == "decoder_attention" else [])]} | {
            "description": properties[key]["description"]
        }
    if "backtest" in properties:
        signal = properties["backtest"]["properties"]["signal"]["properties"]
        signal["name"] = {"enum": list(SIGNALS), "description": signal["name"]["description"]}


def _plain(value: Any, named: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_plain(entry, named) for entry in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        meant = _plain(named[value["$ref"].rpartition("/")[2]], named)
        return meant | {key: entry for key, entry in value.items() if key not in ("$ref", "default")}
    is_named = isinstance(value.get("title"), str)  # and no key of a section that is called title
    left_out = {"$defs", "title"} if is_named else {"$defs"}
    return {key: _plain(entry, named) for key, entry in value.items() if key not in left_out}


def document() -> str:
    """The page."""
    networks = [kind for kind in MODELS if config_of(kind).trains and config_of(kind).reads_market]
    fitted = [kind for kind in MODELS if not config_of(kind).trains]
    parts = [_HEAD, "## The whole file\n", keys(Experiment)]
    for name, field in Experiment.model_fields.items():
        section = section_of(field.annotation)
        if section is not None and name != "model":
            parts += [f"\n## {name}\n", _first_line(section), "", keys(section), *_below(section, name)]
    parts += [
        "\n## model\n",
        f"`kind` is one of: {_listed(networks)}, which train; {_listed(fitted)}, which are fitted.",
        "Any of them may stand beside another one's result, by its name under `baselines`.",
        "",
    ]
    parts += ["### Keys of every model that trains\n", keys(TrainedConfig), ""]
    parts += ["### Keys of every model with layers of attention\n", keys(NetworkConfig, TrainedConfig), ""]
    for kind in networks:
        config = config_of(kind)
        base = NetworkConfig if issubclass(config, NetworkConfig) else TrainedConfig
        of_base = " It has the keys of every model that trains, and these." if base is TrainedConfig else ""
        parts += [f"### {kind}\n", _first_line(config) + of_base, "", keys(config, base), ""]
    parts += ["### Models that are fitted\n", fitted_models(fitted), ""]
    for kind in fitted:
        if set(config_of(kind).model_fields) > set(ModelConfig.model_fields):
            parts += [
                f"### {kind}\n",
                _first_line(config_of(kind)),
                "",
                keys(config_of(kind), ModelConfig),
                "",
            ]
    parts += [
        "### model.attention_options\n",
        mechanisms(),
    ]
    parts += ["\n### model.heads\n", heads(), "\n### backtest.signal.options\n", signals()]
    parts += ["\n## search\n", "Of each field a list of values, or a range:\n", keys(SearchRange)]
    parts += ["\n## An experiment on token ids\n", keys(TokenExperiment), "", "### model\n"]
    parts += [
        "The keys of every model with layers of attention, and",
        "",
        keys(TokensConfig, TransformerConfig),
        "",
    ]
    return "\n".join(parts)


def fitted_models(kinds: Iterable[str]) -> str:
    """Each of them, what it forecasts, and beside which targets it stands without being named."""
    rows = []
    for kind in kinds:
        config, model = config_of(kind)(kind=kind), MODELS.load(kind)
        own = [name for name, one in KINDS.items() if kind in one.baselines]
        package = f" (package `{config.package}`, extra `baselines`)" if config.package else ""
        rows.append(
            [f"`{kind}`", _first_line(model) + package, _listed(_forecast_by(config)), _listed(own) or "–"]
        )
    return markdown_table(["kind", "what it is", "targets", "stands beside, unnamed"], rows, numbers=False)


def _forecast_by(config: ModelConfig) -> list[str]:
    found = []
    for name, kind in KINDS.items():
        try:
            config.refuse_targets({name: kind})
        except UserError:
            continue
        found.append(name)
    return [name for name in found if name != WEIGHT.name]


def _below(section: type[BaseModel], name: str) -> list[str]:
    """Sections within a section."""
    parts = []
    for inner, field in section.model_fields.items():
        found = section_of(field.annotation)
        if found is not None:
            parts += [f"\n### {name}.{inner}\n", _first_line(found), "", keys(found)]
    return parts


def keys(model: type[BaseModel], than: type[BaseModel] | None = None) -> str:
    """A table of the keys of a section; of those that it has otherwise `than` another."""
    known = [] if than is None else _rows(than)
    rows = [row for row in _rows(model) if row not in known]
    return markdown_table(["key", "values", "default", "what it is"], rows, numbers=False)


def _rows(model: type[BaseModel]) -> list[list[str]]:
    properties = _flat(model)["properties"]
    rows = []
    for name, field in model.model_fields.items():
        within, default = section_of(field.annotation) is not None, ""
        if field.is_required():
            default = "needed"
        elif not within:
            default = _written(field.get_default(call_default_factory=True))
        values = "a section" if within else values_of(properties[name])
        if name != "kind" or not issubclass(model, ModelConfig):
            rows.append([f"`{name}`", values, default, field.description or ""])
    return rows


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model that a key's value is, where it is a section of its own."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((one for one in choices if isinstance(one, type) and issubclass(one, BaseModel)), None)


def values_of(schema: Schema) -> str:
    """What a value may be, in words."""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " · ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    if "anyOf" in schema:
        return " or ".join(values_of(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "items" in schema and schema["items"].get("enum"):
        return f"list of {values_of(schema['items'])}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema]
    return " ".join([_WORDS.get(schema.get("type", ""), "any"), *limits])


def mechanisms() -> str:
    """Options of every mechanism."""
    rows = []
    for name in MECHANISMS:
        config: type[AttentionConfig] = mechanism_class(name).Config
        own = [field for field in fields(config) if field.name not in _GIVEN_BY_MODEL]
        said = [f"`{f.name}: {_plain_default(f.default)}`" for f in own]
        rows.append([f"`{name}`", ", ".join(said)])
    return markdown_table(
        ["attention", "options and their defaults (docs/attention.md)"], rows, numbers=False
    )


def heads() -> str:
    """Heads and their options."""
    rows = []
    for name in HEADS:
        config = HEADS.load(name).Config
        options = [
            f"`{key}`: {field.description}" for key, field in config.model_fields.items() if key != "name"
        ]
        rows.append([f"`{name}`", _first_line(HEADS.load(name)), "; ".join(options) or "–"])
    return markdown_table(["head", "what it forecasts", "options"], rows, numbers=False)


def signals() -> str:
    """Signals and their options."""
    rows = [
        [f"`{name}`", _first_line(SIGNALS.load(name)), _options(signal_options(name))] for name in SIGNALS
    ]
    return markdown_table(["signal", "what it is", "options"], rows, numbers=False)


def _options(options: Mapping[str, float | None]) -> str:
    said = [f"`{name}`" if value is None else f"`{name}: {value}`" for name, value in options.items()]
    return ", ".join(said) or "–"


def _plain_default(value: Any) -> str:
    return "needed" if value is MISSING else _written(value).strip("`") or "by itself"


def _written(value: Any) -> str:
    """A default as YAML writes it; nothing for what is left out."""
    if value is None or isinstance(value, BaseModel):
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace('"', "")


def _first_line(thing: Any) -> str:
    return " ".join((thing.__doc__ or "").split("\n\n")[0].split())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def undescribed(model: type[BaseModel]) -> list[str]:
    """Keys without a description, of a section and of those within it."""
    found = [name for name, field in model.model_fields.items() if not field.description and name != "kind"]
    within = [section_of(field.annotation) for field in model.model_fields.values()]
    inner = [undescribed(one) for one in within if one is not None and one is not ModelConfig]
    return [*found, *(name for names in inner for name in names)]


def main(folder: Path) -> None:
    """Write the schema and the page."""
    text = json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
    write_text(Path(str(SCHEMA)), text)
    write_text(folder / f"{NAME}.md", document())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
