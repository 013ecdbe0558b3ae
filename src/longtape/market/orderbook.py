"""Order books rebuilt from a snapshot and its updates, and the logs that hold them.

A rebuilt book is a frame with one row per update: `timestamp` (the matching engine's time where the message has one,
else the event's; UTC µs), `event_time` (UTC ms), `received_ns` (the recorder's clock, null where there is none),
`update_id`, and `bid_price_i, bid_size_i, ask_price_i, ask_size_i` for i = 1 … depth, best first, null where the book
is not that deep.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from longtape.core.clock import iso
from longtape.core.errors import UserError
from longtape.market import archives

Levels = Sequence[tuple[float, float]]
DEPTH = 20
CROSSED = "the best bid is not below the best ask"


class Update(NamedTuple):
    """One message about a book: a snapshot, or levels that changed (size 0: the level is gone).

    `first` and `last` are the ids of the changes in it; `previous`, where the service gives it, is the `last` of the
    message before. Times are UTC ms, `received` is in ns.
    """

    time: int
    event_time: int
    received: int | None
    is_snapshot: bool
    first: int
    last: int
    previous: int | None
    bids: Levels
    asks: Levels


@dataclass(frozen=True)
class ChainBreak:
    """A place where the book cannot be known: until the next snapshot there are no rows."""

    time: int
    update_id: int
    reason: str

    def __str__(self) -> str:
        return f"{iso(self.time)}, update {self.update_id}: {self.reason}"


@dataclass(frozen=True)
class Rebuilt:
    """The book after each update, and where the chain of updates was broken."""

    frame: pl.DataFrame
    breaks: tuple[ChainBreak, ...]


@dataclass
class _Side:
    """Prices in order, best first (`sign` −1 turns bids round), and the size at each."""

    sign: float
    keys: list[float] = field(default_factory=list)
    sizes: dict[float, float] = field(default_factory=dict)

    def clear(self) -> None:
        self.keys.clear()
        self.sizes.clear()

    def update(self, levels: Levels) -> None:
        keys, sizes, sign = self.keys, self.sizes, self.sign
        for price, size in levels:
            key = sign * price
            if size:
                if key not in sizes:
                    keys.insert(bisect_left(keys, key), key)
                sizes[key] = size
            elif sizes.pop(key, None) is not None:
                del keys[bisect_left(keys, key)]

    def top(self, depth: int) -> list[tuple[float, float]]:
        return [(self.sign * key, self.sizes[key]) for key in self.keys[:depth]]


class OrderBook:
    """Both sides of a book, kept sorted."""

    def __init__(self) -> None:
        self._bids, self._asks = _Side(-1.0), _Side(1.0)

    def reset(self, bids: Levels, asks: Levels) -> None:
        """Forget everything and take a snapshot."""
        self._bids.clear()
        self._asks.clear()
        self.update(bids, asks)

    def update(self, bids: Levels, asks: Levels) -> None:
        """Take changed levels; a size of 0 removes one, also one that is not there."""
        self._bids.update(bids)
        self._asks.update(asks)

    def top(self, depth: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """The best `depth` bids and asks as (price, size), best first."""
        return self._bids.top(depth), self._asks.top(depth)

    @property
    def is_crossed(self) -> bool:
        """True if the best bid is not below the best ask."""
        bids, asks = self._bids.keys, self._asks.keys
        return bool(bids and asks) and -bids[0] >= asks[0]


def rebuild(updates: Iterable[Update], depth: int = DEPTH) -> Rebuilt:
    """Apply updates in order and give the best `depth` levels after each.

    Updates before a snapshot are kept back, and those that it does not contain are applied to it without giving rows
    (a recorder asks for the snapshot while the stream runs, and knows the book only when it comes). A snapshot inside
    the stream, or an update with id 1 (Bybit restarted its service), starts anew. A missing update or a crossed book is
    a break: nothing is given until the next snapshot. UserError if there is no snapshot at all.
    """
    builder = _Rebuilder(depth)
    for update in updates:
        builder.take(update)
    return builder.result()


class _Rebuilder:
    def __init__(self, depth: int) -> None:
        self.depth, self.book = depth, OrderBook()
        self.rows: list[tuple[int, int, int | None, int]] = []
        self.levels: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        self.breaks: list[ChainBreak] = []
        self.waiting: list[Update] | None = []
        self.last: int | None = None
        self.joined = False

    def take(self, update: Update) -> None:
        if update.is_snapshot or update.last == 1:
            self._start(update)
        elif self.waiting is not None:
            self.waiting.append(update)
        else:
            self._advance(update)

    def _start(self, snapshot: Update) -> None:
        held, self.waiting = self.waiting or [], None
        self.last, self.joined = snapshot.last, False
        self.book.reset(snapshot.bids, snapshot.asks)
        # A stream's own snapshot (Bybit) is a row; one asked for beside the stream is only where the updates begin.
        if snapshot.first == snapshot.last:
            self._emit_row(snapshot)
        for update in held:
            if self.waiting is None and self._apply(update) and self.book.is_crossed:
                self._break_chain(update, CROSSED)

    def _advance(self, update: Update) -> None:
        if self._apply(update):
            self._emit_row(update)

    def _apply(self, update: Update) -> bool:
        """True if the update took the book further; False for an old one and for a break."""
        if self.last is None or update.last < self.last:
            return False
        if update.last == self.last and (update.previous is None or self.joined):
            return False
        if not self._continues(update, self.last):
            expected = f"{self.last} before it" if update.previous is not None else f"{self.last + 1} next"
            found = update.previous if update.previous is not None else update.first
            self._break_chain(update, f"updates are missing: expected {expected}, found {found}")
            return False
        self.last, self.joined = update.last, True
        self.book.update(update.bids, update.asks)
        return True

    def _continues(self, update: Update, last: int) -> bool:
        if not self.joined and update.first <= last + 1 <= update.last + 1:
            return True  # the first after a snapshot only has to contain or touch it
        return update.previous == last if update.previous is not None else update.first == last + 1

    def _emit_row(self, update: Update) -> None:
        if self.book.is_crossed:
            self._break_chain(update, CROSSED)
            return
        self.rows.append((update.time, update.event_time, update.received, update.last))
        self.levels.append(_flatten_levels(*self.book.top(self.depth), self.depth))

    def _break_chain(self, update: Update, reason: str) -> None:
        self.breaks.append(ChainBreak(update.time, update.last, reason))
        self.waiting = []

    def result(self) -> Rebuilt:
        if self.last is None:
            raise UserError(
                "there is no snapshot of the book among the messages; updates alone are not a book"
            )
        levels = np.array(self.levels) if self.levels else np.empty((0, 4 * self.depth))
        return Rebuilt(_frame(self.rows, levels, self.depth), tuple(self.breaks))


def _flatten_levels(bids: Levels, asks: Levels, depth: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    row = np.full((depth, 4), np.nan)
    if bids:
        row[: len(bids), :2] = bids
    if asks:
        row[: len(asks), 2:] = asks
    return row.reshape(-1)


def level_columns(depth: int) -> list[str]:
    """`bid_price_1, bid_size_1, ask_price_1, ask_size_1, bid_price_2, …`."""
    return [
        f"{side}_{what}_{i + 1}"
        for i in range(depth)
        for side in ("bid", "ask")
        for what in ("price", "size")
    ]


def _frame(
    rows: list[tuple[int, int, int | None, int]],
    levels: np.ndarray[Any, np.dtype[np.float64]],
    depth: int,
) -> pl.DataFrame:
    schema = {"timestamp": pl.Int64, "event_time": pl.Int64, "received_ns": pl.Int64, "update_id": pl.Int64}
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        (pl.col("timestamp") * 1_000).cast(pl.Datetime("us", "UTC")),
        pl.col("event_time").cast(pl.Datetime("ms", "UTC")),
    )
    columns = [pl.Series(name, levels[:, i]).fill_nan(None) for i, name in enumerate(level_columns(depth))]
    return frame.hstack(columns)


def book_row(time: int, update_id: int, bids: Levels, asks: Levels, depth: int) -> pl.DataFrame:
    """One snapshot (UTC ms) as a frame of one row, sorted and cut to `depth`."""
    book = OrderBook()
    book.reset(bids, asks)
    return _frame([(time, time, None, update_id)], _flatten_levels(*book.top(depth), depth)[None], depth)


def read_log(path: str | Path, symbol: str | None = None) -> Iterator[Update]:
    """Messages of either kind of log, told apart by their first character. UserError for another symbol's log."""
    first = next(archives.read_lines(path), b"")
    if first[:1].isdigit():
        return read_binance(path, symbol)
    return read_bybit(path, symbol)


