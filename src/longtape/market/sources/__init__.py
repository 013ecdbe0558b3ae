"""Where market data come from: one file for each service, one line here for each name."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import TYPE_CHECKING, Protocol

from longtape.core.errors import UserError, unknown_name
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


def open_source(name: str, base_url: str | None = None) -> Source:
    """The source of that name; `ccxt-kraken` is ccxt's exchange kraken. `base_url`: where it is, if not at its usual.

    The name is also what the store has as an instrument's source.
    """
    kind, _, exchange = name.partition("-")
    if (kind == "ccxt") != bool(exchange):
        raise unknown_name("source", name, [*(set(SOURCES) - {"ccxt"}), "ccxt-EXCHANGE (as in ccxt-kraken)"])
    made = SOURCES.load(kind)
    if base_url is not None and "base_url" not in signature(made).parameters:
        raise UserError(f"{name} takes no base URL")
    options = {} if base_url is None else {"base_url": base_url}
    return made(exchange, **options) if exchange else made(**options)


class Source(Protocol):
    """What gives candles; it may also have `funding`, `trades` and `order_book`, as Bybit has.

    Made by `open_source`; safe to call from several threads. Raises UserError for what
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

    def refuse_interval(self, interval: Interval) -> None:
        """UserError, before anything is asked for, for bars that the service does not have."""

    def restates(self, interval: Interval) -> bool:
        """True where old bars change (prices adjusted for each new split), so that all are fetched again."""
        return False
