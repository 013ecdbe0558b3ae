"""Recorded funding of perpetuals, for an account that pays what was paid."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np
import polars as pl

from longtape.core.clock import HOUR, MINUTE, Milliseconds, iso
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.bars import TIME_TYPE
from longtape.market.files import numbers, only_symbol, read_table
from longtape.market.load import DataConfig
from longtape.market.rows import refuse_values, require_columns
from longtape.market.series import Series
from longtape.market.sources import SOURCES
from longtape.market.store import Store
from longtape.market.timestamps import to_utc

USUAL_FUNDING_HOURS = 8.0
_ALTERNATIVE = "or name backtest.costs.funding = rate or excluded"


def load_funding(
    config: DataConfig, instruments: Sequence[Instrument], since: int, until: int
) -> pl.DataFrame | None:
    """Every payment of the perpetuals among `instruments` in [since, until), UTC ms: from the first open to the last
    close of what is traded. From `data.funding_path` where it is named, else from the store.

    Gives `timestamp` (UTC ms, on the hour it was due), `symbol`, `rate` (a fraction, paid by the long side) in order of
    time; None where no instrument is a perpetual. UserError for a payment that is missing, naming it and the way to it.
    """
    perpetuals = [one for one in instruments if one.is_perpetual]
    if not perpetuals:
        if config.funding_path is not None:
            listed = ", ".join(one.symbol for one in instruments)
            raise UserError(f"data.funding_path has no effect: there is no perpetual among {listed}")
        return None
    if config.funding_path is None:
        read = [_of_store(config, one, since, until) for one in perpetuals]
    else:
        read = [_of_file(config.funding_path, one, len(perpetuals), since, until) for one in perpetuals]
    return pl.concat(read).sort("timestamp", maintain_order=True)


def payment_step(instrument: Instrument | None) -> int:
    """Milliseconds from one payment of an instrument to the next; 8 hours where it is not known."""
    return int(((instrument.funding_hours if instrument else None) or USUAL_FUNDING_HOURS) * HOUR)


def on_the_hour(times: Milliseconds) -> Milliseconds:
    """Payments are due on the hour; a stamp up to a minute off it is moved there [T]."""
    hour = (times + HOUR // 2) // HOUR * HOUR
    return np.where(np.abs(times - hour) <= MINUTE, hour, times)


def funding_holes(times: Milliseconds, step: int, since: int, until: int) -> list[tuple[int, int]]:
    """Where payments are missing in [since, until): the first missing one of each hole and the next one recorded (or
    `until`). `times` [T] rise; payments are due at multiples of `step` (ms), and more of them are no fault.
    """
    inside = times[(times >= since) & (times < until)]
    first, last = -(-since // step) * step, (until - 1) // step * step
    if first >= until:
        return []
    edges = np.concatenate([[first - step], inside, [last + step]])
    return [
        (int(edges[i]) + step, min(int(edges[i + 1]), until)) for i in np.flatnonzero(np.diff(edges) > step)
    ]


def _of_store(config: DataConfig, instrument: Instrument, since: int, until: int) -> pl.DataFrame:
    if config.store is None:
        raise UserError(
            f"{instrument.key} is a perpetual and its funding is not recorded: name data.funding_path, a file of"
            f" timestamp, symbol, rate, {_ALTERNATIVE}"
        )
    store = Store(config.store)
    rows = pl.DataFrame(schema={"timestamp": TIME_TYPE, "rate": pl.Float64})
    if Series.of(instrument, "funding") in store.series():
        rows = store.read_table("funding", instrument.key, since=since - MINUTE, until=until + MINUTE)
    return _complete(
        rows, instrument, since, until, f"{store.root}: funding of {instrument.key}", config.store
    )


def _of_file(path: str, instrument: Instrument, perpetuals: int, since: int, until: int) -> pl.DataFrame:
    own = path.replace("{symbol}", instrument.symbol)
    table = read_table(own).cells
    require_columns(table, ("timestamp", "rate"), own)
    if "symbol" not in table.columns and perpetuals > 1 and own == path:
        raise UserError(f"{own}: column 'symbol' is missing, and there are several perpetuals")
    rows = only_symbol(table, instrument.symbol, own)
    rows = rows.select(to_utc(rows["timestamp"], own), numbers(rows, ["rate"], own)["rate"])
    at = rows["timestamp"].dt.timestamp("ms").to_numpy()
    refuse_values(~np.isfinite(rows["rate"].to_numpy()), rows["rate"], "not a rate", at, own)
    return _complete(rows, instrument, since, until, f"{own}: funding of {instrument.key}", None)


def _complete(
    rows: pl.DataFrame, instrument: Instrument, since: int, until: int, what: str, store: str | None
) -> pl.DataFrame:
    """The payments of [since, until), none missing and none twice."""
    due = on_the_hour(rows["timestamp"].dt.timestamp("ms").to_numpy())
    rows = rows.select(
        pl.Series("timestamp", due).cast(TIME_TYPE), pl.lit(instrument.symbol).alias("symbol"), "rate"
    )
    rows = rows.filter(pl.Series((due >= since) & (due < until))).sort("timestamp")
    times = rows["timestamp"].dt.timestamp("ms").to_numpy()
    twice = np.diff(times) == 0
    if twice.any():
        raise UserError(f"{what}: the payment of {iso(int(times[np.argmax(twice)]))} comes twice; remove one")
    holes = funding_holes(times, payment_step(instrument), since, until)
    if holes:
        way = "add the payments" if store is None else _command(instrument, store, *holes[0])
        raise UserError(f"{what} has a hole at {iso(holes[0][0])} ({len(holes)} such): {way}, {_ALTERNATIVE}")
    return rows


def _command(instrument: Instrument, store: str, since: int, until: int) -> str:
    """What fetches the payments of [since, until) into the store, where their source has them."""
    kind = instrument.source.partition("-")[0]
    if kind not in SOURCES or not hasattr(SOURCES.load(kind), "funding"):
        return "name data.funding_path, a file of timestamp, symbol, rate"
    first, end = (iso(moment).replace(" ", "T") for moment in (since, until))
    return (
        f"longtape fetch {instrument.source} --symbols {instrument.symbol} --kind funding --category"
        f" {instrument.category} --since {first} --until {end} --store {shlex.quote(store)}"
    )
