"""What must be true of the files of a run. Every check yields the faults it finds, each one a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from tests.fuzz import schema
from tests.fuzz.accounts import largest_relative_error
from tests.fuzz.experiments import Case, kind_of
from tests.fuzz.markets import STRENGTH, Floats
from tests.fuzz.runs import Trial, each_target, times, values
from tests.fuzz.scores import SCORES, TINY, entry_of, labels, qlike_of, same, score, training_labels

ERROR = 1e-5  # chance of a false alarm of one coverage check, were everything right
COMPARED = r"\S+ (open_)?(return|path)\(.* the best baseline"  # a sentence of the verdict
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
    if len(skill) != len(columns):
        yield f"skill has {len(skill)} entries for {len(columns)} symbols, targets and horizons"
        return
    for (symbol, target, horizon), rows in columns:
        entry = entry_of(skill, symbol, target, horizon)
        if not entry:
            yield f"skill has no entry for {symbol} {target} at {horizon}"
            continue
        common = dict(each_target(trial.known_of_all)).get((symbol, target, horizon), rows)
        for name, figure in entry[0].items():
            found = [score(name, rows), score(name, common)] if name in SCORES else []
            if found and not any(same(figure, one) for one in found):
                yield f"{symbol} {target}: {name} is {figure}, by forecast.parquet {found[0]:.6g}"


@check("coverage follows from forecast.parquet")
def coverage_figures(trial: Trial) -> Faults:
    level = trial.case.option("forecast.level", 0.9)
    for row in trial.walked.metrics.get("coverage", []):
        if row.get("level", level) != level:
            continue
        found = [
            float(_inside(_rows_of(frame, row)).mean())
            for frame in (trial.known, trial.known_of_all)
            if _rows_of(frame, row).height
        ]
        if found and not any(same(row["coverage"], one) for one in found):
            yield f"coverage of {row['target']} is {row['coverage']}, by forecast.parquet {found[0]:.4f}"


def _inside(rows: pl.DataFrame) -> Any:
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
        if kind_of(target) not in ("return", "path", "volatility") or np.isinf(values(rows, "upper")).any():
            continue
        drawn, tested = (trial.walked.calibrated_on or 0) // horizon, rows.height // horizon
        if drawn < 2 or tested < 5:
            continue
        low, high = coverage_limits(level, drawn, tested)
        share = float(_inside(rows).mean())
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
        if kind_of(target) not in ("return", "path", "volatility"):
            continue
        below, above = (
            level / (1 - level),
            (1 + level) / (1 - level),
        )  # rows for one quantile of |score|, and for two
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
    luck = 0.3 + 4 * np.sqrt((2 if trial.case.market.plan.law == "normal" else 5) / drawn)
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
        trial.case.market.plan.law.startswith("lag")
        and trial.case.option("model.skip", True)
        and trial.case.option("model.kind", "encoder") == "encoder"
        and len(trial.symbols) == 1
        and not trial.case.market.plan.gaps
        and (trial.walked.windows("training") or 0) > 300
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
        row = next((one for one in entry if one["model"] == "training mean"), None)
        if kind_of(target) != "volatility" or row is None or row.get("QLIKE") is None:
            continue
        label = training_labels(trial, symbol, target, horizon)
        if label is None:
            continue
        distance = {
            name: abs(row["QLIKE"] - qlike_of(rows, level))
            for name, level in (("root mean square", np.sqrt(np.mean(label**2))), ("mean", label.mean()))
        }
        if min(distance, key=lambda name: distance[name]) == "mean":
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


@check("the verdict says what was paid", has_account)
def paid(trial: Trial) -> Faults:
    costs = trial.walked.metrics["metrics"]["costs"]
    if costs and "paid" not in trial.walked.verdict:
        yield f"costs of {costs:.2f} were paid, and the verdict says nothing of them"


@check("a year's bars are the market's", has_account)
def annualisation(trial: Trial) -> Faults:
    said, true = trial.walked.metrics["metrics"]["periods_per_year"], trial.case.market.bars_per_year
    if said is None or abs(said / true - 1) > 0.03:
        yield f"{said} bars a year; the market has {true:,.0f}"


# --- the account ---


@check("the account balances", has_account)
def balance(trial: Trial) -> Faults:
    books = trial.walked.metrics["metrics"] | trial.walked.metrics.get("account", {})
    spent = sum(books[name] for name in ("fees", "spread", "slippage", "funding", "borrow"))
    if abs(books["start"] + books["profit"] - spent - books["end"]) > 1e-9 * books["start"]:
        yield f"start {books['start']} + profit {books['profit']} − costs {spent} is not the end {books['end']}"
    equity = values(trial.walked.book("equity"), "equity")
    if abs(equity[-1] - books["end"]) > 1e-9 * books["start"]:
        yield f"equity.parquet ends at {equity[-1]}, the account at {books['end']}"
    gap = largest_relative_error(equity, np.array(trial.ledger.equity))
    if gap > 1e-9 and trial.walked.metrics["metrics"].get("ended", 0) == 0:
        yield f"kept again from fills and bars, equity differs by {gap:.2g} of itself"
    for name, mine in (("funding", trial.ledger.funding), ("borrow", trial.ledger.borrow)):
        if abs(books[name] - mine) > 1e-9 * books["start"]:
            yield f"{name} paid {books[name]:.6g}, by positions and rates {mine:.6g}"


@check("positions are the sum of the fills", has_account)
def positions(trial: Trial) -> Faults:
    book = trial.walked.book("positions")
    for symbol in (name for name in book.columns if name != "timestamp"):
        mine = np.array([row[symbol] for row in trial.ledger.positions])
        scale = np.abs(mine).max(initial=0.0)
        if scale > 0 and np.abs(values(book, symbol) - mine).max() > 1e-9 * scale:
            yield f"positions of {symbol} are not what its fills add up to"


@check("weights within their caps", has_account)
def weights(trial: Trial) -> Faults:
    case, ledger = trial.case, trial.ledger
    gross, single = caps(case, len(trial.symbols))
    sized = {(t, s) for t, s, reason in _reasons(trial) if reason == "signal"}
    found = [abs(weight) for t, s, weight in ledger.weights if (t, s) in sized]
    if found and max(found) > single + 1e-9:
        yield f"a symbol is brought to weight {max(found):.4f}, {single:.4g} is the most"
    # An order that waits for its bar leaves an old weight beside new ones, so whole markets only.
    if (case.market.whole or len(trial.symbols) == 1) and max(ledger.implied, default=0.0) > gross + 1e-9:
        yield f"gross weight {max(ledger.implied):.4f}, {gross:.4g} is the most"
    if (
        case.option("backtest.signal.long_only")
        and min((w for _, _, w in ledger.weights), default=0.0) < -1e-9
    ):
        yield "long_only, and a short position"
    yield from _turnover(trial)


def _reasons(trial: Trial) -> list[tuple[int, str, str]]:
    fills = trial.walked.book("fills")
    return list(zip(times(fills).tolist(), fills["symbol"], fills["reason"], strict=True))


def caps(case: Case, symbols: int) -> tuple[float, float]:
    """Largest Σ|weight| and |weight| that the document allows."""
    signal = case.option("backtest.signal", {})
    options = signal.get("options", {})
    lever = options.get("max_leverage", 1.0) if signal.get("name") == "volatility_target" else 1.0
    shared = {"rank": 0.5, "equal": 1.0}.get(signal.get("name", "threshold"), 1.0 / symbols)
    single = min(signal.get("max_weight", np.inf), lever * shared)
    gross = min(lever, signal.get("max_gross", np.inf), single * symbols)
    limit = _limit(case, "max_leverage")
    return min(gross, limit), min(single, gross, limit)


def _limit(case: Case, name: str) -> float:
    """An option of the account, wherever in `backtest` it stands, but the signal's own."""
    backtest = case.option("backtest", {})
    places = [
        backtest,
        *(part for key, part in backtest.items() if isinstance(part, dict) and key != "signal"),
    ]
    return min((place[name] for place in places if place.get(name) is not None), default=np.inf)