def read_bybit(path: str | Path, symbol: str | None = None) -> Iterator[Update]:
    """Messages of a Bybit order-book archive (`…_ob500.data.zip`: JSON lines, also unpacked or .gz).

    `cts` is the matching engine's time; `u` grows by one from message to message.
    """
    for number, message in _messages(path):
        try:
            data, kind = message["data"], message["type"]
            if symbol not in (None, data["s"]):
                raise UserError(f"{path}: line {number} is about {data['s']}, not about '{symbol}'")
            if kind not in ("snapshot", "delta"):
                raise ValueError(kind)
            update_id = int(data["u"])
            yield Update(
                int(message.get("cts", message["ts"])), int(message["ts"]), None, kind == "snapshot",
                update_id, update_id, None, _levels(data["b"]), _levels(data["a"]),
            )  # fmt: skip
        except UserError:
            raise
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: line {number} is not a Bybit order-book message") from None


def read_binance(path: str | Path, symbol: str | None = None) -> Iterator[Update]:
    """Book messages of a Binance depth log: per line the receive time in ns, a blank, the message of a stream.

    Depth updates and the REST snapshot are taken; trades and best quotes are passed over. With several symbols in the
    log, name one. Futures messages carry `pu`, the id of the update before, and `T`, the matching engine's time; spot
    messages neither (https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams).
    """
    for number, received, message in _stamped(path):
        data = message.get("data", message)
        try:
            if "lastUpdateId" in data:
                yield _binance_snapshot(received, data)
            elif data.get("e") == "depthUpdate" and symbol in (None, data["s"]):
                yield _binance_update(received, data)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: line {number} is not a Binance depth message") from None


