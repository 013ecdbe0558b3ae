"""A partition's file: any byte that was changed or lost is seen."""

import io

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtape.core.errors import UserError
from longtape.market.codec import DamagedFile, decode, encode, time_range
from tests.market.store_data import START, make_bars, make_trades

FRAME = make_bars(0, 20).frame
DATA = encode(FRAME, "bybit/linear/BTCUSDT/1h")


def decoded(data: bytes) -> pl.DataFrame:
    return decode(pa.BufferReader(data), "the file")


@pytest.mark.parametrize("frame", [FRAME, make_trades(300), FRAME.with_columns(note=pl.lit(None, pl.String))])
def test_round_trip(frame):
    assert decoded(encode(frame, "x")).equals(frame)


def test_any_other_reader_reads_it():
    assert pl.from_arrow(pq.read_table(io.BytesIO(DATA))).equals(FRAME)
    assert pl.read_parquet(DATA).equals(FRAME)


def test_first_and_last_time_come_from_the_footer():
    hour = 3_600_000
    assert time_range(pa.BufferReader(DATA), "the file") == (20, START, START + 19 * hour)


def test_a_footer_larger_than_usual(monkeypatch):
    monkeypatch.setattr("longtape.market.codec._USUAL_FOOTER", 100)
    assert decoded(DATA).equals(FRAME)


def test_every_changed_byte_is_seen():
    for at in range(len(DATA)):
        changed = bytearray(DATA)
        changed[at] ^= 0x10
        with pytest.raises(DamagedFile):
            decoded(bytes(changed))


def test_every_cut_is_seen():
    for length in range(len(DATA)):
        with pytest.raises(DamagedFile):
            decoded(DATA[:length])


def test_a_changed_footer_is_seen_without_reading_the_body():
    changed = bytearray(DATA)
    changed[-200] ^= 0x01
    with pytest.raises(DamagedFile, match="footer"):
        time_range(pa.BufferReader(bytes(changed)), "the file")


def test_foreign_parquet_is_the_users_mistake():
    foreign = io.BytesIO()
    FRAME.write_parquet(foreign)
    with pytest.raises(UserError, match="the file: not written by longtape"):
        decoded(foreign.getvalue())
