"""Kinds of target: everything that depends on what is forecast, in one entry each.

A label function (`longtape.features.targets`) belongs to a kind. The kind says in which unit its labels are, which
heads can forecast it, which closed-form models stand beside it, by which loss and scores it is judged, how an error is
scaled for an interval, and whether the account can trade it. Heads and models are named as in their registries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from longtape.core import scoring
from longtape.core.classification import confusion, f1_scores, macro_f1, matthews, weighted_f1
from longtape.core.errors import unknown_name

Array = npt.NDArray[np.float64]
Scores = Callable[[Array, Array], dict[str, float]]


@dataclass(frozen=True)
class TargetKind:
    """One kind of target. `loss` and `scores` take labels [n] and forecasts: means [n], or, where the kind has
    classes, their probabilities [n, M].
    """

    name: str
    unit: str
    heads: tuple[str, ...]  # the first is the usual one
    baselines: tuple[str, ...]
    loss: Callable[[Array, Array], Array]
    scores: Scores
    headline: str  # the score that the verdict states
    larger_is_better: bool
    error: Literal["difference", "log ratio"] | None  # what an interval is made of; None: no interval
    traded: bool = False  # an expected log return, which signals can trade
    classes: int = 0
    resampled: tuple[str, ...] = ()  # scores that are given with a block-bootstrap interval


def return_scores(actual: Array, forecast: Array) -> dict[str, float]:
    """R² out of sample against zero (1 − SSE/Σy²), hit rate of the sign, root mean squared, mean squared and mean
    absolute error.
    """
    sse, against = ((actual - forecast) ** 2).sum(), (actual**2).sum()
    moved = (forecast != 0) & (actual != 0)
    hits = float((np.sign(forecast) == np.sign(actual))[moved].mean()) if moved.any() else float("nan")
    return {
        "R² against zero": float(1 - sse / against) if against > 0 else float("nan"),
        "RMSE": float(np.sqrt(sse / len(actual))),
        "hit rate": hits,
        **_errors(actual, forecast),
    }


def volatility_scores(actual: Array, forecast: Array) -> dict[str, float]:
    """On variances: R² = 1 − SSE/Σ(y − mean of test)², and QLIKE = mean(y/f − ln(y/f) − 1) (Patton 2011); on
    volatilities: mean squared and mean absolute error.
    """
    y = np.maximum(actual**2, scoring.SMALLEST_VARIANCE)
    f = np.maximum(forecast**2, scoring.SMALLEST_VARIANCE)
    spread = ((y - y.mean()) ** 2).sum()
    return {
        "R²": float(1 - ((y - f) ** 2).sum() / spread) if spread > 0 else float("nan"),
        "QLIKE": float(scoring.qlike(actual, forecast).mean()),
        **_errors(actual, forecast),
    }


def _errors(actual: Array, forecast: Array) -> dict[str, float]:
    return {
        "MSE": float(scoring.squared_error(actual, forecast).mean()),
        "MAE": float(scoring.absolute_error(actual, forecast).mean()),
    }


def weight_scores(actual: Array, share: Array) -> dict[str, float]:
    """Of shares w held over log returns y: mean of w·(e^y − 1) in basis points, its ratio to its deviation (Sharpe of a
    row, not of a year), and the mean of |w|. Without costs.
    """
    earned = share * np.expm1(actual)
    spread = float(earned.std())
    return {
        "return a row, bp": 1e4 * float(earned.mean()),
        "Sharpe a row": float(earned.mean()) / spread if spread > 0 else float("nan"),
        "mean |weight|": float(np.abs(share).mean()),
    }


def class_scores(actual: Array, probabilities: Array) -> dict[str, float]:
    """Mean log loss, Brier score, and the share of labels that the likeliest class hits."""
    return {
        "log loss": float(scoring.log_loss(actual, probabilities).mean()),
        "Brier": float(scoring.brier(actual, probabilities).mean()),
        "accuracy": float((probabilities.argmax(axis=1) == actual).mean()),
    }


def tercile_scores(actual: Array, probabilities: Array) -> dict[str, float]:
    """Of the likeliest class: macro and weighted F1, Matthews' correlation, each class's F1; and the mean log loss."""
    table = confusion(actual, probabilities.argmax(axis=1), probabilities.shape[1])
    each = dict(zip(("F1 down", "F1 flat", "F1 up"), map(float, f1_scores(table)), strict=True))
    overall = {"macro F1": macro_f1(table), "weighted F1": weighted_f1(table), "MCC": matthews(table)}
    return overall | each | {"log loss": float(scoring.log_loss(actual, probabilities).mean())}


def _moves(name: str) -> TargetKind:
    return TargetKind(
        name,
        unit="log return",
        heads=("regression", "huber", "student_t", "quantile", "allocation", "sharpe"),
        baselines=("zero", "mean", "last_value", "ar1"),
        loss=scoring.squared_error,
        scores=return_scores,
        headline="R² against zero",
        larger_is_better=True,
        error="difference",
        traded=True,
    )


def _classes(name: str, count: int) -> TargetKind:
    return TargetKind(
        name,
        unit=f"class, 0 to {count - 1}",
        heads=("classes",),
        baselines=("mean",),
        loss=scoring.log_loss,
        scores=class_scores,
        headline="log loss",
        larger_is_better=False,
        error=None,
        classes=count,
    )


VOLATILITY = TargetKind(
    "volatility",
    unit="volatility of the horizon (root of the sum of squared log returns)",
    heads=("volatility",),
    baselines=("mean", "last_value", "ewma", "log_har", "log_har_mean"),
    loss=scoring.qlike,
    scores=volatility_scores,
    headline="QLIKE",
    larger_is_better=False,
    error="log ratio",
)

# What a head of weights says of a return: not how much it will be, but how much of the equity to put on it.
WEIGHT = TargetKind(
    "weight",
    unit="share of the equity",
    heads=("allocation", "sharpe"),
    baselines=("zero", "equal_weight"),
    loss=scoring.negative_return,
    scores=weight_scores,
    headline="return a row, bp",
    larger_is_better=True,
    error=None,
    traded=True,
)

# Down, flat, up by the terciles of the training rows (`book_targets.with_classes` sets them).
TERCILES = TargetKind(
    "terciles",
    unit="class, 0 to 2",
    heads=("classes",),
    baselines=("mean", "imbalance_sign", "book_logit", "tape_logit"),
    loss=scoring.log_loss,
    scores=tercile_scores,
    headline="log loss",
    larger_is_better=False,
    error=None,
    classes=3,
    resampled=("macro F1", "weighted F1", "MCC"),
)

KINDS: Mapping[str, TargetKind] = {
    kind.name: kind
    for kind in (
        _moves("return"),
        _moves("path"),
        VOLATILITY,
        _classes("direction", 3),
        _classes("up", 2),
        WEIGHT,
        TERCILES,
    )
}


def target_kind(name: str) -> TargetKind:
    """The kind of that name; UserError with the nearest name."""
    if name not in KINDS:
        raise unknown_name("kind of target", name, KINDS)
    return KINDS[name]
