"""Files in: what is recognised, what is refused, and that real candles come through exactly."""

import gzip
import io
import zipfile

import numpy as np
import polars as pl
import pytest

from longtape.core.errors import UserError
from longtape.market import archives
from longtape.market.files import read_bars
from longtape.market.trade_files import read_trades
from tests.shared_data import SHARED, shared

ROWS = [
    ("2024-01-31 22:00:00", 10.5, 11.25, 10.0, 11.0, 7.5),
    ("2024-01-31 23:00:00", 11.0, 12.0, 10.75, 11.5, 0.0),
    ("2024-02-01 00:00:00", 11.5, 11.75, 11.0, 11.25, 3.25),
]
TIMES = [1706738400000, 1706742000000, 1706745600000]
HEADER = "timestamp,open,high,low,close,volume"


def text(rows=ROWS, header=HEADER, separator=",", times=None):
    lines = [header] if header else []
    for i, row in enumerate(rows):
        cells = [str(times[i]) if times else row[0], *(str(x) for x in row[1:])]
        lines.append(separator.join(cells))
    return "\n".join(lines) + "\n"


def read(tmp_path, content, name="candles.csv", **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_bars(path, **{"symbol": "BTCUSDT", "interval": "1h", **options})


def assert_the_rows(bars):
    assert bars.timestamps.tolist() == TIMES
    assert bars.frame.select("open", "high", "low", "close", "volume").rows() == [row[1:] for row in ROWS]


DIALECTS = {
    "plain": text(),
    "semicolons": text(separator=";", header=HEADER.replace(",", ";")),
    "tabs": text(separator="\t", header=HEADER.replace(",", "\t")),
    "bars": text(separator="|", header=HEADER.replace(",", "|")),
    "decimal comma": text(separator=";", header=HEADER.replace(",", ";")).replace(".", ","),
    "title line": "https://www.example.org\n" + text(),
    "comments": "# fetched by hand\n# twice, or so\n" + text(),
    "blank lines": text().replace("\n", "\n\n"),
    "windows": text().replace("\n", "\r\n"),
    "byte order mark": b"\xef\xbb\xbf" + text().encode(),
    "utf-16": text().encode("utf-16"),
    "quoted": "\n".join(",".join(f'"{c}"' for c in line.split(",")) for line in text().splitlines()),
    "other names": text(header="Open time,Open,High,Low,Close,Volume"),
    "short names": text(header="t_ignored,o,h,l,c,v").replace("t_ignored", "time"),
    "milliseconds": text(times=TIMES),
    "seconds": text(times=[t // 1000 for t in TIMES]),
    "fractional seconds": text(times=[f"{t // 1000}.000" for t in TIMES]),
    "microseconds": text(times=[t * 1000 for t in TIMES]),
    "nanoseconds": text(times=[t * 10**6 for t in TIMES]),
    "no header": text(header=None, times=TIMES),
    "T and Z": text().replace(" ", "T").replace(":00,", ":00Z,"),
    "offset": text([("2024-02-01 00:00:00+02:00", *ROWS[0][1:]), ("2024-02-01 01:00:00+02:00", *ROWS[1][1:]),
                    ("2024-02-01 02:00:00+02:00", *ROWS[2][1:])]),
    "day first with dots": text(times=["31.01.2024 22:00:00.000", "31.01.2024 23:00:00.000",
                                       "01.02.2024 00:00:00.000"]),
    "day first seen": text(times=["31/01/2024 22:00", "31/01/2024 23:00", "01/02/2024 00:00"]),
    "month first seen": text(times=["01/31/2024 10:00 PM", "01/31/2024 11:00 PM", "02/01/2024 12:00 AM"]),
    "compact": text(times=["20240131 220000", "20240131 230000", "20240201 000000"]),
    "two columns": "\n".join(line.replace(" ", "\t").replace(",", "\t") for line in text(
        header="<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>").splitlines()),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_common_dialects_are_recognised(tmp_path, dialect):
    assert_the_rows(read(tmp_path, DIALECTS[dialect]))


def test_compressed_files_are_looked_through(tmp_path):
    assert_the_rows(read(tmp_path, gzip.compress(text().encode()), "candles.csv.gz"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("BTCUSDT-1h.csv", text(header=None, times=TIMES))
    assert_the_rows(read(tmp_path, packed.getvalue(), "candles.zip"))


def test_a_binance_archive_without_header_keeps_its_turnover(tmp_path):
    lines = [f"{t},{o},{h},{low},{c},{v},{t + 3599999},{v * 2},308,1,2,0" for t, (_, o, h, low, c, v) in
             zip(TIMES, ROWS, strict=True)]  # fmt: skip
    bars = read(tmp_path, "\n".join(lines))
    assert_the_rows(bars)
    assert bars.frame["turnover"].to_list() == [15.0, 0.0, 6.5]


def test_columns_and_time_format_named_by_the_user(tmp_path):
    content = text(header="when,a,b,c,d,e", times=["02-01-2024 22h", "02-01-2024 23h", "03-01-2024 00h"])
    names = {"timestamp": "when", "open": "a", "high": "b", "low": "c", "close": "d", "volume": "e"}
    bars = read(tmp_path, content.replace("h,", "h00,"), columns=names, time_format="%d-%m-%Y %Hh%M")
    assert bars.frame["timestamp"].dt.strftime("%Y-%m-%d %H")[0] == "2024-01-02 22"
    assert bars.frame["close"].to_list() == [row[4] for row in ROWS]


def test_volume_of_the_base_coin_is_the_volume(tmp_path):
    content = "unix,date,symbol,open,high,low,close,Volume USDT,Volume BTC\n" + "".join(
        f"{t},{row[0]},BTC/USDT,{row[1]},{row[2]},{row[3]},{row[4]},999,{row[5]}\n"
        for t, row in zip(TIMES, ROWS, strict=True)
    )
    assert_the_rows(read(tmp_path, content))


def test_rows_that_run_backwards_need_the_word(tmp_path):
    content = text(ROWS[::-1])
    with pytest.raises(UserError, match="--newest-first"):
        read(tmp_path, content)
    assert_the_rows(read(tmp_path, content, newest_first=True))
    with pytest.raises(UserError, match="not newest first"):
        read(tmp_path, text(), newest_first=True)


def test_parquet_in_any_column_form(tmp_path):
    frame = pl.read_csv(io.StringIO(text()), try_parse_dates=True)
    for times in (
        frame["timestamp"],
        frame["timestamp"].dt.replace_time_zone("America/New_York"),
        pl.Series("timestamp", TIMES),
        frame["timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%S"),
    ):
        path = tmp_path / "candles.parquet"
        frame.with_columns(times).write_parquet(path)
        bars = read_bars(path, symbol="BTCUSDT", interval="1h")
        shift = 5 * 3_600_000 if getattr(times.dtype, "time_zone", None) else 0
        assert bars.timestamps.tolist() == [t + shift for t in TIMES]


BAD = {
    "mixed zones": (text(times=["2024-01-31T22:00Z", "2024-01-31T23:00", "2024-02-01T00:00"]), "row 2.*time zone"),
    "mixed offsets": (text(times=["2024-01-31T22:00+00:00", "2024-01-31T23:00+01:00", "2024-02-01T00:00Z"]),
                      "row 2.*time zone"),
    "mixed units": (text(times=[TIMES[0], TIMES[1] // 1000, TIMES[2]]), "row 2.*unit"),
    "unsorted": (text([ROWS[0], ROWS[2], ROWS[1]]), "row 3.*sort by time"),
    "duplicate": (text([ROWS[0], ROWS[1], ROWS[1]]), "row 3.*duplicate"),
    "NaN": (text([ROWS[0], ("2024-01-31 23:00:00", "NaN", 1, 1, 1, 1)]), "row 2.*'open'.*NaN"),
    "empty cell": (text([ROWS[0], ("2024-01-31 23:00:00", 1, 1, 1, "", 1)]), "row 2.*'close'.*empty"),
    "not a number": (text([ROWS[0], ("2024-01-31 23:00:00", 1, 1, "one", 1, 1)]), "row 2.*'low'.*'one'"),
    "missing column": ("timestamp,open,high,low,volume\n2024-01-31,1,1,1,1\n", "'close' is missing.*--close-column"),
    "zero price": (text([("2024-01-31 22:00:00", 0.0, 1, 0.0, 1, 1)]), "row 1.*'open'.*above zero"),
    "high below low": (text([("2024-01-31 22:00:00", 1.5, 1, 2, 1.5, 1)]), "row 1.*high below low"),
    "negative volume": (text([("2024-01-31 22:00:00", 1, 1, 1, 1, -1)]), "row 1.*negative volume"),
    "infinite": (text([("2024-01-31 22:00:00", "inf", 1, 1, 1, 1)]), "row 1.*'open'.*finite"),
    "no such day": (text(times=["2024-02-30", "2024-03-01", "2024-03-02"]), "row 1.*no such time"),
    "no such hour": (text(times=["2024-02-20 25:00", "2024-03-01 00:00", "2024-03-02 00:00"]), "row 1.*no such time"),
    "day or month": (text(times=["01/02/2024", "02/02/2024", "03/02/2024"]), "day or month first"),
    "not a time": (text(times=["yesterday", "today", "tomorrow"]), "row 1.*'yesterday'"),
    "no time": (text(times=[TIMES[0], "", TIMES[2]]), "row 2 has no time"),
    "wrong interval": (text(times=[t // 1000 - t // 1000 % 86400 + i * 86400 for i, t in enumerate(TIMES)]),
                       "interval"),
    "no rows": (HEADER + "\n", "no row"),
    "empty": ("", "empty"),
    "ragged": (text() + "1,2,3,4,5,6,7,8\n", "not a readable table"),
    "not text": (b"\x80\x81\x82\xff,\n", "not text"),
    "four columns": ("1706738400000,1,2,3\n", "no header, 4 columns.*--columns"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_one_clear_line_for_what_cannot_be_read(tmp_path, case):
    content, words = BAD[case]
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, content)
    assert "candles.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_rows_own_offset_when_the_format_says_so(tmp_path):
    content = text(times=["2024-01-31T22:00+0000", "2024-02-01T00:00+0100", "2024-02-01T00:00+0000"])
    assert_the_rows(read(tmp_path, content, time_format="%Y-%m-%dT%H:%M%z"))


def test_wrong_words_from_the_user(tmp_path):
    for options, words in [
        ({"columns": {"close": "nowhere"}}, "no column 'nowhere'"),
        ({"columns": {"price": "close"}}, "'price' is not one of our columns"),
        ({"time_format": "%d.%m.%Y"}, "does not fit the format"),
        ({"time_format": "ms"}, "not a number of ms"),
        ({"interval": "5x"}, "interval '5x'"),
        ({"symbol": "../etc"}, "symbol"),
    ]:
        with pytest.raises(UserError, match=words):
            read(tmp_path, text(), **options)
    with pytest.raises(UserError, match="no such file"):
        read_bars(tmp_path / "nowhere.csv", symbol="BTCUSDT", interval="1h")


def test_a_cut_parquet_file_is_named(tmp_path):
    path = tmp_path / "candles.parquet"
    pl.read_csv(io.StringIO(text()), try_parse_dates=True).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"candles\.parquet: not a readable Parquet"):
        read_bars(path, symbol="BTCUSDT", interval="1h")


def test_long_tables_give_the_rows_of_one_symbol(tmp_path):
    frame = pl.read_csv(io.StringIO(text()), try_parse_dates=True)
    long = pl.concat(
        [frame.with_columns(symbol=pl.lit(s), close=pl.col("close") + i) for i, s in enumerate("AB")]
    )
    path = tmp_path / "long.parquet"
    long.with_columns(pl.col("symbol").cast(pl.Categorical)).write_parquet(path)
    assert read_bars(path, symbol="B", interval="1h").frame["close"].to_list() == [12.0, 12.5, 12.25]
    with pytest.raises(UserError, match="no row of 'C'; its symbols are A, B"):
        read_bars(path, symbol="C", interval="1h")


def test_archives_do_not_unfold_without_limit(tmp_path):
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"0" * (8 << 20)))
    with pytest.raises(UserError, match="unpacks to more than"):
        archives.read_bytes(bomb, limit=1 << 20)
    with pytest.raises(UserError, match="unpacks to more than"):
        list(archives.read_lines(bomb, limit=1 << 20))
    packed = tmp_path / "bomb.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big", b"0" * (8 << 20))
    with pytest.raises(UserError, match="unpacks to more than"):
        archives.read_bytes(packed, limit=1 << 20)


def test_archives_that_are_broken_or_point_outside(tmp_path):
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(text().encode() * 50)[:-30])
    with pytest.raises(UserError, match="broken or cut off"):
        archives.read_bytes(cut)
    for name, words in [("../evil.csv", "outside"), ("/evil.csv", "outside")]:
        path = tmp_path / "evil.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, text())
        with pytest.raises(UserError, match=words):
            archives.read_bytes(path)
    path = tmp_path / "not.zip"
    path.write_bytes(b"PK nothing of the kind")
    with pytest.raises(UserError, match="not a readable ZIP"):
        archives.read_bytes(path)


CANDLES = sorted(
    str(p.relative_to(SHARED)) for p in [*SHARED.glob("candles_*/*.parquet"), *SHARED.glob("fx_*/*.parquet")]
)


def interval_of(name):
    return next(part for part in reversed(name.replace(".", "_").replace("/", "_").split("_")) if part in
                ("1m", "5m", "1h", "1d"))  # fmt: skip


@pytest.mark.parametrize("name", CANDLES)
def test_real_candles_import_exactly(name):
    path = shared(name)
    calendar = "24/7" if name.startswith("candles") else "XNYS"
    bars = read_bars(path, symbol="X", interval=interval_of(name), calendar=calendar)
    assert bars.frame.equals(pl.read_parquet(path))


def test_real_candles_survive_the_way_through_csv(tmp_path):
    path = shared("candles_5m_bybit_spot/ETHUSDT.parquet")
    pl.read_parquet(path).write_csv(tmp_path / "eth.csv")
    bars = read_bars(tmp_path / "eth.csv", symbol="ETHUSDT", interval="5m")
    assert bars.frame.equals(pl.read_parquet(path))


def test_real_stocks_and_their_empty_rows():
    path = shared("stocks_1d/us_stocks_2012-2017.parquet")
    table = pl.read_parquet(path)
    apple = read_bars(path, symbol="AAPL", interval="1d", category="stock", calendar="XNYS")
    expected = table.filter(pl.col("symbol") == "AAPL")
    assert len(apple) == 1258
    assert np.array_equal(apple.column("adj_close"), expected["adj_close"].to_numpy())
    for symbol in ("PTR", "REX", "SNP"):
        with pytest.raises(
            UserError, match=rf"rows of {symbol}: row 961 \(2016-06-29 00:00Z\).*--drop-empty"
        ):
            read_bars(path, symbol=symbol, interval="1d", calendar="XNYS")
        assert len(read_bars(path, symbol=symbol, interval="1d", calendar="XNYS", drop_empty=True)) == 1257


def test_real_trades_come_through_exactly():
    for name, size, ids in [
        ("trades/BTCUSDT_binance_perp_2024-08-08.parquet", "size", "trade_id"),
        ("trades/XRPETH_binance_2019-10.parquet", "amount", "trade_id"),
        ("trades/SPY_2013-10-08.parquet", "size", None),
    ]:
        expected, got = pl.read_parquet(shared(name)), read_trades(shared(name))
        assert got["timestamp"].dt.timestamp("ms").equals(expected["timestamp"].dt.timestamp("ms"))
        assert got["price"].equals(expected["price"])
        assert got["size"].equals(expected[size].cast(pl.Float64), check_names=False)
        if ids:
            assert got["id"].cast(pl.Int64).equals(expected[ids], check_names=False)
            assert set(got["side"]) == {"buy", "sell"}


def test_trades_of_the_archives(tmp_path):
    binance = tmp_path / "BTCUSDT-trades-2024-01-01.csv.gz"
    binance.write_bytes(
        gzip.compress(
            b"7,42000.5,0.25,10500,1704067200000,true,true\n8,42001,1,42001,1704067200003,false,true\n"
        )
    )
    frame = read_trades(binance, "BTCUSDT")
    assert frame.select("price", "size", "id", "side").rows() == [
        (42000.5, 0.25, "7", "sell"),
        (42001.0, 1.0, "8", "buy"),
    ]
    spot = tmp_path / "BTCUSDT_2024-01-01.csv"
    spot.write_text(
        "id,timestamp,price,volume,side\n2,1704067200500,42001,0.2,sell\n1,1704067200100,42000,0.1,buy\n"
    )
    frame = read_trades(spot)
    assert frame["id"].to_list() == ["1", "2"]
    assert frame["timestamp"].dt.timestamp("us").to_list() == [1704067200100000, 1704067200500000]


@pytest.mark.parametrize(
    ("content", "words"),
    [("timestamp,symbol,price,size\n1704067200,ETHUSDT,1,1\n", "trades of ETHUSDT, not of 'BTCUSDT'"),
     ("timestamp,price\n1704067200,1\n", "'size' is missing"),
     ("timestamp,price,size\n1704067200,x,1\n", "row 1, column 'price': 'x'"),
     ("timestamp,price,size\n1704067200,1,nan\n", "row 1, column 'size'"),
     ("timestamp,price,size\n1704067200,1,1\n1704067200000,1,1\n", "row 2.*unit"),
     ("timestamp,price,size\n1704067200,1,1\n1704067202,1,1\n1704067201,1,1\n", "row 3 is earlier"),
     ("timestamp,price,size\n", "no trade"),
     ("1,2,3\n", "no header")],
)  # fmt: skip
def test_trades_that_cannot_be_read(tmp_path, content, words):
    path = tmp_path / "trades.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_trades(path, "BTCUSDT")