def _turnover(trial: Trial) -> Faults:
    cap = trial.case.option("backtest.signal.max_turnover")
    if cap is None or len(trial.symbols) > 1 or {reason for _, _, reason in _reasons(trial)} - {"signal"}:
        return
    steps = [abs(b - a) for a, b in pairwise([0.0, *(weight for _, _, weight in trial.ledger.weights)])]
    if steps and max(steps) > cap + 1e-9 and _limit(trial.case, "lot_size") == np.inf:
        yield f"the weight moves by {max(steps):.4f} at once, {cap} is the most"


@check("costs are those of the document", has_account)
def costs(trial: Trial) -> Faults:
    """Left out entirely: a fee of 0.001; within named costs, what is not named is nothing."""
    named = trial.case.option("backtest.costs", {"fee": 0.001})
    fills = trial.walked.book("fills").filter(pl.col("reason") != "delisted")
    for name, column in (("fee", "fee"), ("spread", "spread")):
        wanted = values(fills, "value") * named.get(name, 0.0)
        if np.abs(values(fills, column) - wanted).max(initial=0.0) > 1e-9 * values(fills, "value").max(
            initial=1.0
        ):
            paid = values(fills, column).sum() / values(fills, "value").sum()
            yield f"{name} of {paid:.6f} was charged, {named.get(name, 0.0)} was asked"


