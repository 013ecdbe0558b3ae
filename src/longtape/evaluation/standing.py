"""Where a model stands beside the best of its baselines, and whether luck explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longtape.evaluation.skill import P_VALUE
from longtape.features.target_kinds import KINDS

SURE = 0.05
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Standing:
    """One forecast by its headline score, beside its best baseline; `baseline` is empty where nothing is scored."""

    name: str  # "SYMBOL target"
    measure: str
    own: float
    baseline: str
    best: float
    p_value: float
    ahead: bool

    @property
    def is_scored(self) -> bool:
        """False where no label of the test period is known."""
        return bool(self.baseline)

    @property
    def is_tie(self) -> bool:
        """True where the network found nothing to add to the baseline that it begins at."""
        return self.p_value == 1.0

    @property
    def is_sure(self) -> bool:
        """Whether luck does not explain the difference."""
        return self.p_value < SURE

    @property
    def words(self) -> str:
        """ahead of …, behind …, as good as …"""
        if not self.is_scored:
            if np.isfinite(self.own):
                return f"{self.measure} {self.own:.4f}; the data hold no training row to fit a baseline on"
            return "not scored; no label of the test period is known"
        if self.is_tie:
            return "as good as the best baseline"
        luck = "" if self.is_sure else ", within luck"
        return f"{'ahead of' if self.ahead else 'behind'} the best baseline{luck}"


def standing(name: str, rows: Rows) -> Standing:
    """Of rows as `evaluation.skill.skills` gives them, the model's first."""
    kind = next(kind for kind in KINDS.values() if kind.headline in rows[0])
    measure, sign, own = kind.headline, 1 if kind.larger_is_better else -1, rows[0][kind.headline]
    others = [row for row in rows[1:] if np.isfinite(row[measure])]
    if not others or not np.isfinite(own):
        return Standing(name, measure, own, "", float("nan"), float("nan"), False)
    best = max(others, key=lambda row: sign * row[measure])
    ahead = bool(sign * own > sign * best[measure])
    return Standing(name, measure, own, str(best["model"]), best[measure], best[P_VALUE], ahead)
