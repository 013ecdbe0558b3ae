"""Mistakes of a user, and the latest moment at which each may be said: before anything is read, or before training.

Every mistake spoils a document that is fine, or its data. A mistake that is in the document alone must be said while
the data are not even there; one that needs data must be said before the folder of the run is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml

import longtape
from longtape.core.errors import UserError
from longtape.experiment import load_experiment, parse_experiment
from tests.fuzz import schema
from tests.fuzz.experiments import Document, signature_names
from tests.fuzz.markets import Market, MarketSpec, make_market, write_bars
from tests.fuzz.runs import DATA, DOCUMENT, command, refused_unread, stage_of

Frame = pl.DataFrame


@dataclass(frozen=True)
class Mistake:
    """What is wrong, and when it must be said at the latest. `may_pass`: it may also be understood."""

    name: str
    changes: dict[str, Any]
    latest: str = DOCUMENT
    bars: Callable[[Frame], Frame] | None = None
    symbols: int = 1
    may_pass: bool = False
    prepare: Callable[[Market, Path], None] | None = None


def plain(symbols: int = 1) -> Document:
    """A small experiment with nothing wrong."""
    return {
        "name": "plain",
        "data": {
            "source": "file", "path": "{symbol}.parquet", "symbols": ["AAA", "BBB"][:symbols], "interval": "1h",
            "category": "spot",
        },
        "features": ["log_return", "volatility(10)"],
        "targets": ["return(3)", "volatility(3)"],
        "model": {"lookback": 16, "attention": "flash", "d_model": 8, "n_heads": 1, "n_layers": 1},
        "training": {"epochs": 0},
        "backtest": {"signal": {"target": "return(3)"}},
        "audit": False,
    }  # fmt: skip


def _dates(train: str, validation: str) -> dict[str, Any]:
    return {"split.train_until": train, "split.validation_until": validation}


def _removed(*rows: int) -> Callable[[Frame], Frame]:
    return lambda frame: frame.filter(~pl.int_range(frame.height).is_in(list(rows)))


def _cell(row: int, name: str, value: float) -> Callable[[Frame], Frame]:
    at = pl.int_range(pl.len()) == row
    return lambda frame: frame.with_columns(pl.when(at).then(value).otherwise(pl.col(name)).alias(name))


def _twice(frame: Frame) -> Frame:
    return pl.concat([frame.head(200), frame.slice(199)])


def _apart(market: Market, folder: Path) -> None:
    """Symbols that share no time."""
    frame = market.assets["BBB"].bars
    write_bars(frame.with_columns(pl.col("timestamp").dt.offset_by("2y")), folder / "BBB.parquet")


def _perpetual_store(market: Market, folder: Path, hole: bool = False) -> None:
    store = longtape.Store(folder / "store")
    instrument = longtape.Instrument("fuzz", "linear", "AAA")
    bars = longtape.Bars.checked(instrument, longtape.Interval.parse("1h"), market.assets["AAA"].bars)
    store.append(bars)
    first, last = int(bars.timestamps[0]), int(bars.timestamps[-1])
    due = np.arange(first // 28_800_000 * 28_800_000, last + 1, 28_800_000)
    due = due[(due < last - 60 * 3_600_000) | (due > last - 20 * 3_600_000)] if hole else due
    rates = pl.DataFrame(
        {"timestamp": pl.Series(due).cast(pl.Datetime("ms", "UTC")), "rate": np.full(len(due), 1e-4)}
    )
    store.append_table("funding", instrument, rates)


def _store_with_hole(market: Market, folder: Path) -> None:
    _perpetual_store(market, folder, hole=True)


_STORE = {"data": {"source": "store", "store": "store", "symbols": ["AAA"], "interval": "1h"}}
_SAMPLE = {"source": "sample", "symbols": ["SP500"], "interval": "1d"}
_STORE_WITH_CALENDAR = {"data": _STORE["data"] | {"calendar": "XNYS", "category": "linear"}} | {
    "backtest.costs": {"funding": "excluded"}
}
_RANK = {"name": "rank", "options": {"quantile": 0.9}, "target": "return(3)"}
_TWO_RETURNS = {"targets": ["return(3)", "return(5)"], "backtest": {}}

MISTAKES = (
    # names that nothing has
    Mistake("unknown category", {"data.category": "nonsense"}),
    Mistake("unknown spelling of a perpetual", {"data.category": "perp"}),
    Mistake("inverse contract", {"data.category": "inverse", "backtest.costs": {"funding": "excluded"}}),
    Mistake("unknown calendar", {"data.calendar": "XXXX"}),
    Mistake("unknown interval", {"data.interval": "7q"}),
    Mistake("unknown feature", {"features": ["log_return", "nonsense(3)"]}),
    Mistake("unknown target", {"targets": ["nonsense(3)"]}),
    Mistake("unknown head", {"model.heads": {"return": "nonsense"}}),
    Mistake("unknown mechanism", {"model.attention": "nonsense"}),
    Mistake("unknown option of a mechanism", {"model.attention_options": {"nonsense": 3}}),
    Mistake("unknown signal", {"backtest.signal.name": "nonsense"}),
    Mistake("unknown option of a signal", {"backtest.signal.options": {"nonsense": 1.0}}),
    Mistake("unknown symbol to forecast", {"symbols": ["ZZZ"]}),
    Mistake("feature of a symbol that is not loaded", {"features": ["log_return", 'of("ZZZ").log_return']}),
    Mistake("unknown key", {"model.nonsense": 1}),
    # things that do not go together
    Mistake("head of another kind", {"model.heads": {"return": "volatility"}}),
    Mistake("head of a kind that is not forecast", {"model.heads": {"path": "regression"}}),
    Mistake("tanh without gain", {"backtest.signal.name": "tanh"}),
    Mistake("proportional without gain", {"backtest.signal.name": "proportional"}),
    Mistake("volatility target without its level", {"backtest.signal.name": "volatility_target"}),
    Mistake(
        "volatility target without a volatility",
        {"targets": ["return(3)"], "backtest.signal": {"name": "volatility_target", "options": {"volatility": 0.1}}},
    ),
    Mistake("two returns and none named", _TWO_RETURNS),
    Mistake("a path and no horizon named", {"targets": ["path(3)"], "backtest": {}}, may_pass=True),
    Mistake("unknown target of the signal", {"backtest.signal.target": "return(99)"}),
    Mistake("target of the signal spaced otherwise", {"backtest.signal.target": "return( 3 )"}, may_pass=True),
    Mistake("unknown horizon of the signal", {"backtest.signal.horizon": 99}),
    Mistake("rank of one symbol", {"backtest.signal.name": "rank"}),
    Mistake(
        "rank beyond one half", {"backtest.signal": _RANK},
        symbols=2,
    ),
    Mistake("no validation", {"split": {"train": 0.7, "validation": 0.0}}),
    Mistake("validation ends before training", _dates("2022-06-01", "2022-05-01")),
    Mistake(
        "test ends before validation",
        _dates("2022-06-01", "2022-07-01") | {"split.test_until": "2022-06-15"},
    ),
    Mistake("volatility without log returns to start from", {"features": ["range"]}, may_pass=True),
    Mistake("the same feature twice", {"features": ["log_return", "log_return"]}),
    Mistake("the same target twice", {"targets": ["return(3)", "return(3)", "volatility(3)"]}),
    Mistake("target of no bars", {"targets": ["return(0)"]}),
    Mistake("decay of one", {"features": ["log_return", "ewma_volatility(1.0)"]}),
    Mistake("deviation of one bar", {"features": ["log_return", "yang_zhang(1)"]}),
    Mistake("sessions of a market without any", {"model.attention": "bigbird", "marks": {"kinds": ["session_open"]}}),
    Mistake("funding that is not named", {"data.category": "linear"}),
    Mistake(
        "history of funding from a file",
        {"data.category": "linear", "backtest.costs": {"funding": "history"}},
    ),
    # options without effect
    Mistake("calendar of a sample", {"data": _SAMPLE | {"calendar": "XNYS"}}),
    Mistake("category of a sample", {"data": _SAMPLE | {"category": "index"}}),
    Mistake("source in a store of a file", {"data.store_source": "bybit"}),
    Mistake("calendar of a store", _STORE_WITH_CALENDAR),
    # what only the data can tell
    Mistake("a bar is missing", {}, DATA, _removed(150)),
    Mistake("a bar is missing near the end", {}, DATA, _removed(480)),
    Mistake("too long a horizon", {"targets": ["return(600)"], "backtest": {}}, DATA),
    Mistake("too long a window", {"model.lookback": 600}, DATA),
    Mistake("too little left to train on", {"model.lookback": 470}, DATA),
    Mistake("training ends before the data begin", _dates("2001-01-01", "2001-02-01"), DATA),
    Mistake("the test begins after the data end", _dates("2041-01-01", "2041-02-01"), DATA),
    Mistake("embargo longer than the validation", {"split": {"train": 0.7, "validation": 0.1, "embargo": 100}}, DATA),
    Mistake("data that begin after they end", {"data.since": "2041-01-01"}, DATA),
    Mistake("bars of another length", {"data.interval": "4h"}, DATA),
    Mistake("bars of a shorter name", {"data.interval": "30m"}, DATA),
    Mistake("high below low", {}, DATA, _cell(300, "high", 1e-9)),
    Mistake("a price of zero", {}, DATA, _cell(300, "close", 0.0)),
    Mistake("not a number", {}, DATA, _cell(300, "close", float("nan"))),
    Mistake("a row twice", {}, DATA, _twice),
    Mistake("symbols that share no time", {}, DATA, symbols=2, prepare=_apart),
    Mistake("perpetual of a store, funding not named", _STORE, DATA, prepare=_perpetual_store),
    Mistake(
        "a hole in the history of funding",
        {"data": _STORE["data"] | {"category": "linear"}, "backtest.costs": {"funding": "history"}},
        DATA, prepare=_store_with_hole,
    ),
)  # fmt: skip

if not torch.cuda.is_available():
    MISTAKES = (*MISTAKES, Mistake("a device that is not there", {"training.device": "cuda"}))


def options_out_of_reach() -> list[str]:
    """Options of an account that the document does not have."""
    from longtape.backtest import Limits, run_backtest

    given = {"weights", "bars", "costs", "limits", "instruments", "funding_history", "periods_per_year"}
    wanted = (signature_names(run_backtest) - given) | set(Limits.model_fields)
    there = {path.rsplit(".", 1)[-1] for path, _ in schema.leaves("backtest")}
    return sorted(wanted - there)


def plain_market(symbols: int = 1) -> Market:
    """Five hundred hours around the clock."""
    return make_market(MarketSpec(bars=500, symbols=symbols), 0)


def judge_mistake(mistake: Mistake, folder: Path) -> str | None:
    """What is wrong with how a mistake is met; None where all is well."""
    experiment = _spoiled(mistake, folder)
    out = folder / "out"
    if mistake.latest == DOCUMENT and (said := _unread(experiment)):
        return _one_line(said)
    code, said = command("run", str(experiment), "--out", str(out))
    if code == 0:
        return None if mistake.may_pass else "accepted"
    if code != 2 or not said:
        return f"ends with {code}: {said}"
    stage = stage_of(experiment, out)
    if stage == mistake.latest or (mistake.latest == DATA and stage == DOCUMENT):
        return _one_line(said)
    return f"said {'only after reading the data' if stage == DATA else stage}: {said}"


def _unread(experiment: Path) -> str | None:
    try:
        load_experiment(experiment)
    except UserError as error:
        return str(error)
    return refused_unread(experiment)


def _one_line(said: str) -> str | None:
    return f"said in several lines: {said!r}" if "\n" in said.strip() else None


def _spoiled(mistake: Mistake, folder: Path) -> Path:
    document, market = plain(mistake.symbols), plain_market(mistake.symbols)
    for path, value in mistake.changes.items():
        schema.put(document, path, value)
    folder.mkdir(parents=True, exist_ok=True)
    market.write(folder)
    if mistake.bars is not None:
        write_bars(mistake.bars(market.assets["AAA"].bars), folder / "AAA.parquet")
    if mistake.prepare is not None:
        mistake.prepare(market, folder)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / "experiment.yaml"


# --- any key of the document, spoiled ---


def spoiled_keys() -> list[tuple[str, Any]]:
    """Each key with a value of the wrong kind or outside its bounds, and each section with a key too many."""
    found: list[tuple[str, Any]] = []
    sections = {""}
    for path, about in schema.leaves():
        sections.add(path.rsplit(".", 1)[0] if "." in path else "")
        found += [(path, value) for value in _wrong(about)]
    return found + [(f"{section}.no_such_key".lstrip("."), 1) for section in sorted(sections)]


def _wrong(about: dict[str, Any]) -> Iterator[Any]:
    kind = about.get("type")
    if kind in ("number", "integer", "boolean") or "enum" in about:
        yield "nonsense"
    if kind in ("number", "integer"):
        if "minimum" in about:
            yield about["minimum"] - 1
        if "maximum" in about:
            yield about["maximum"] + 1
    if kind in ("array", "object"):
        yield 3


def judge_spoiled(path: str, value: Any) -> str | None:
    """What is wrong with how a spoiled key is met: it must be named in one line."""
    document = plain()
    schema.put(document, path, value)
    try:
        parse_experiment(document, "experiment.yaml")
    except UserError as error:
        said = str(error)
        if path.rsplit(".", 1)[-1] not in said:
            return f"the key is not named: {said}"
        return _one_line(said)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"
