"""A search tries what it is told, goes on where it was interrupted, and judges its best in the light of all trials."""

import json

import numpy as np
import pytest

pytest.importorskip("optuna", reason="needs longtape[hpo]")

from longtape.backtest.overfitting import TrialSet, deflate
from longtape.cli.main import execute
from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.experiment import parse_experiment
from longtape.orchestration import study
from longtape.orchestration.engines import InProcess, ProcessPool
from longtape.orchestration.trials import returns_of, run_of
from longtape.orchestration.tune import tune
from tests.candles import candle_frame

SPACE = {
    "model.d_model": [8, 16],
    "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "features": [["log_return"], ["log_return", "volatility(20)"]],
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "candles.parquet"
    candle_frame(500).write_parquet(path)
    return described(path, SPACE)


def described(path, space):
    return parse_experiment(
        {
            "data": {"source": "file", "path": str(path), "symbols": ["TEST"], "interval": "1h"},
            "features": ["log_return"],
            "targets": ["return(3)"],
            "model": {"lookback": 16, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1},
            "training": {"epochs": 1, "stride": 4},
            "search": space,
        },
        "test",
    )


@pytest.fixture(scope="module")
def searched(experiment, tmp_path_factory):
    root = tmp_path_factory.mktemp("search") / "out"
    return tune(experiment, 4, root, InProcess(1), at_once=2)


def test_the_best_is_the_lowest_validation_loss(searched):
    losses = [trial.outcome.result["validation"] for trial in searched.trials]
    assert len(losses) == 4
    assert searched.best.number == int(np.argmin(losses))
    again = parse_experiment(json.loads(json.dumps(_yaml(searched.root / "best.yaml"))), "best")
    assert again.model == run_of(searched.best.folder).experiment.model
    assert len({json.dumps(trial.values, sort_keys=True) for trial in searched.trials}) > 1


def _yaml(path):
    import yaml

    return yaml.safe_load(path.read_text())


def test_what_is_deflated_are_the_returns_of_all_trials(searched):
    series = {str(trial.number): returns_of(trial.folder) for trial in searched.trials}
    trials = TrialSet.of_returns(series)
    judgement = searched.results.judgement
    assert judgement.deflated.trials == 4
    own = series[str(searched.best.number)]
    assert judgement.deflated.deflated_sharpe == pytest.approx(
        deflate(own, trials).deflated_sharpe, nan_ok=True
    )
    assert judgement.overfitting is not None
    assert any("Best of 4 configurations" in line for line in searched.results.verdict)
    page = (searched.root / "report.html").read_text("utf-8")
    assert "Best of 4 configurations" in page
    assert "model.d_model" in page


def test_an_interrupted_search_goes_on_to_the_same_trials_on_another_engine(searched, experiment, tmp_path):
    """Two trials here, the other two in processes of their own: what they are follows from the rounds before."""
    root = tmp_path / "out"
    tune(experiment, 2, root, InProcess(1), at_once=2)
    made = tune(experiment, 4, root, ProcessPool(2, 1), at_once=2, resume=True)
    assert [trial.values for trial in made.trials] == [trial.values for trial in searched.trials]
    assert [trial.outcome for trial in made.trials] == [trial.outcome for trial in searched.trials]


def test_trials_that_were_asked_for_and_not_done_come_first(experiment, tmp_path):
    asked = study.next_round(tmp_path / "study.log", experiment.search, 4, 2, 0)
    left = study.next_round(tmp_path / "study.log", experiment.search, 4, 2, 0)
    assert [one.number for one in left] == [one.number for one in asked] == [0, 1]
    assert left[1].params == asked[1].params


def entries(*losses):
    return [{"epoch": epoch, "validation": loss} for epoch, loss in enumerate(losses)]


def test_what_does_worse_than_half_of_the_trials_is_pruned(tmp_path):
    from longtape.orchestration.trials import Pruner

    journal = tmp_path / "study.log"
    space = {"model.d_model": [8, 16]}
    for number in range(study.STARTUP_TRIALS):
        (trial,) = study.next_round(journal, space, 99, 1, 0)
        pruner = Pruner(study.open_trial(journal, number))
        pruner.on_epoch(entries(1.0, 0.5, 0.4))
        assert not pruner.has_seen_enough
        study.tell(journal, trial.number, 0.4)
    study.next_round(journal, space, 99, 1, 0)
    worse = Pruner(study.open_trial(journal, study.STARTUP_TRIALS))
    worse.on_epoch(entries(1.0, 0.9))
    worse.on_epoch(entries(1.0, 0.9, 0.9))
    assert worse.has_seen_enough


def test_a_trial_that_cannot_be_is_a_failed_one(experiment, tmp_path):
    """Three heads do not divide eight channels: such a trial fails, and the search goes on."""
    wide = experiment.model_copy(update={"search": parse_search({"model.n_heads": [2, 3]})})
    made = tune(wide, 5, tmp_path / "out", InProcess(1))
    failed = {trial.values["model.n_heads"]: trial.outcome.error for trial in made.trials}
    assert failed[2] is None
    assert "multiple of n_heads=3" in failed[3]
    assert made.best.values == {"model.n_heads": 2}


def parse_search(space):
    return described("nowhere.parquet", space).search


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "nothing is searched"),
        ({"model.d_modl": [8, 16]}, "did you mean 'd_model'"),
        ({"model.d_model": [8]}, "two values"),
        ({"training.epochs": ["many", "few"]}, "search.training.epochs"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_before_anything_is_read(tmp_path, space, said):
    with pytest.raises(UserError, match=said):
        tune(described("nowhere.parquet", space), 2, tmp_path / "out", InProcess(1))


@pytest.mark.parametrize("choice", [{"low": 2, "high": 1}, {"low": 0, "high": 1, "log": True}, {"low": 1}])
def test_a_range_that_is_none_is_refused(choice):
    with pytest.raises(UserError, match="search"):
        described("nowhere.parquet", {"training.learning_rate": choice})


def test_the_command_prints_the_trials_and_names_the_best(searched, experiment, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(experiment.to_yaml())
    words = ["tune", str(tmp_path / "x.yaml"), "--trials", "4", "--out", str(searched.root)]
    assert execute(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert execute([*words, "--resume", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert f"best: trial {searched.best.number}" in said
    assert read_json(searched.root / "metrics.json")["trials"][0]["trial"] == 0
