"""`longtape audit` on an experiment file: what it prints, and when it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longtape.cli.audit import audit
from longtape.core.errors import CheckFailed, UserError
from longtape.features.scaling import Standardizer
from longtape.workflow.pipeline import ExperimentPipeline

EXPERIMENT = """
name: small
data: {source: sample, symbols: [SP500], interval: 1d}
features: [log_return, volatility(20), rsi(14), weekday]
targets: [return(5)]
split: {train_until: 2010-01-01, validation_until: 2012-01-01}
model: {lookback: 16, attention: full, d_model: 8, n_heads: 2, n_layers: 1}
training: {epochs: 1, batch_size: 64, stride: 8}
backtest: {signal: {name: threshold, target: return(5)}, costs: {fee: 0.0005}}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT)
    return path


def command(path: Path, *, as_json: bool = False, override: list[str] | None = None) -> None:
    audit(path, override, cuts=2, feature_cuts=4, origins=8, seed=0, as_json=as_json)


def test_a_clean_experiment_passes(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(experiment, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert len(report["cuts"]) == 2
    assert all(check["compared"] > 0 for check in report["checks"])


def test_a_leak_fails_the_command(
    experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole_sample(self: ExperimentPipeline, panel, train) -> Standardizer:
        return Standardizer.fit(panel.values, slice(panel.warm_up, None), panel.columns)

    monkeypatch.setattr(ExperimentPipeline, "scaler", whole_sample)
    with pytest.raises(CheckFailed, match="not passed: inputs, forecasts"):
        command(experiment)
    assert "model input 'x'" in capsys.readouterr().out


def test_an_experiment_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent"):
        command(tmp_path / "absent.yaml")
