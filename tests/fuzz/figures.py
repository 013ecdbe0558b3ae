"""Figures of a run that only many runs can judge."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.fuzz.checks import claims_edge, inside, promised, volatility_ratios
from tests.fuzz.experiments import kind_of
from tests.fuzz.runs import Trial, each_target, values
from tests.fuzz.scores import SCORES

COMPARED = r"\S+ (open_)?(return|path)\(.* the best baseline"  # a sentence of the verdict


def aggregate_figures(trial: Trial) -> dict[str, Any]:
    """What the summary adds up over runs."""
    market = trial.case.market
    found: dict[str, Any] = {
        "no edge": market.no_edge and market.spec.jump == 1.0,
        "claims": claims_edge(trial) if trial.walked.has_account else None,
        "planted": market.spec.law.startswith("lag"),
        "exchangeable": market.exchangeable,
        "variance": [],
        "coverage": [],
    }
    for (_, _, horizon), ratio in volatility_ratios(trial):
        found["variance"].append([horizon, float(np.log(np.mean(ratio**2)))])
    if promised(trial):
        found["coverage"] = [
            [kind_of(target), trial.case.option("forecast.level", 0.9), float(inside(rows).mean())]
            for (_, target, horizon), rows in each_target(trial.known)
            if min(rows.height, trial.walked.calibrated_on or 0) >= 10 * horizon
            and np.isfinite(values(rows, "upper")).all()
        ]
    found["not recomputed"] = sorted(
        {name for rows in trial.walked.metrics["skill"].values() for name in rows[0] if name not in SCORES}
        - {"model"}
    )
    compared = [line for line in trial.walked.verdict.splitlines() if re.match(COMPARED, line)]
    found["compared"] = len(compared)
    found["better"] = sum("ahead of" in line and "within luck" not in line for line in compared)
    return found
