"""The audit passes on what an experiment does, model and all."""

import pytest

from longtape.core.clock import HOUR, iso
from longtape.evaluation.audit import audit
from longtape.experiment import parse_experiment
from longtape.workflow.pipeline import ExperimentPipeline
from tests.candles import START, candles


@pytest.mark.parametrize("marks", [None, {"kinds": ["day"], "events": "events.csv", "limit": 4}])
def test_an_experiment_passes_its_audit(tmp_path, marks):
    lines = [f"{iso(START + k * 50 * HOUR)},{iso(START + (k * 50 - 30) * HOUR)}" for k in range(24)]
    (tmp_path / "events.csv").write_text("\n".join(["time,announced", *lines]))
    document = {
        "marks": marks and marks | {"events": str(tmp_path / "events.csv")},
        "features": ["log_return", "volatility(20)", "rsi(14)", "zscore(close, 30)", "hour"],
        "targets": ["return(6)", "volatility(6)"],
        "model": {"lookback": 64, "attention": "bigbird", "attention_options": {"block_size": 8}, "d_model": 8,
                  "n_heads": 2, "n_layers": 1},
        "training": {"epochs": 1},
        "backtest": {"signal": {"target": "return(6)"}, "costs": {"fee": 0.001}},
    }  # fmt: skip
    pipeline = ExperimentPipeline(parse_experiment(document, "test"))
    report = audit(pipeline, [candles(1200)], n_cuts=2, n_feature_cuts=4, n_origins=8)
    assert report.passed, report.to_dict()
