"""`longtape fetch`: market data from a service into the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from longtape.core.clock import Interval, iso, to_milliseconds

if TYPE_CHECKING:
    from longtape.market.fetch import FetchResult


def fetch(
    source: Annotated[
        str, typer.Argument(help="bybit, ccxt-EXCHANGE (ccxt-kraken), yahoo, sample or simulate.")
    ],
    symbols: Annotated[str, typer.Option(help="Symbols with commas between: BTCUSDT,ETHUSDT.")],
    store: Annotated[str, typer.Option(help="Folder of the store, or a URL such as s3://bucket/path.")],
    interval: Annotated[
        str | None, typer.Option(help="Length of the bars: 1m, 5m, 1h, 4h, 1d, 1w, 1M; for candles and mark.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="First time, UTC: 2024-01-01 or 2024-01-01T12:00. Without it: all there is."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Times before this one, UTC. Without it: up to now.")
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="bybit: linear (the default), spot, inverse; others have their own.")
    ] = None,
    kind: Annotated[str, typer.Option(help="candles, mark, funding, trades or books.")] = "candles",
    base_url: Annotated[
        str | None, typer.Option(help="Address of the service, where it is not the usual.")
    ] = None,
) -> None:
    """Fetch candles of [since, until) into the store; what it has already is not fetched again.

    A fetch that was stopped goes on where it ended. Gaps that the service itself has are named, never filled.

    Example: longtape fetch bybit --symbols BTCUSDT,ETHUSDT --interval 1h --since 2024-01-01 --until 2024-02-01
    --category linear --store data

    Example: longtape fetch bybit --symbols BTCUSDT --kind funding --since 2024-01-01 --store data
    """
    from longtape.market.fetch import FetchRequest
    from longtape.market.fetch import fetch as fetch_into
    from longtape.market.sources import open_source
    from longtape.market.store import Store

    wanted = FetchRequest(
        kind,
        None if interval is None else Interval.parse(interval),
        None if since is None else to_milliseconds(since, "--since"),
        None if until is None else to_milliseconds(until, "--until"),
    )
    service = open_source(source, base_url)
    names = [name.strip() for name in symbols.split(",") if name.strip()]
    try:
        results = fetch_into(service, Store(store), names, wanted, category or service.categories[0])
    finally:
        service.close()
    for result in results:
        typer.echo(_line(result, kind))


def _line(result: FetchResult, kind: str) -> str:
    stored = result.stored
    parts = [f"{result.instrument.key}: {stored.added:,} new {kind}"]
    if result.first is not None and result.last is not None:
        parts.append(f"stored {iso(result.first)} to {iso(result.last)}")
    if stored.conflicts:
        parts.append(f"{stored.conflicts:,} differ from the stored ones, which were kept")
    if result.gaps:
        parts.append(
            f"{len(result.gaps):,} gaps, {result.missing:,} missing, first at {iso(result.gaps[0].first)}"
        )
    return "; ".join(parts)
