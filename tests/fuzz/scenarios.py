"""What is done with a finished run, or beside it, and what must then be so. Scenarios yield faults, as checks do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

import longtape
from longtape.backtest import Costs, run_backtest
from tests.fuzz.accounts import FUNDING, entry_prices
from tests.fuzz.experiments import Case, Document, signature_names, with_document
from tests.fuzz.markets import DAY, TIME, Market, Plan, make_market
from tests.fuzz.runs import (
    NEWEST,
    Trial,
    Walked,
    attempt,
    command,
    each_target,
    times,
    values,
    walk,
    write_case,
)
from tests.fuzz.scores import entry_of, qlike_of

Faults = Iterator[str]
NUMBERS = ("mean", "lower", "upper")
FRONT_TOLERANCE = 1e-4  # of a forecast's deviation: features with a long memory may keep 1e-6 of theirs


@dataclass(frozen=True)
class Scenario:
    """Something done with a run, and the trials that it is for; `every`: on one seed in so many."""

    name: str
    find: Callable[[Trial], Faults]
    when: Callable[[Trial], bool]
    every: int


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str, when: Callable[[Trial], bool] = lambda trial: True, every: int = 1
) -> Callable[..., Any]:
    """Register a scenario under a name."""

    def register(find: Callable[[Trial], Faults]) -> Callable[[Trial], Faults]:
        SCENARIOS[name] = Scenario(name, find, when, every)
        return find

    return register


def from_files(trial: Trial) -> bool:
    """The data can be written anew."""
    return bool(trial.case.document["data"]["source"] == "file")


# --- the same run, other bars ---


@scenario("cutting the future changes no bit")
def cut(trial: Trial) -> Faults:
    frame = trial.walked.forecast
    for number, moment in enumerate(_cuts(trial, frame)):
        frames = {
            s: bars.filter(pl.Series(times(bars) + trial.case.market.step <= moment))
            for s, bars in _bars(trial)
        }
        made, refusal = attempt(lambda: _forecast(trial, trial.read(frames, f"cut{number}")))  # noqa: B023
        if refusal:
            yield f"forecast of data cut at {np.datetime64(int(moment), 'ms')}: {refusal.message}"
            continue
        yield from _same_bits(trial, made, frame)


def _cuts(trial: Trial, frame: pl.DataFrame) -> list[int]:
    """A moment at random, and one before the market closes, if it does: the bars to come must be foreseen there."""
    rng = np.random.default_rng([trial.case.seed, 4])
    scored = frame.drop_nulls("actual")
    spans = (
        times(scored, "end") - times(scored, "known_at") - values(scored, "horizon") * trial.case.market.step
    )
    moments = [
        np.unique(times(scored, "known_at")),
        np.unique(times(scored.filter(pl.Series(spans > 0)), "known_at")),
    ]
    return [int(rng.choice(some)) for some in moments if len(some)]


def _bars(trial: Trial) -> list[tuple[str, pl.DataFrame]]:
    return list(trial.bars.items())


def _forecast(trial: Trial, bars: list[longtape.Bars], **options: Any) -> pl.DataFrame:
    return longtape.load_run(trial.walked.root).forecast(bars, **options)


def _same_bits(trial: Trial, made: pl.DataFrame, frame: pl.DataFrame) -> Faults:
    both = made.join(frame, on=NEWEST, how="inner", suffix="_before")
    if both.height < made.height:
        yield f"the forecast of {made['timestamp'][0]} was not made with all data at hand"
    for name in NUMBERS:
        moved = both.filter(~pl.col(name).eq_missing(pl.col(f"{name}_before")))
        if moved.height:
            row = moved.row(0, named=True)
            yield f"{name} of {row['target']} at {row['timestamp']}: {row[f'{name}_before']!r} → {row[name]!r}"
    late = both.filter(pl.col("end") != pl.col("end_before"))
    if late.height and trial.case.market.whole:
        row = late.row(0, named=True)
        yield f"`end` of {row['target']} at {row['timestamp']}: {row['end_before']} → {row['end']}"


@scenario("bars added in front change nothing", lambda trial: not trial.case.market.plan.late)
def front(trial: Trial) -> Faults:
    frames = {s: trial.case.market.assets[s].bars_and_before for s in trial.bars}
    if trial.case.option("data.drop_last"):
        frames = {s: frame.head(frame.height - 1) for s, frame in frames.items()}
    made, refusal = attempt(lambda: _forecast(trial, trial.read(frames, "front")))
    if refusal:
        yield f"with bars in front: {refusal.message}"
        return
    before = trial.walked.forecast
    deviation = before.group_by("symbol", "target", "horizon").agg(
        pl.max_horizontal(pl.col("mean").std(), pl.col("mean").abs().mean() * 1e-3).alias("deviation")
    )
    both = made.join(before, on=NEWEST, suffix="_before").join(deviation, on=("symbol", "target", "horizon"))
    for name in NUMBERS:
        apart = pl.col(name) - pl.col(f"{name}_before")
        moved = both.filter((apart.abs() > FRONT_TOLERANCE * pl.col("deviation")) & pl.col(name).is_finite())
        if moved.height:
            row = moved.row(0, named=True)
            size = abs(row[name] - row[f"{name}_before"]) / row["deviation"]
            yield f"{name} of {row['target']} moves by {size:.2g} deviations"


@scenario("history=True gives history")
def history(trial: Trial) -> Faults:
    bars = trial.read(trial.bars, "history")
    made, refusal = attempt(lambda: _forecast(trial, bars, history=True))
    if refusal:
        yield f"forecast(bars, history=True): {refusal.message}"
    elif made["timestamp"].n_unique() < 2:
        yield f"forecast(bars, history=True) gave {made.height} rows of one moment"


@scenario("bars of another market are refused")
def other_bars(trial: Trial) -> Faults:
    frames = trial.bars
    last = trial.case.document["data"]["symbols"][-1]
    pooled = trial.case.option("model.assets") == "pooled"
    wrong: dict[str, Callable[[], list[longtape.Bars]]] = {
        "of another category": lambda: trial.read(frames, "other", category="index"),
        "of another interval": lambda: _longer(trial),
    }
    if not pooled:
        wrong["of another symbol"] = lambda: [
            *trial.read({s: f for s, f in frames.items() if s != last}, "other"),
            *trial.read({last: frames[last]}, "other", symbol="ZZZ"),
        ]
    for name, bars in wrong.items():
        for what in ("forecast", "backtest"):
            if what == "backtest" and not trial.walked.has_account:
                continue
            _, refusal = attempt(lambda: getattr(longtape.load_run(trial.walked.root), what)(bars()))  # noqa: B023
            if refusal is None:
                yield f"{what} of bars {name} was made"
            elif refusal.stage != "data":
                yield f"{what} of bars {name}: {refusal.message}"


def _longer(trial: Trial) -> list[longtape.Bars]:
    """Every other bar, as bars of twice the length."""
    doubled = {"1m": "2m", "5m": "10m", "30m": "1h", "1h": "2h", "4h": "8h", "1d": "2d"}
    interval = doubled[trial.case.market.plan.interval]
    length = longtape.Interval.parse(interval).milliseconds
    frames = {s: bars.filter(pl.Series(times(bars) % length == 0)) for s, bars in trial.bars.items()}
    if any(frame.height < 100 for frame in frames.values()):  # bars that open at half past
        frames = {
            s: bars.filter(pl.Series(times(bars) % length == length // 2)) for s, bars in trial.bars.items()
        }
    return trial.read(frames, "longer", interval=interval)


# --- the run opened again, the data changed ---


@scenario("a reopened run scores nothing before its border", from_files, every=2)
def reopened(trial: Trial) -> Faults:
    """The last half of the test is lost: fractions of what is left would reach back into the training."""
    root = trial.copy("reopened")
    first, count = times(trial.walked.forecast).min(), trial.walked.forecast["timestamp"].n_unique()
    keep = np.unique(times(trial.walked.forecast))[count // 2]
    with _other_data(trial, lambda bars: bars.filter(pl.Series(times(bars) <= keep))):
        _, refusal = attempt(lambda: longtape.load_run(root).backtest())
    if refusal:
        if refusal.stage != "data":
            yield f"reopened on fewer bars: {refusal.message}"
        return
    again = Walked(root)
    if times(again.forecast).min() < first:
        yield f"forecasts from {again.forecast['timestamp'].min()} are scored, the test began at {_iso(first)}"
    if again.has_account and times(again.book("equity")).min() < first:
        yield f"the account begins at {again.book('equity')['timestamp'].min()}, the test at {_iso(first)}"


@scenario("forecasts of other data are not taken for the run's own", from_files, every=2)
def reused(trial: Trial) -> Faults:
    """The data change, forecasts are made, and the data are as they were."""
    root = trial.copy("reused")
    first = times(trial.walked.forecast).min()
    factor = pl.when(pl.col("timestamp").dt.timestamp("ms") >= first).then(1.5).otherwise(1.0)
    prices = [pl.col(name) * factor for name in ("open", "high", "low", "close")]
    with _other_data(trial, lambda bars: bars.with_columns(prices)):
        attempt(lambda: longtape.load_run(root).forecast(history=True))
    _, refusal = attempt(lambda: longtape.load_run(root).backtest())
    if refusal:
        yield f"with the data as they were: {refusal.message}"
    elif Walked(root).bytes("metrics.json") != trial.walked.bytes("metrics.json"):
        yield "with the data as they were, metrics.json is another: forecasts of other data were scored"


def _iso(time: int) -> str:
    return str(np.datetime64(int(time), "ms"))


@contextlib.contextmanager
def _other_data(trial: Trial, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Iterator[None]:
    """The files hold changed bars for a while."""
    market = trial.case.market
    ending = trial.case.document["data"]["path"].rsplit(".", 1)[-1]
    assets = {s: _Held(change(asset.bars)) for s, asset in market.assets.items()}
    try:
        Market.write(replace(market, assets=assets), trial.folder, ending)  # type: ignore[arg-type]
        yield
    finally:
        market.write(trial.folder, ending)


@dataclass(frozen=True, eq=False)
class _Held:
    bars: pl.DataFrame


# --- the experiment once more ---


@scenario("twice the same bytes", every=3)
def repeated(trial: Trial) -> Faults:
    """Once through Python, once through the command line."""
    out = trial.folder / "again"
    code, said = command("run", str(trial.folder / "experiment.yaml"), "--out", str(out))
    if code != 0:
        yield f"longtape run ends with {code}: {said}"
        return
    for name in ("metrics.json", "forecast.parquet", "model.safetensors"):
        if not (out / name).exists() or Walked(out).bytes(name) != trial.walked.bytes(name):
            yield f"{name} has other bytes the second time"


@scenario("prices four times as high are forecast alike", from_files, every=4)
def scaled(trial: Trial) -> Faults:
    """Four times a float keeps every ratio of prices to the bit: nothing may hang on the level of prices."""
    market = trial.case.market
    prices = [pl.col(name) * 4.0 for name in ("open", "high", "low", "close")]
    assets = {s: replace(asset, frame=asset.frame.with_columns(prices)) for s, asset in market.assets.items()}
    case = with_document(replace(trial.case, market=replace(market, assets=assets)), audit=False)
    folder = trial.folder / "scaled"
    made, refusal = walk(write_case(case, folder), folder / "out")
    if refusal or made is None:
        yield f"with prices four times as high: {refusal.message if refusal else ''}"
        return
    both = made.forecast.join(trial.walked.forecast, on=NEWEST, suffix="_before")
    for name in NUMBERS:
        now, before = values(both, name), values(both, f"{name}_before")
        if not np.allclose(
            now, before, rtol=1e-6, atol=1e-9 * np.abs(before[np.isfinite(before)]).max(initial=0)
        ):
            yield f"{name} moves by {np.nanmax(np.abs(now - before)):.3g}"


@scenario("the linear start is the same at every lookback", every=8)
def lookbacks(trial: Trial) -> Faults:
    """One bar less or more to look back on may not change which lags a volatility starts from."""
    forecasts = {}
    for lookback in (23, 24, 71, 72):
        case = _plain(trial, lookback)
        folder = trial.folder / f"lookback{lookback}"
        made, refusal = walk(write_case(case, folder), folder / "out")
        if refusal or made is None:
            yield f"lookback {lookback}: {refusal.message if refusal else ''}"
            return
        forecasts[lookback] = made.forecast.select("timestamp", "mean")
    for short, long in ((23, 24), (71, 72)):
        both = forecasts[short].join(forecasts[long], on="timestamp", suffix="_long")
        apart = float(np.median(np.abs(np.log(values(both, "mean") / values(both, "mean_long")))))
        if apart > LOOKBACK_TOLERANCE:
            yield f"volatility moves by {apart:.2%} between lookback {short} and {long}"


LOOKBACK_TOLERANCE = (
    0.004  # of half of the forecasts; a training window more or less moves them by a tenth of it
)


def _plain(trial: Trial, lookback: int) -> Case:
    """A volatility alone, started and not trained, on a market with a long memory."""
    plan = Plan(law="garch", bars=2400)
    document: Document = {
        "name": "lookbacks", "audit": False,
        "data": {"source": "file", "path": "{symbol}.parquet", "symbols": ["AAA"], "interval": "1h"},
        "features": ["log_return"], "targets": ["volatility(6)"],
        "model": {"lookback": lookback, "attention": "flash", "d_model": 8, "n_heads": 1, "n_layers": 1},
        "training": {"epochs": 0},
    }  # fmt: skip
    market = make_market(plan, trial.case.seed)
    opens = market.shared_opens()
    document["split"] = {"train_until": _iso(opens[1900]), "validation_until": _iso(opens[2100])}
    return Case(trial.case.seed, market, document)


@scenario(
    "walk-forward keeps to the split",
    lambda trial: from_files(trial) and trial.test_since is not None,
    every=2,
)
def walk_forward(trial: Trial) -> Faults:
    out = trial.folder / "folds"
    path = str(trial.folder / "experiment.yaml")
    code, said = command("walk-forward", path, "--folds", "2", "--out", str(out), "-o", "training.epochs=0")
    if code != 0:
        yield f"longtape walk-forward ends with {code}: {said}"
        return
    frame = Walked(out).forecast.drop_nulls("actual")
    if times(frame).min() < (trial.test_since or 0):
        yield f"the first fold tests from {frame['timestamp'].min()}, validation_until is {_iso(trial.test_since or 0)}"
    if trial.test_until is not None and times(frame, "end").max() > trial.test_until:
        yield f"labels until {frame['end'].max()} are scored, test_until is {_iso(trial.test_until)}"


@scenario("walk-forward fits baselines in every fold", from_files, every=8)
def walk_forward_baselines(trial: Trial) -> Faults:
    """The market's volatility trebles in the middle: the mean of the first fold's training is soon a bad one."""
    case = _jumping(trial)
    folder = trial.folder / "jump"
    out = folder / "folds"
    code, said = command("walk-forward", str(write_case(case, folder)), "--folds", "4", "--out", str(out))
    if code != 0:
        yield f"longtape walk-forward ends with {code}: {said}"
        return
    walked = Walked(out)
    for (symbol, target, horizon), rows in each_target(walked.forecast.drop_nulls("actual")):
        entry = entry_of(walked.metrics["skill"], symbol, target, horizon)
        row = next((one for one in entry if one["model"] == "training mean"), None)
        if row is None or not target.startswith("volatility"):
            continue
        levels = _fold_levels(case, walked.metrics["folds"], rows, horizon)
        refitted, first = (qlike_of(rows, level) for level in (levels, np.full(rows.height, levels[0])))
        if abs(row["QLIKE"] - first) < abs(row["QLIKE"] - refitted):
            figures = f"QLIKE {row['QLIKE']:.3f}; of fold 1 alone {first:.3f}, of all {refitted:.3f}"
            yield f"{target}: the training mean has {figures}"


def _jumping(trial: Trial) -> Case:
    case = _plain(trial, 24)
    market = make_market(Plan(bars=1200, jump=3.0), trial.case.seed)
    document = {key: value for key, value in case.document.items() if key != "split"}
    return with_document(Case(case.seed, market, document), targets=["volatility(3)", "return(3)"],
                         backtest__signal__target="return(3)")  # fmt: skip


def _fold_levels(case: Case, folds: list[dict[str, Any]], rows: pl.DataFrame, horizon: int) -> Any:
    """Root mean square of what each fold was trained on, for each row that it forecast."""
    close = np.log(values(case.market.assets["AAA"].bars, "close"))
    opens = times(case.market.assets["AAA"].bars)
    squares = np.append(0.0, np.cumsum(np.diff(close, prepend=close[0]) ** 2))
    label = squares[1 + horizon :] - squares[1:-horizon]
    levels = np.empty(rows.height)
    for fold in folds:
        since = times(pl.DataFrame({"t": [fold["first forecast"].rstrip("Z")]}).select(
            timestamp=pl.col("t").str.to_datetime("%Y-%m-%d %H:%M", time_unit="ms")))[0]  # fmt: skip
        until = np.searchsorted(opens, since) - horizon
        levels[times(rows) >= since] = np.sqrt(label[30 : int(until * 0.85)].mean())
    return levels


# --- the account by itself ---


@scenario("an account of drawn weights", lambda trial: trial.walked.has_account)
def drawn_account(trial: Trial) -> Faults:
    """Weights at random on the run's bars: clock, funding and stops, without a model in between."""
    bars = pl.concat(
        frame.select("timestamp", pl.lit(symbol).alias("symbol"), "open", "high", "low", "close", "volume")
        for symbol, frame in trial.bars.items()
    )
    weights = _drawn_weights(trial)
    yield from _inferred_year(trial, weights, bars)
    if trial.case.market.plan.calendar == "24/7":
        yield from _funding_ends(trial, weights, bars)
    yield from _stops(weights, bars)


