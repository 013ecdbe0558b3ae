"""`longtape explain` on runs of several mechanisms, of several seeds, and of a model without attention."""

import json

import pytest
import torch

from longtape.cli.main import execute
from longtape.core.files import read_json
from longtape.experiment import parse_experiment
from longtape.workflow import load_run, train
from tests.candles import candle_frame

BLOCK = {"block_size": 8, "n_random": 1}


def made(folder, model, **changes):
    candle_frame(700).write_parquet(folder / "candles.parquet")
    data = {"source": "file", "path": str(folder / "candles.parquet"), "symbols": ["TEST"], "interval": "1h"}
    document = {
        "data": data, "features": ["log_return", "range"], "targets": ["return(6)"], "audit": False, "model": model,
        "training": {"epochs": 1} | changes,
    }  # fmt: skip
    return train(parse_experiment(document, "test.yaml"), folder / "run")


def small(attention, **options):
    return {
        "lookback": 32,
        "attention": attention,
        "attention_options": options,
        "d_model": 8,
        "n_heads": 2,
        "n_layers": 2,
    }


def test_every_part_that_exists_is_shown_and_every_other_has_its_reason(tmp_path, capsys):
    run = made(tmp_path, small("bigbird", **BLOCK))
    assert execute(["explain", str(run.root), "--windows", "24", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == read_json(run.path("explain/explain.json"))
    assert set(found["missing"]) == {"Assets", "Levels", "Levels that matter"}
    assert found["windows"] == 24
    pictures = {path.name for path in run.path("explain").glob("*.png")}
    assert pictures == set(found["pictures"])
    assert len(pictures) == 10
    bars = found["parts"]["Most attended bars"]
    assert bars[0]["bars back"] == 0
    assert {"rank of return", "rank of range", "rank of volume"} <= set(bars[0])
    assert sum(row["share"] for row in bars) <= 1 + 1e-5
    features = found["parts"]["Features"]
    assert [row["effect"] for row in features] == sorted((row["effect"] for row in features), reverse=True)
    assert all(row["from"] <= row["effect"] <= row["to"] for row in features)
    assert found["parts"]["Graph"][0]["layers"] == 2


@pytest.mark.parametrize("attention", ["linformer", "reformer"])
def test_mechanisms_without_some_parts_name_them(tmp_path, attention, capsys):
    run = made(tmp_path, small(attention))
    assert execute(["explain", str(run.root), "--windows", "8", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    reasons = {
        "linformer": ["mixtures", "linformer has none", "already"],
        "reformer": ["reformer has none", "queries are its keys", "reformer has no pattern"],
    }[attention]
    for reason in reasons:
        assert reason in said
    assert "Effective rank" in said


def test_a_model_without_attention_still_has_distances_and_features(tmp_path):
    run = made(tmp_path, {"kind": "ar1", "lookback": 4})
    found = run.explain(tmp_path / "out", windows=16)
    assert set(found.parts) == {"Occlusion by distance", "Features"}
    assert "no attention layers" in found.missing["Graph"]
    assert found.parts["Features"][0]["without"] == "rows before the window"


def test_a_network_that_was_never_better_than_its_start_is_said_to_be_its_start(tmp_path):
    run = made(tmp_path, small("flash"), epochs=0)
    assert "closed-form start" in run.explain(tmp_path / "out", windows=4).notes[0]
    for weight in run.fitted.model.heads.parameters():
        torch.nn.init.ones_(weight)
    assert run.explain(tmp_path / "out", windows=4).notes == []


def test_of_several_seeds_the_first_is_looked_at_and_forecasts_keep_their_bits(tmp_path, capsys):
    run = made(tmp_path, small("flash"), seeds=2)
    before = load_run(run.root).forecast()
    found = run.explain(tmp_path / "out", windows=8)
    assert "averages several models" in found.notes[0]
    assert run.forecast().equals(before)
    (tmp_path / "file").write_text("")
    assert execute(["explain", str(run.root), "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["joint", "axial"])
def test_in_a_portfolio_assets_look_at_assets(tmp_path, layout):
    for seed, symbol in enumerate(("AAA", "BBB", "CCC")):
        candle_frame(500, seed).write_parquet(tmp_path / f"{symbol}.parquet")
    data = {
        "source": "file",
        "path": str(tmp_path / "{symbol}.parquet"),
        "symbols": ["AAA", "BBB", "CCC"],
        "interval": "1h",
    }
    model = {
        "kind": "portfolio",
        "layout": layout,
        "lookback": 16,
        "attention": "full",
        "d_model": 8,
        "n_heads": 2,
    }
    document = {"data": data, "features": ["log_return"], "targets": ["return(6)"], "audit": False, "model": model,
                "training": {"epochs": 1}}  # fmt: skip
    found = train(parse_experiment(document, "test.yaml"), tmp_path / "run").explain(
        tmp_path / "out", windows=8
    )
    rows = found.parts["Assets"]
    assert [(row["layer"], row["looks"]) for row in rows] == [
        (n, s) for n in (1, 2) for s in ("AAA", "BBB", "CCC")
    ]
    assert all(row["at AAA"] + row["at BBB"] + row["at CCC"] == pytest.approx(1, abs=1e-5) for row in rows)
    assert (tmp_path / "out" / "assets.png").exists()
    if layout == "joint":
        most = found.parts["Most attended bars"]
        assert {row["symbol"] for row in most} == {"AAA", "BBB", "CCC"}
        assert all(
            1 <= row[f"rank of {name}"] <= 16 for row in most for name in ("return", "range", "volume")
        )
    assert ("Most attended bars" in found.parts) == (layout == "joint")


def test_an_informer_names_what_its_distilled_layers_do_not_have(tmp_path):
    model = {"kind": "informer", "lookback": 32, "d_model": 8, "n_heads": 2, "n_layers": 2, "label_len": 8}
    found = made(tmp_path, model).explain(tmp_path / "out", windows=8)
    assert {"Occlusion by distance", "Features", "Effective rank", "Queries", "Pattern"} <= set(found.parts)
    assert "'informer' has no tokens that are bars" in found.missing["Most attended bars"]