def read_binance_trades(path: str | Path, symbol: str | None = None) -> pl.DataFrame:
    """Trades of a Binance log: timestamp (UTC µs), price, size, id, side of the taker, received_ns."""
    rows = []
    for number, received, message in _stamped(path):
        data = message.get("data", message)
        try:
            if data.get("e") == "trade" and symbol in (None, data["s"]):
                side = "sell" if data["m"] else "buy"
                row = (
                    int(data["T"]) * 1_000,
                    float(data["p"]),
                    float(data["q"]),
                    str(data["t"]),
                    side,
                    received,
                )
                rows.append(row)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: line {number} is not a Binance trade") from None
    schema = dict(zip(("timestamp", "price", "size", "id", "side", "received_ns"),
                      (pl.Int64, pl.Float64, pl.Float64, pl.String, pl.String, pl.Int64), strict=True))  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        pl.col("timestamp").cast(pl.Datetime("us", "UTC"))
    )


def _binance_snapshot(received: int, data: dict[str, Any]) -> Update:
    last = int(data["lastUpdateId"])
    event = int(data.get("E", received // 1_000_000))
    return Update(
        int(data.get("T", event)), event, received, True, last + 1, last, None,
        _levels(data["bids"]), _levels(data["asks"]),
    )  # fmt: skip


def _binance_update(received: int, data: dict[str, Any]) -> Update:
    previous = int(data["pu"]) if "pu" in data else None
    return Update(
        int(data.get("T", data["E"])), int(data["E"]), received, False, int(data["U"]), int(data["u"]), previous,
        _levels(data["b"]), _levels(data["a"]),
    )  # fmt: skip


def _levels(pairs: Any) -> Levels:
    return [(float(price), float(size)) for price, size in pairs]


def _messages(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(archives.read_lines(path), 1):
        if line.strip():
            yield number, _parsed(line, path, number)


def _stamped(path: str | Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for number, line in enumerate(archives.read_lines(path), 1):
        stamp, _, text = line.partition(b" ")
        if not stamp:
            continue
        if not stamp.isdigit():
            raise UserError(f"{path}: line {number} does not begin with a receive time in ns")
        yield number, int(stamp), _parsed(text, path, number)


def _parsed(line: bytes, path: str | Path, number: int) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise UserError(f"{path}: line {number} is not a JSON message; the file may be cut off")
    return message
