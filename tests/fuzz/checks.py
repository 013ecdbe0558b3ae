"""What must be true of the files of a run. Every check yields the faults it finds, each one a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from tests.fuzz import schema
from tests.fuzz.experiments import kind_of
from tests.fuzz.markets import STRENGTH, Floats
from tests.fuzz.runs import Trial, each_target, times, values
from tests.fuzz.scores import (
    OF_WEIGHTS,
    SCORES,
    entry_of,
    labels,
    qlike_of,
    same,
    score,
    training_labels,
    training_mean,
)

ERROR = 1e-5  # chance of a false alarm of one coverage check, were everything right
WIDTHS = ("quantile", "student_t")  # heads that know their own width

Faults = Iterator[str]


@dataclass(frozen=True)
class Check:
    """A check and the trials that it is for."""

    name: str
    find: Callable[[Trial], Faults]
    when: Callable[[Trial], bool]


CHECKS: dict[str, Check] = {}


def check(name: str, when: Callable[[Trial], bool] = lambda trial: True) -> Callable[..., Any]:
    """Register a check under a name."""

    def register(find: Callable[[Trial], Faults]) -> Callable[[Trial], Faults]:
        CHECKS[name] = Check(name, find, when)
        return find

    return register


def has_account(trial: Trial) -> bool:
    """Something could be traded."""
    return trial.walked.has_account


def gives_weights(trial: Trial) -> bool:
    """A head says how much to hold, not how much it will return."""
    return bool(trial.case.option("backtest.signal.name") == "allocation")


def has_volatility(trial: Trial) -> bool:
    """Some target is a volatility."""
    return any(kind_of(target) == "volatility" for target in trial.case.document["targets"])


# --- files and figures ---


@check("figures are numbers or null")
def figures(trial: Trial) -> Faults:
    for name in ("metrics.json", "run.json", "audit.json"):
        if name == "audit.json" and not trial.case.option("audit", True):
            continue
        try:
            trial.walked.json(name)
        except (ValueError, OSError) as error:
            yield f"{name}: {error}"


@check("audit passed", lambda trial: bool(trial.case.option("audit", True)))
def audit(trial: Trial) -> Faults:
    report = trial.walked.json("audit.json")
    if report.get("passed") is not True:
        failed = [entry for entry in report.get("checks", []) if not entry.get("passed", True)]
        shown = "; ".join(
            f"{entry['name']}: {(entry.get('findings') or [entry.get('note')])[0]}" for entry in failed
        )
        yield f"audit.json: {shown or report.get('passed')}"


@check("no library warns")
def warned(trial: Trial) -> Faults:
    yield from trial.walked.warned


@check("report")
def report(trial: Trial) -> Faults:
    if not (trial.walked.root / "report.html").exists():
        yield "report.html is missing"


# --- forecasts ---


@check("labels are what the file says", lambda trial: trial.case.market.whole)
def label_values(trial: Trial) -> Faults:
    for (symbol, target, horizon), rows in each_target(trial.walked.forecast.drop_nulls("actual")):
        label, end = labels(trial, symbol, target, horizon)
        if label is None:
            continue
        here = np.searchsorted(times(trial.bars[symbol]), times(rows))
        wrong = ~np.isclose(values(rows, "actual"), label[here], rtol=1e-6, atol=1e-9)
        if wrong.any():
            yield f"{target} at {rows['timestamp'][int(wrong.argmax())]}: actual is not the label"
        if (times(rows, "end") != end[here]).any():
            yield f"{target}: `end` is not when the label is known"


@check("scored rows lie behind the border and end by test_until")
def border(trial: Trial) -> Faults:
    frame, metrics = trial.walked.forecast, trial.walked.metrics
    if trial.test_since is not None and times(frame).min() < trial.test_since:
        yield f"forecast.parquet begins at {frame['timestamp'].min()}, before the test does"
    yield from _account_border(trial)
    for row in metrics.get("coverage", []):
        mine = _rows_of(trial.known, row)
        if row["forecasts"] > mine.height:
            yield f"coverage of {row['target']} counts {row['forecasts']} forecasts, {mine.height} may be scored"
    share = _largest_test(trial)
    if share is not None and frame["timestamp"].n_unique() > share:
        yield f"{frame['timestamp'].n_unique()} rows are tested, the split leaves {share} at most"


def _account_border(trial: Trial) -> Faults:
    if not trial.walked.has_account:
        return
    if trial.test_until is not None and trial.clock[-1] >= trial.test_until:
        yield f"the account runs until {np.datetime64(int(trial.clock[-1]), 'ms')}, past test_until"
    if trial.test_since is not None and trial.clock[0] < trial.test_since:
        yield f"the account begins at {np.datetime64(int(trial.clock[0]), 'ms')}, before the test"


def _largest_test(trial: Trial) -> int | None:
    """Rows that a split by fractions can leave to the test, the newest ones without a label included."""
    if trial.test_since is not None or not trial.case.market.whole:
        return None
    split = trial.case.document.get("split", {})
    share = 1 - split.get("train", 0.7) - split.get("validation", 0.15)
    rows = max(frame.height for frame in trial.bars.values())
    return int(np.ceil(share * rows)) + 2 + max(trial.case.horizons.values()) + 1


def _rows_of(frame: pl.DataFrame, row: dict[str, Any]) -> pl.DataFrame:
    same = (pl.col("symbol") == row["symbol"]) & (pl.col("target") == row["target"])
    return frame.filter(same & (pl.col("horizon") == row["horizon"]))


@check("scores follow from forecast.parquet")
def scores(trial: Trial) -> Faults:
    skill = trial.walked.metrics["skill"]
    columns = each_target(trial.known)
    named = {
        (symbol, target) for (symbol, target, _), _ in columns
    }  # the steps of a path are scored together
    pooled = trial.case.option("model.assets") == "pooled" and len({symbol for symbol, _ in named}) > 1
    means = len({target for _, target in named}) if pooled else 0  # over the symbols
    if len(skill) != len(named) + means:
        yield f"skill has {len(skill)} entries for {len(named)} symbols and targets and {means} means"
        return
    for symbol, target in sorted(named):
        entry = skill.get(f"{symbol} {target}", [])
        if not entry:
            yield f"skill has no entry for {symbol} {target}"
            continue
        same_target = (pl.col("symbol") == symbol) & (pl.col("target") == target)
        scored = (trial.known, trial.known_of_all, trial.known_where_all_are_due)
        rows, *others = (frame.filter(same_target) for frame in scored)
        for name, figure in entry[0].items():
            found = [score(name, one) for one in (rows, *others)] if name in (*SCORES, *OF_WEIGHTS) else []
            if found and not any(same(figure, one) for one in found):
                yield f"{symbol} {target}: {name} is {figure}, by forecast.parquet {found[0]:.6g}"


@check("coverage follows from forecast.parquet")
def coverage_figures(trial: Trial) -> Faults:
    level = trial.case.option("forecast.level", 0.9)
    for row in trial.walked.metrics.get("coverage", []):
        if row.get("level", level) != level:
            continue
        found = [
            float(inside(_rows_of(frame, row)).mean())
            for frame in (trial.known, trial.known_of_all, trial.known_where_all_are_due)
            if _rows_of(frame, row).height
        ]
        if found and not any(same(row["coverage"], one) for one in found):
            yield f"coverage of {row['target']} is {row['coverage']}, by forecast.parquet {found[0]:.4f}"


def inside(rows: pl.DataFrame) -> npt.NDArray[np.bool_]:
    """Labels that lie in their interval [n]."""
    actual = values(rows, "actual")
    return (values(rows, "lower") <= actual) & (actual <= values(rows, "upper"))


def promised(trial: Trial) -> bool:
    """Intervals are conformal, and returns are alike at all times."""
    way = trial.case.option("forecast.intervals", "conformal")
    return (
        trial.case.market.exchangeable
        and way in ("conformal", "cqr")
        and trial.walked.calibrated_on is not None
    )


@check("coverage within its bounds", promised)
def coverage_bounds(trial: Trial) -> Faults:
    level = trial.case.option("forecast.level", 0.9)
    for (symbol, target, horizon), rows in each_target(trial.known):
        bounds = values(rows, "upper")  # none of classes and weights
        if np.isnan(bounds).all() or np.isinf(bounds).any():
            continue
        drawn, tested = (trial.walked.calibrated_on or 0) // horizon, rows.height // horizon
        if drawn < 2 or tested < 5:
            continue
        low, high = coverage_limits(level, drawn, tested)
        share = float(inside(rows).mean())
        if not low <= share <= high:
            yield f"{symbol} {target}: {share:.3f} of {level} covered, {low:.3f} to {high:.3f} is luck"


def coverage_limits(level: float, drawn: int, tested: int) -> tuple[float, float]:
    """Shares of `tested` independent labels that an interval from `drawn` others may hold: beta-binomial (Vovk 2012).

    Overlapping labels count once in a horizon, in the calibration as in the test.
    """
    law = stats.betabinom(tested, level * (drawn + 1), (1 - level) * (drawn + 1))
    return (float(law.ppf(ERROR / 2)) - 1) / tested, (float(law.ppf(1 - ERROR / 2)) + 1) / tested


@check(
    "intervals are infinite where calibration rows are too few, and only there",
    lambda trial: (
        trial.case.option("forecast.intervals", "conformal") == "conformal"
        and trial.walked.calibrated_on is not None
    ),
)
def infinite(trial: Trial) -> Faults:
    level, rows = trial.case.option("forecast.level", 0.9), trial.walked.calibrated_on or 0
    for (symbol, target, _), part in each_target(trial.walked.forecast):
        kind = kind_of(target)
        heads = trial.case.document["model"].get("heads", {})
        if kind not in ("return", "path", "volatility") or heads.get(kind) in WIDTHS or gives_weights(trial):
            continue  # no interval, or the head's own
        below, above = level / (1 - level), (1 + level) / (1 - level)  # one quantile of |score|, and two
        infinite_ones = np.isinf(values(part, "upper"))
        if rows < below - 1e-9 and not infinite_ones.all():
            yield f"{symbol} {target}: {rows} calibration rows cannot give {level}, and the interval is finite"
        if rows >= above + 1 and infinite_ones.any():
            yield f"{symbol} {target}: infinite although {rows} rows calibrate {level}"


def _own_width(trial: Trial) -> bool:
    """A head with a width of its own was trained, and nothing else gives the interval."""
    way = trial.case.option("forecast.intervals")
    documented = way in (*WIDTHS, "cqr") if way else not schema.has("forecast.intervals")
    losses = [entry["validation"] for entry in trial.walked.history]
    return documented and len(losses) > 1 and min(losses) < losses[0]


@check("a head's own width reaches the interval", _own_width)
def own_width(trial: Trial) -> Faults:
    heads = trial.case.option("model.heads", {})
    for (symbol, target, horizon), rows in each_target(trial.walked.forecast):
        if (
            heads.get(kind_of(target)) not in WIDTHS
            or f"volatility({horizon})" in trial.case.document["targets"]
        ):
            continue
        width = values(rows, "upper") - values(rows, "lower")
        if rows.height > 1 and np.ptp(width) <= 1e-6 * np.abs(width).max():
            head = heads[kind_of(target)]
            yield f"{symbol} {target}: head '{head}' was trained, every interval is {width[0]:.4g} wide"


@check("volatility within a factor of two of the truth", has_volatility)
def volatility(trial: Trial) -> Faults:
    for (symbol, target, horizon), ratio in volatility_ratios(trial):
        middle, worst = float(np.median(ratio)), float(np.max(np.maximum(ratio, 1 / ratio)))
        if not 0.5 <= middle <= 2:
            yield f"{symbol} {target}: half of the forecasts are beyond {middle:.3g}× the truth"
        if not worst <= 10:
            row = int(np.argmax(np.maximum(ratio, 1 / ratio)))
            yield f"{symbol} {target}: forecast {row} is {ratio[row]:.3g}× the truth"
        yield from _mean_variance(trial, symbol, target, horizon, ratio)


def _mean_variance(trial: Trial, symbol: str, target: str, horizon: int, ratio: Floats) -> Faults:
    """Where returns are alike at all times, variance forecasts are right on average, but for the luck of training."""
    drawn = (trial.walked.windows("training") or 0) / horizon
    if not trial.case.market.exchangeable or drawn < 100:
        return
    luck = 0.3 + 4 * np.sqrt((2 if trial.case.market.spec.law == "normal" else 5) / drawn)
    mean = float(np.mean(ratio**2))
    if abs(np.log(mean)) > luck:
        yield f"{symbol} {target}: the variance is forecast {mean:.3g}× too large on average"


def volatility_ratios(trial: Trial) -> list[tuple[tuple[str, str, int], Floats]]:
    """Forecast over true volatility of every test row of every volatility target."""
    found = []
    for key, rows in each_target(trial.known):
        if kind_of(key[1]) != "volatility":
            continue
        truth = trial.case.market.assets[key[0]].expected_variance(
            times(rows, "known_at"), times(rows, "end")
        )
        there = truth > 0
        found.append((key, values(rows, "mean")[there] / np.sqrt(truth[there])))
    return [(key, ratio) for key, ratio in found if len(ratio)]


@check(
    "a planted edge is seen",
    lambda trial: (
        trial.case.market.spec.law.startswith("lag")
        and trial.case.option("model.skip", True)
        and trial.case.option("model.kind", "encoder") == "encoder"
        and not gives_weights(trial)
        and len(trial.symbols) == 1
        and not trial.case.market.spec.gaps
        and (trial.walked.windows("training") or 0) > 300
        and (trial.walked.windows("validation") or 0) > 60  # which choose the penalty
    ),
)
def planted(trial: Trial) -> Faults:
    """ρ² of the variance of the next return can be known; a third of it is the least over a hundred rows."""
    for (symbol, target, horizon), rows in each_target(trial.known):
        if target.startswith(("return", "path")) and horizon == 1 and rows.height > 100:
            seen = score("R² against zero", rows)
            if seen < STRENGTH**2 / 3:
                yield f"{symbol} {target}: R² {seen:.3f}, where {STRENGTH**2} can be known"


# --- baselines and verdict ---


def _p_value(row: dict[str, Any]) -> float | None:
    found = [value for name, value in row.items() if name.startswith("p,") or name in ("p", "p_value")]
    return found[0] if found else None


@check("a tie is a tie")
def ties(trial: Trial) -> Faults:
    for name, rows in trial.walked.metrics["skill"].items():
        own = {key: value for key, value in rows[0].items() if isinstance(value, float)}
        for row in rows[1:]:
            same = [
                np.isclose(own[key], row[key], rtol=1e-6, atol=1e-12)
                for key in own
                if row.get(key) is not None
            ]
            p = _p_value(row)
            if same and all(same) and p is not None and p < 0.05:
                yield f"{name}: '{row['model']}' has the model's own scores and differs with p = {p:.2g}"


@check("baselines are what they are called", has_volatility)
def baselines(trial: Trial) -> Faults:
    """The training mean of a volatility is the root of the mean square: no other constant is unbiased for QLIKE."""
    for (symbol, target, horizon), rows in each_target(trial.known):
        entry = entry_of(trial.walked.metrics["skill"], symbol, target, horizon)
        row = training_mean(entry)
        if kind_of(target) != "volatility" or horizon > 3 or row is None or row.get("QLIKE") is None:
            continue
        label = training_labels(trial, symbol, target, horizon)
        if label is None:
            continue
        root, mean = (qlike_of(rows, level) for level in (np.sqrt(np.mean(label**2)), label.mean()))
        if abs(row["QLIKE"] - mean) < 0.25 * abs(root - mean):
            yield f"{symbol} {target}: the training mean is the mean, not the root mean square"


@check("the verdict says whether there is an edge")
def verdict(trial: Trial) -> Faults:
    tradable = any(kind_of(target) != "volatility" for target in trial.case.document["targets"])
    if not tradable:
        if trial.walked.has_account or trial.walked.metrics.get("judgement") is not None:
            yield "a volatility alone was forecast, and there is an account"
        return
    if not trial.walked.has_account:
        yield "returns were forecast, and there is no account"
    elif claims_edge(trial) is None:
        yield f"no sentence on the edge in: {trial.walked.verdict[:200]}"


def claims_edge(trial: Trial) -> bool | None:
    """Whether the verdict claims gains that are more than luck; None where it says nothing of it."""
    text = trial.walked.verdict
    if "No edge" in text:
        return False
    return True if re.search(r"\bGained after costs\b|\bAn edge\b", text) else None
