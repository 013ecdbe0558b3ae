"""Files of candles: container → dialect → header → columns → times → numbers → bars.

| step | file | what it settles |
|---|---|---|
| container | `containers` | text, Parquet, Feather, JSON or a workbook, also compressed |
| dialect | `dialects` | the mark between fields, titles above, footers below |
| header | `headers` | names of columns; a header of fields over symbols |
| columns | `columns`, `layouts` | which column is what; without a header, which program's order it is |
| times | `market.timestamps`, `stamps` | UTC; opens or closes; sessions of days |
| numbers | `numbers` | the decimal mark, thousands, sizes |
| bars | `candles` | all of it, one symbol after the other, checked |
"""

from longtape.market.files.candles import Read, find_files, only_symbol, read_bars, read_files, read_raw
from longtape.market.files.config import FileConfig, file_config
from longtape.market.files.containers import read_table
from longtape.market.files.numbers import numbers
from longtape.market.files.plain_tables import PARQUET, read_parquet, refuse_other_symbols

__all__ = [
    "PARQUET",
    "FileConfig",
    "Read",
    "file_config",
    "find_files",
    "numbers",
    "only_symbol",
    "read_bars",
    "read_files",
    "read_parquet",
    "read_raw",
    "read_table",
    "refuse_other_symbols",
]
