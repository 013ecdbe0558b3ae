"""Books and trades whose values are known, for tests that change one cell and expect it to be named."""

import polars as pl

from longtape.core.instrument import Instrument

XRP = Instrument("bybit", "linear", "XRPUSDT")
START = 1_733_011_200_000_000  # 2024-12-01, µs


def book_frame(n: int = 6) -> pl.DataFrame:
    """`n` books of two levels, every second pair of rows at the same moment; the last row is one level deep."""
    rows = range(n)
    deep = [i < n - 1 for i in rows]
    return pl.DataFrame(
        {
            "timestamp": pl.Series([START + i // 2 * 1_500 for i in rows]).cast(pl.Datetime("us", "UTC")),
            "event_time": pl.Series([START // 1_000 + 2 * i for i in rows]).cast(pl.Datetime("ms", "UTC")),
            "received_ns": [None] * n,
            "update_id": [7 + i for i in rows],
            "bid_price_1": [1.0 + i / 100 for i in rows],
            "bid_size_1": [5.0] * n,
            "ask_price_1": [1.1 + i / 100 for i in rows],
            "ask_size_1": [4.0] * n,
            "bid_price_2": [0.9 if there else None for there in deep],
            "bid_size_2": [3.0 if there else None for there in deep],
            "ask_price_2": [1.3 if there else None for there in deep],
            "ask_size_2": [2.0 if there else None for there in deep],
        },
        schema_overrides={"received_ns": pl.Int64},
    )


def trade_frame(n: int = 6) -> pl.DataFrame:
    """`n` trades, every second pair of rows at the same moment."""
    return pl.DataFrame(
        {
            "timestamp": pl.Series([START + i // 2 * 1_500 for i in range(n)]).cast(pl.Datetime("us", "UTC")),
            "price": [1.0 + i / 100 for i in range(n)],
            "size": [2.0] * n,
            "id": [str(100 + i) for i in range(n)],
            "side": ["buy", "sell"] * (n // 2),
        }
    )


def with_cell(frame: pl.DataFrame, name: str, row: int, value: object) -> pl.DataFrame:
    """The frame with one cell changed."""
    values = frame[name].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(name, values, dtype=frame.schema[name], strict=False))
