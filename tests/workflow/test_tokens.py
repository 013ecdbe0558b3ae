"""Token ids from a file to their scores: ListOps, labels of tokens, resume, mistakes."""

import runpy
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from longtape.cli.main import execute
from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.training import loop
from longtape.workflow.tokens import load_token_experiment, run_tokens

LISTOPS = Path(__file__).resolve().parents[2] / "examples" / "listops.py"
MODEL = {"kind": "tokens", "length": 60, "vocabulary": 15, "classes": 10, "attention": "flash"}
SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "dropout": 0.0}


def value_of(tokens: list[int]) -> int:
    """Worked out by a stack, another way than the script's."""
    stack: list[list[int]] = [[]]
    for token in tokens:
        if token == 14:
            operator, *values = stack.pop()
            ordered = sorted(values)
            middle = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) // 2
            stack[-1].append({10: ordered[0], 11: ordered[-1], 12: middle, 13: sum(values) % 10}[operator])
        elif token >= 10:
            stack.append([token])
        else:
            stack[-1].append(token)
    [[value]] = stack
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tokens")
    words = ["--train", "120", "--validation", "30", "--test", "40", "--shortest", "10", "--longest", "60"]
    before, sys.argv = sys.argv, [str(LISTOPS), str(made / "listops.parquet"), *words]
    try:
        runpy.run_path(str(LISTOPS), run_name="__main__")
    finally:
        sys.argv = before
    return made


def write(folder, name="e.yaml", path="listops.parquet", training=None, **model):
    usual = {"epochs": 2, "batch_size": 16, "learning_rate": 0.003, "patience": 9}
    document = {"data": {"path": path}, "model": MODEL | SMALL | model, "training": usual | (training or {})}
    (folder / name).write_text(yaml.safe_dump(document))
    return folder / name


def test_the_script_makes_expressions_and_their_values(folder):
    frame = pl.read_parquet(folder / "listops.parquet")
    assert frame["split"].value_counts().sort("split")["count"].to_list() == [40, 120, 30]
    for ids, label in zip(frame["ids"].to_list(), frame["label"].to_list(), strict=True):
        assert 10 <= len(ids) <= 60
        assert value_of(ids) == label
    assert len(set(map(tuple, frame["ids"].to_list()))) == len(frame)
    assert {token for ids in frame["ids"].to_list() for token in ids} == set(range(15))


