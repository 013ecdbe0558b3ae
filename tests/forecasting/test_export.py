"""Graphs of fitted models give the models' own forecasts: every mechanism, both formats, held to docs/export.md."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from longtape.attention import MECHANISMS
from longtape.core.errors import UserError
from longtape.features.build import FeaturesConfig, build
from longtape.forecasting.export import FORMATS, TOLERANCE, export
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from longtape.training.ensemble import Ensemble
from tests.candles import candles
from tests.models.inputs import inputs_of

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
OPTIONS = {
    "bigbird": {"block_size": 4, "n_random": 1}, "local": {"window_size": 5}, "longformer": {"window_size": 5},
    "linformer": {"k": 8}, "reformer": {"bucket_size": 8},
}  # fmt: skip
ORIGINS = np.arange(300, 308)
TRAIN, VALIDATION = np.arange(100, 250), np.arange(260, 300)


def table() -> dict[str, list[str]]:
    """Rows `| mechanism | torch | onnx | … |` of docs/export.md."""
    page = DOCS.read_text("utf-8").split("| mechanism |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", page, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


@pytest.fixture(scope="module")
def panel():
    targets = ["return(6)", "volatility(6)", "direction(6, 0.001)"]
    return build([candles(400)], FeaturesConfig(features=["log_return", "range"], targets=targets))


def model_on(panel, attention, seed=0, **options):
    torch.manual_seed(seed)
    config = EncoderConfig(
        lookback=70,
        attention=attention,
        attention_options=OPTIONS.get(attention, {}),
        d_model=16,
        n_heads=2,
        **options,
    )
    made = EncoderForecaster(config, inputs_of(panel, TRAIN))
    made.fit(panel, TRAIN, VALIDATION)
    for head in made.heads.values():
        torch.nn.init.normal_(head.linear.weight)
    return made.eval()


def test_the_table_names_every_mechanism_and_every_format():
    assert list(table()) == list(MECHANISMS)
    assert all(set(cells[: len(FORMATS)]) <= {"yes", "no"} for cells in table().values())


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("attention", MECHANISMS)
def test_a_graph_gives_the_forecasts_of_the_model(attention, to, panel, tmp_path):
    model, path = model_on(panel, attention), tmp_path / f"model{FORMATS[to].ending}"
    if table()[attention][list(FORMATS).index(to)] == "no":
        with pytest.raises(UserError, match=f"{attention} has no form"):
            export(model, panel, ORIGINS, to, path)
        assert not path.exists()
        return
    made = export(model, panel, ORIGINS, to, path, together=4)
    assert made.difference <= TOLERANCE
    assert {name: list(t.shape) for name, t in made.outputs.items()} == {
        "forecast": [1, 3], "direction_probabilities": [1, 1, 1, 3],
    }  # fmt: skip
    assert list(made.inputs) == ["x", "rows"]


def test_heads_state_their_distributions_and_seeds_are_averaged_inside(panel, tmp_path):
    options = {"heads": {"return": "quantile"}, "pooling": "attention", "positions": "rotary", "patch": 3}
    members = [
        model_on(panel, "bigbird", seed, **options, calendar=True, window_norm=True) for seed in (0, 1)
    ]
    made = export(Ensemble(members).eval(), panel, ORIGINS, "onnx", tmp_path / "model.onnx")
    assert made.difference <= TOLERANCE
    assert made.outputs["return_quantiles"].shape == (1, 1, 1, 9)
    assert list(made.inputs) == ["x", "rows", "calendar"]
    student = model_on(panel, "flash", heads={"return": "student_t"})
    made = export(student, panel, ORIGINS, "torch", tmp_path / "model.pt2")
    assert {"return_spread", "return_freedom"} <= set(made.outputs)


def test_a_graph_that_gives_something_else_is_not_written(panel, tmp_path, monkeypatch):
    model = model_on(panel, "flash")
    monkeypatch.setattr("longtape.forecasting.export.TOLERANCE", -1.0)
    with pytest.raises(UserError, match="not written"):
        export(model, panel, ORIGINS, "torch", tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
