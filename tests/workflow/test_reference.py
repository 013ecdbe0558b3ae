"""The schema and the page of keys are those of the types that read an experiment; the examples hold to them."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from longtape.cli.main import execute
from longtape.experiment import Experiment, experiment_type, load_experiment
from longtape.models.registry import MODELS, config_of
from longtape.workflow.init import SCHEMA
from longtape.workflow.reference import document, schema, undescribed
from longtape.workflow.tokens import TokenExperiment, load_token_experiment

ROOT = Path(__file__).parents[2]
DOCS, EXAMPLES = ROOT / "docs", sorted((ROOT / "examples").glob("*.yaml"))
CHECK = Draft202012Validator(schema())


def plain(text: str):
    """As an editor reads it: dates are text."""
    return json.loads(json.dumps(yaml.safe_load(text), default=str))


def mistakes(document) -> list[str]:
    return [error.message for error in CHECK.iter_errors(document)]


def test_what_is_published_is_current():
    """Otherwise: python -m longtape.workflow.reference docs."""
    assert json.loads(SCHEMA.read_text("utf-8")) == schema()
    assert (DOCS / "experiment.md").read_text("utf-8") == document()
    Draft202012Validator.check_schema(schema())


def test_every_key_is_described():
    assert undescribed(Experiment) == []
    assert undescribed(TokenExperiment) == []
    assert [(kind, name) for kind in MODELS for name in undescribed(config_of(kind))] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_hold_to_the_schema_and_name_no_place_outside_the_clone(path):
    text = path.read_text("utf-8")
    assert (
        text.splitlines()[0]
        == "# yaml-language-server: $schema=../src/longtape/workflow/experiment.schema.json"
    )
    assert mistakes(plain(text)) == []
    if path.stem == "listops":
        data = load_token_experiment(path).data
    else:
        data = load_experiment(path).data
    assert data.path is None or Path(data.path).is_relative_to(ROOT)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if config_of(kind).reads_market])
def test_the_defaults_of_every_kind_hold_to_the_schema(kind):
    document = json.loads(
        experiment_type(kind)(
            features=["log_return"], targets=targets_of(kind), **more(kind)
        ).model_dump_json()
    )
    document["split"] = {"train": 0.7}
    document["model"] = {"kind": kind} | document["model"]
    assert mistakes(document) == []


def targets_of(kind):
    if kind in ("order_book", "imbalance_sign", "book_logit", "tape_logit"):
        return ["direction(2)"]
    return ["volatility(2)"] if kind in ("log_har", "log_har_mean", "ewma", "garch") else ["return(2)"]


def more(kind):
    return {"backtest": {"signal": {"name": "allocation"}}} if kind == "equal_weight" else {}


@pytest.mark.parametrize(
    "changes",
    [
        {"modle": {}},
        {"model": {"lookbak": 3}},
        {"model": {"kind": "informer", "patch": 2}},
        {"model": {"label_len": 2}},  # of the informer, and none was named
        {"model": {"attention": "bigbrid"}},
        {"training": {"epochs": -1}},
        {"backtest": {"signal": {"name": "treshold"}}},
        {"features": []},
        {"model": {"kind": "tokens"}},  # without data
    ],
)
def test_what_the_reader_refuses_is_a_mistake_to_the_schema(changes):
    document = {"features": ["log_return"], "targets": ["return(1)"]}
    assert mistakes(document) == []
    assert mistakes(document | changes)


def test_config_prints_an_experiment_that_is_read_again_as_the_same(tmp_path, capsys):
    path = ROOT / "examples" / "sp500_daily.yaml"
    assert execute(["config", str(path), "-o", "model.lookback=64"]) == 0
    said = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(said)
    again = load_experiment(tmp_path / "again.yaml")
    assert again == load_experiment(path, ["model.lookback=64"])
    assert mistakes(plain(said)) == []
    assert execute(["config", str(ROOT / "examples" / "listops.yaml")]) == 0
    assert "vocabulary: 15" in capsys.readouterr().out