def test_a_file_of_ids_goes_to_its_scores_from_the_command_line(folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert execute(["run", str(write(folder)), "--out", str(out), "--quiet"]) == 0
    shown = capsys.readouterr().out
    rows = read_json(out / "metrics.json")["scores"]
    assert [row["model"] for row in rows] == ["longtape", "majority class", "bag of tokens"]
    assert all(row["model"] in shown for row in rows)
    kept = pl.read_parquet(out / "predictions.parquet")
    assert (kept["label"] == kept["foreseen"]).mean() == pytest.approx(rows[0]["accuracy"])
    labels = pl.read_parquet(folder / "listops.parquet")
    train, test = (labels.filter(pl.col("split") == part)["label"] for part in ("train", "test"))
    assert rows[1]["accuracy"] == pytest.approx((test == train.mode().min()).mean(), abs=0.1)
    assert execute(["run", str(folder / "e.yaml"), "--out", str(out), "--quiet"]) == 2
    assert "name another folder" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_to_the_same_numbers(folder, tmp_path, monkeypatch):
    experiment = load_token_experiment(write(folder), ["model.dropout=0.1"])
    whole = run_tokens(experiment, tmp_path / "whole")
    judge = loop.Trainer._judge

    def stop(self, at, *rest):
        if at.epoch == 1:
            raise KeyboardInterrupt
        return judge(self, at, *rest)

    monkeypatch.setattr(loop.Trainer, "_judge", stop)
    with pytest.raises(KeyboardInterrupt):
        run_tokens(experiment, tmp_path / "stopped")
    monkeypatch.undo()
    other = load_token_experiment(folder / "e.yaml", ["seed=1"])
    with pytest.raises(UserError, match="another experiment"):
        run_tokens(other, tmp_path / "stopped", resume=True)
    resumed = run_tokens(experiment, tmp_path / "stopped", resume=True)
    assert resumed.scores == whole.scores
    weights = [(run.root / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]


def test_labels_of_tokens_are_learnt_where_order_tells_them(tmp_path):
    """A token's class is the parity of the token before it: no count and no id alone can tell it."""
    draw = np.random.default_rng(0)
    ids = [draw.integers(0, 4, draw.integers(8, 17)).tolist() for _ in range(160)]
    labels = [[None, *(one % 2 for one in own[:-1])] for own in ids]
    split = ["train"] * 120 + ["validation"] * 20 + ["test"] * 20
    pl.DataFrame({"ids": ids, "label": labels, "split": split}).write_parquet(tmp_path / "parity.parquet")
    path = write(
        tmp_path,
        path="parity.parquet",
        training={"epochs": 12, "learning_rate": 0.01},
        **{"length": 16, "vocabulary": 4, "classes": 2, "outputs": "tokens", "positions": "none"},
        **{"attention": "local", "attention_options": {"window_size": 3, "causal": True}},
    )
    made = run_tokens(load_token_experiment(path), tmp_path / "run")
    own, majority, usual = made.scores
    assert usual["model"] == "usual label of the id"
    assert own["labels"] == sum(len(one) - 1 for one in ids[140:])
    assert own["accuracy"] > 0.8
    assert max(majority["accuracy"], usual["accuracy"]) < 0.65


def test_a_bag_of_tokens_finds_what_counts_tell(tmp_path):
    draw = np.random.default_rng(1)
    ids = [draw.integers(0, 3, 12).tolist() for _ in range(300)]
    labels = [int(own.count(0) > own.count(1)) for own in ids]
    split = ["train"] * 200 + ["validation"] * 50 + ["test"] * 50
    pl.DataFrame({"ids": ids, "label": labels, "split": split}).write_parquet(tmp_path / "bag.parquet")
    path = write(
        tmp_path, path="bag.parquet", training={"epochs": 0}, **{"length": 12, "vocabulary": 3, "classes": 2}
    )
    own, majority, bag = run_tokens(load_token_experiment(path), tmp_path / "run").scores
    assert bag["accuracy"] > 0.9
    assert own["log loss"] == pytest.approx(majority["log loss"], rel=1e-5), (
        "training begins at the frequencies"
    )


BROKEN = {
    "no column": (lambda f: f.drop("label"), "column 'label' is missing"),
    "float ids": (lambda f: f.with_columns(pl.col("ids").cast(pl.List(pl.Float64))), "not lists of whole numbers"),
    "strange split": (lambda f: f.with_columns(split=pl.lit("dev")), "split 'dev' is none of train"),
    "no test": (lambda f: f.filter(pl.col("split") != "test"), "no row of the split 'test'"),
    "label too high": (lambda f: f.with_columns(pl.col("label") + 5), "row .*: label .* from 0 to 9"),
    "id too high": (lambda f: f.with_columns(pl.col("ids").list.eval(pl.element() + 9)), "token .* from 0 to 14"),
    "empty": (lambda f: f.with_columns(pl.col("ids").list.head(0)), "row 1: 0 tokens"),
    "hole": (lambda f: f.with_columns(pl.col("ids").list.eval(pl.when(pl.element() < 9).then(1))), "empty places"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_cannot_be_is_refused_in_one_line(folder, tmp_path, what):
    change, said = BROKEN[what]
    change(pl.read_parquet(folder / "listops.parquet")).write_parquet(tmp_path / "broken.parquet")
    experiment = load_token_experiment(write(tmp_path, path="broken.parquet"))
    with pytest.raises(UserError, match=said) as caught:
        run_tokens(experiment, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": 20}, "model.length allows 1 to 20"),
        ({"outputs": "tokens"}, "takes lists of whole numbers, one for each id"),
        ({"vocabulry": 3}, "did you mean 'vocabulary'"),
        ({"attention": "local"}, "class_sees: window, or mean"),
    ],
)
def test_mistakes_in_the_document_are_told_in_one_line(folder, tmp_path, capsys, changes, said):
    words = ["run", str(write(folder, "mistake.yaml", **changes)), "--out", str(tmp_path / "run"), "--quiet"]
    assert execute(words) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told


def test_other_commands_say_that_tokens_are_no_market(folder, tmp_path, capsys):
    assert execute(["train", str(write(folder)), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert "reads token ids and no market; give the file to longtape run" in capsys.readouterr().err
    run_tokens(load_token_experiment(write(folder, training={"epochs": 1})), tmp_path / "done")
    for command in (["export", "--to", "onnx", "--out", str(tmp_path / "m.onnx")], ["explain"], ["forecast"]):
        assert execute([command[0], str(tmp_path / "done"), *command[1:]]) == 2
        assert "is a run on token ids" in capsys.readouterr().err
