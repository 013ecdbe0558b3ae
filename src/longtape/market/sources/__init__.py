"""Where market data come from: one file for each service, one line here for each name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from longtape.core.registry import Registry

if TYPE_CHECKING:
    import polars as pl

    from longtape.core.clock import Interval
    from longtape.core.instrument import Instrument

SOURCES = Registry(
    "source",
    {
        "bybit": "longtape.market.sources.bybit:Bybit",
        "ccxt": "longtape.market.sources.ccxt:Ccxt",
        "yahoo": "longtape.market.sources.yahoo:Yahoo",
        "sample": "longtape.market.sources.sample:Sample",
        "simulate": "longtape.market.sources.simulate:Simulate",
    },
)


class Source(Protocol):
    """What gives candles; it may also have `funding`, `trades` and `order_book`, as Bybit has.

    Made by `SOURCES.load(name)(base_url=…)`; safe to call from several threads. Raises UserError for what
    the service does not know (a symbol, an interval), ServiceError when it fails.
    """

    name: str
    categories: tuple[str, ...]  # the first is the usual one

    def instrument(self, symbol: str, category: str) -> Instrument:
        """What the service knows about a symbol."""
        ...

    def candles(
        self,
        symbol: str,
        interval: str | Interval,
        since: int | None,
        until: int | None,
        category: str,
        kind: str = "candles",
    ) -> Iterator[pl.DataFrame]:
        """Finished candles that open in [since, until), UTC ms, in pages that do not overlap, each in order of time.

        `since=None`: from the first there is, the newest page first; `until=None`: up to the newest finished one.
        """
        ...

    def close(self) -> None:
        """End waiting and close connections."""

    def restates(self, interval: Interval) -> bool:
        """True where old bars change (prices adjusted for each new split), so that all are fetched again."""
        return False