@check("fills are at the price that was asked, after the decision", has_account)
def fill_prices(trial: Trial) -> Faults:
    column = "close" if trial.terms.at_close else "open"
    fills = trial.walked.book("fills").filter(pl.col("reason") == "signal")
    if fills.height and times(fills).min() <= times(trial.walked.forecast).min():
        yield f"a fill at {fills['timestamp'].min()}, and the first decision falls at the close of that bar"
    for symbol in trial.symbols:
        mine = fills.filter(pl.col("symbol") == symbol).join(trial.bars[symbol], on="timestamp", how="left")
        if mine.height and not np.allclose(values(mine, "price"), values(mine, column), rtol=1e-12):
            yield f"fills of {symbol} are not at the {column} of their bar"


@check(
    "the same bars get the same weight",
    lambda trial: trial.case.market.plan.twins and trial.walked.has_account,
)
def twins(trial: Trial) -> Faults:
    """Two symbols with the same bars and, to the bit, the same forecasts."""
    frame = trial.walked.forecast
    first, second = (
        frame.filter(pl.col("symbol") == s).drop("symbol").sort("target", "horizon", "timestamp")
        for s in ("AAA", "BBB")
    )
    book = trial.walked.book("positions")
    if first.select("mean", "lower", "upper").equals(second.select("mean", "lower", "upper")):
        apart = np.abs(values(book, "AAA") - values(book, "BBB")).max()
        if apart > 1e-9 * np.abs(values(book, "AAA")).max(initial=TINY):
            yield "equal forecasts of equal bars are traded differently"


# --- figures that only many runs can judge ---


def aggregate_figures(trial: Trial) -> dict[str, Any]:
    """What the summary adds up over runs."""
    market = trial.case.market
    found: dict[str, Any] = {
        "no edge": market.no_edge and market.plan.jump == 1.0,
        "claims": claims_edge(trial) if trial.walked.has_account else None,
        "planted": market.plan.law.startswith("lag"),
        "exchangeable": market.exchangeable,
        "variance": [],
        "coverage": [],
    }
    for (_, _, horizon), ratio in volatility_ratios(trial):
        found["variance"].append([horizon, float(np.log(np.mean(ratio**2)))])
    if promised(trial):
        found["coverage"] = [
            [kind_of(target), trial.case.option("forecast.level", 0.9), float(_inside(rows).mean())]
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