def _drawn_weights(trial: Trial) -> pl.DataFrame:
    rng = np.random.default_rng([trial.case.seed, 5])
    first = next(iter(trial.bars.values()))
    clock = first["timestamp"].gather_every(3).head(60)
    columns = {s: rng.choice([-0.3, 0.0, 0.1, 0.2, 0.3], len(clock)) for s in trial.bars}
    return pl.DataFrame({"timestamp": clock, **columns})


def _inferred_year(trial: Trial, weights: pl.DataFrame, bars: pl.DataFrame) -> Faults:
    """Without a calendar the bars of a year are read from their times: half a year shows them."""
    span = (bars["timestamp"].max() - bars["timestamp"].min()).total_seconds()  # type: ignore[operator]
    made, refusal = attempt(lambda: run_backtest(weights, bars))
    if refusal:
        yield f"run_backtest: {refusal.message}"
    elif span > 20 * DAY / 1000:
        true = trial.case.market.bars_per_year
        if abs(made.periods_per_year / true - 1) > 0.03:
            yield f"{made.periods_per_year:,.0f} bars a year inferred; the market has {true:,.0f}"


def _funding_ends(trial: Trial, weights: pl.DataFrame, bars: pl.DataFrame) -> Faults:
    """Payments after the last bar are not the account's."""
    last = max(int(times(frame)[-1]) for frame in trial.bars.values()) + trial.case.market.step
    first = min(int(times(frame)[0]) for frame in trial.bars.values())
    facts = {s: longtape.Instrument("fuzz", "linear", s) for s in trial.bars}
    paid = []
    for until in (last, last + 5 * FUNDING):
        due = np.arange(-(-first // FUNDING) * FUNDING, until, FUNDING)
        history = pl.concat(
            pl.DataFrame(
                {"timestamp": pl.Series(due).cast(TIME), "symbol": s, "rate": np.full(len(due), 1e-3)}
            )
            for s in trial.bars
        )
        made, refusal = attempt(
            lambda: run_backtest(
                weights,
                bars,
                costs=Costs(funding="history"),
                instruments=facts,
                funding_history=history,  # noqa: B023
            )
        )
        if refusal:
            yield f"run_backtest with funding history: {refusal.message}"
            return
        paid.append(made.metrics["funding"])
    if paid[0] != paid[1]:
        yield f"five payments after the last bar change funding from {paid[0]:.2f} to {paid[1]:.2f}"


def _stops(weights: pl.DataFrame, bars: pl.DataFrame) -> Faults:
    """A stop stands at its distance from the average price of the units that are held."""
    if "limits" not in signature_names(run_backtest):
        return
    from longtape.backtest import Limits

    stop = 0.01
    made, refusal = attempt(lambda: run_backtest(weights, bars, costs=Costs(), limits=Limits(stop_loss=stop)))
    if refusal:
        yield f"run_backtest with a stop: {refusal.message}"
        return
    opens = {(row[0], row[1]): row[2] for row in bars.select("timestamp", "symbol", "open").iter_rows()}
    for fill, held, entry in entry_prices(made.fills):
        if fill["reason"] != "stop_loss":
            continue
        level = entry * (1 - np.sign(held) * stop)
        opened = opens[fill["timestamp"], fill["symbol"]]
        through = opened if np.sign(held) * opened < np.sign(held) * level else level
        if abs(fill["price"] - through) > 1e-9 * level:
            yield f"a stop of units bought at {entry:.6g} filled at {fill['price']:.6g} instead of {through:.6g}"
            return
