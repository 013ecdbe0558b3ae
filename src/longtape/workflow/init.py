"""`longtape init`: an experiment file for the user's own candles, with what can be seen in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from longtape.core.calendars import usual_step
from longtape.core.clock import ALWAYS_OPEN, DAY, HOUR, WEEKDAYS_ONLY, Interval, iso
from longtape.core.errors import UserError
from longtape.core.files import write_text
from longtape.core.instrument import PERPETUALS
from longtape.experiment import as_overrides, load_experiment, with_overrides
from longtape.market.bars import Bars
from longtape.market.files import FileConfig, read_files
from longtape.market.files.candles import find_files, read_raw
from longtape.market.files.config import file_config
from longtape.market.gaps import missing_times
from longtape.market.series import usual_name
from longtape.workflow.data import RunData

SCHEMA = files("longtape.workflow") / "experiment.schema.json"
_FEWEST = 240  # bars, of which a model can be trained, validated and tested at all
_MANY = 3_000
_WINDOWS = 2_000  # training windows of an epoch
_MONTH = 28 * DAY


@dataclass(frozen=True)
class Seen:
    """Candles of a file, and what was found out about them."""

    path: str
    read: FileConfig
    bars: Sequence[Bars]

    @property
    def first(self) -> Bars:
        """Of the first symbol, after which lengths are chosen."""
        return self.bars[0]

    @property
    def missing(self) -> int:
        """Bars that are missing while the market was open, and of several symbols those that not all have."""
        times = [one.timestamps for one in self.bars]
        gaps = sum(
            len(missing_times(one.timestamps, one.interval, one.instrument.calendar)) for one in self.bars
        )
        return gaps + sum(len(np.setxor1d(times[0], other)) for other in times[1:])

    def has(self, column: str) -> bool:
        """True where every bar of every symbol has a value in the column."""
        return all(one.frame[column].null_count() == 0 for one in self.bars)


def init(
    source: str | Path,
    out: Path,
    symbol: str | None = None,
    interval: str | None = None,
    category: str = "spot",
    calendar: str | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Write an experiment file `out` for the candles of a file, a folder or a pattern; returns what was seen, as text.

    `overrides` say how the file is written (`data.read.stamp=close`). UserError where `out` is there already, the
    candles cannot be read or are too few, or the experiment would not run as it is written.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; name another file")
    seen = look_at(str(source), symbol, interval, category, calendar, _read_config(overrides))
    write_text(out, draft(seen, out))
    try:
        split = RunData.of(load_experiment(out)).split
    except UserError:
        out.unlink()
        raise
    parts = {
        "training": split.train,
        "validation": split.validation,
        "calibration": split.calibration,
        "test": split.test,
    }
    return "\n".join(
        [*_facts(seen), "windows: " + ", ".join(f"{len(rows):,} {name}" for name, rows in parts.items())]
    )


def look_at(
    path: str, symbol: str | None, interval: str | None, category: str, calendar: str | None, read: FileConfig
) -> Seen:
    """Read the candles of every symbol, or of one; what is not said is taken from them. UserError for too few bars."""
    raw = read_raw(find_files(path)[0][0], read)
    if symbol is None and "symbol" not in raw.columns and "{symbol}" not in path:
        symbol = _symbol_of(path)
    times = np.unique(raw["timestamp"].drop_nulls().dt.timestamp("ms").to_numpy())
    if len(times) < 2:
        raise UserError(f"{path}: there are not two bars in it")
    bar = Interval.parse(interval) if interval else interval_of(times)
    facts = {"category": category, "calendar": calendar or _calendar_of(times, bar)}
    found = read_files(path, symbol=symbol, interval=bar, config=read, **facts)
    bars = [one.bars for one in found]
    shortest = min(bars, key=len)
    if len(shortest) < _FEWEST:
        raise UserError(
            f"{path}: {shortest.symbol} has {len(shortest)} bars, and {_FEWEST} are the fewest to learn from"
        )
    return Seen(path, read, bars)


def interval_of(times: np.ndarray) -> Interval:
    """The length of a bar, as the distances between times tell it."""
    step = usual_step(times)
    return Interval.parse("1M") if step >= _MONTH else usual_name(Interval(step, ""))


def _calendar_of(times: np.ndarray, bar: Interval) -> str:
    """24/7 where there are bars on weekends, or longer than a day; else 24/5."""
    saturdays = ((times // DAY + 3) % 7 == 5).any()
    return ALWAYS_OPEN if saturdays or bar.milliseconds > DAY else WEEKDAYS_ONLY


def _symbol_of(path: str) -> str:
    """The beginning of the file's name: BTCUSDT of btcusdt_1h.csv."""
    found = re.match(r"[A-Za-z0-9]+", Path(path).name)
    return found[0].upper() if found else "MINE"


def _read_config(overrides: Sequence[str]) -> FileConfig:
    document: dict[str, Any] = with_overrides({}, as_overrides(overrides))
    data = document.pop("data", {})
    if document or not isinstance(data, dict) or set(data) - {"read"}:
        raise UserError("-o: says how the file is written, for example -o data.read.stamp=close")
    return file_config(**data.get("read", {}))


def draft(seen: Seen, out: Path) -> str:
    """The experiment file."""
    bars, count = seen.first, len(seen.first)
    lookback, horizon = lookback_of(count), horizon_of(bars.interval)
    train, validation = (_border(bars, share) for share in (0.7, 0.85))
    sparse = lookback >= 256
    stride = max(1, int(0.7 * count) // _WINDOWS)
    return "\n".join(
        [
            f"# yaml-language-server: $schema={SCHEMA}",
            f"# Begun by longtape init from {Path(seen.path).name}; longtape config {out.name} prints every key.",
            *(f"# {line}" for line in _facts(seen)),
            f"name: {_plain_name(bars.symbol)}",
            "seed: 0",
            *_data_lines(seen, out),
            f"features: {_flow(_features(seen))}",
            f"# The next {horizon} bars: where the price goes, and how much it moves.",
            f"targets: [return({horizon}), volatility({horizon})]",
            *_missing_lines(seen),
            "# Learnt until the first date; validated and calibrated until the second; what comes after is the test.",
            f"split: {{train_until: {train}, validation_until: {validation}}}",
            "model:",
            f"  lookback: {lookback}  # bars in a window",
            f"  attention: {'bigbird' if sparse else 'flash'}",
            *(["  attention_options: {block_size: 16, n_random: 1}"] if sparse else []),
            "  d_model: 32",
            "  n_heads: 2",
            "  n_layers: 2",
            f"training: {{epochs: 4, stride: {stride}, patience: 2}}"
            + (f"  # an epoch visits one window in {stride}" if stride > 1 else ""),
            *_backtest_lines(seen, horizon),
            "",
        ]
    )


def lookback_of(count: int) -> int:
    """A power of two of which the bars hold some twenty, from 16 to 512."""
    return int(2 ** np.clip(np.floor(np.log2(count / 20)), 4, 9))


def horizon_of(interval: Interval) -> int:
    """A day of bars within a day, an hour of very short ones, a week of days, else a month."""
    if interval.milliseconds < DAY:
        span = DAY if interval.milliseconds >= HOUR // 4 else HOUR
        return max(2, span // interval.milliseconds)
    return 5 if interval.milliseconds == DAY else 4


def _border(bars: Bars, share: float) -> str:
    """The open of a bar after a share of them, as a date where bars are of a day or many."""
    at = int(bars.timestamps[int(share * len(bars))])
    days = (int(bars.timestamps[-1]) - int(bars.timestamps[0])) / DAY
    return iso(at)[:10] if days > 60 else iso(at)[:16].replace(" ", "T")


def _facts(seen: Seen) -> list[str]:
    """What was seen, a line for each symbol."""
    ends = [(iso(int(one.timestamps[0])), iso(int(one.timestamps[-1]))) for one in seen.bars]
    return [
        f"{one.symbol}: {len(one):,} bars of {one.interval}, {first} to {last}"
        for one, (first, last) in zip(seen.bars, ends, strict=True)
    ]


def _data_lines(seen: Seen, out: Path) -> list[str]:
    bars = seen.first
    read = seen.read.model_dump(exclude_defaults=True)
    calendar = bars.instrument.calendar
    closed = "  # no weekends in it; of an exchange name its code (XNYS), which knows the holidays"
    return [
        "data:",
        "  source: file",
        f"  path: {_flow(_path_from(seen.path, out))}",
        *([f"  read: {_flow(read)}"] if read else []),
        f"  symbols: {_flow([one.symbol for one in seen.bars])}",
        f"  interval: {bars.interval}",
        f"  category: {bars.instrument.category}  # linear or inverse for a perpetual, stock, etf, fx, …",
        f"  calendar: {calendar}{closed if calendar == WEEKDAYS_ONLY else ''}",
    ]


def _path_from(path: str, out: Path) -> str:
    """Beside the experiment file by its name, else from the root."""
    folder, whole = out.resolve().parent, Path(path).absolute()
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)


def _features(seen: Seen) -> list[str]:
    found = ["log_return", "volatility(20)", "volatility(50)", "momentum(20)"]
    found += (
        ["rsi(14)"] if len(seen.first) >= _MANY else []
    )  # it forgets slowly: its warm-up takes hundreds of bars
    found += ["range"] if seen.has("high") and seen.has("low") else []
    found += ["volume_ratio(20)"] if seen.has("volume") else []
    step = seen.first.interval.milliseconds
    return [*found, *(["hour"] if step < DAY else []), *(["weekday"] if step <= DAY else [])]


def _missing_lines(seen: Seen) -> list[str]:
    if not seen.missing:
        return []
    return [
        f"# Bars missing while the market was open: {seen.missing:,}. The price stands there, with no volume; or drop.",
        "missing: forward_fill",
    ]


def _backtest_lines(seen: Seen, horizon: int) -> list[str]:
    funding = ", funding: excluded" if seen.first.instrument.category in PERPETUALS else ""
    said = (
        "a side; funding is left out: history or rate takes it in"
        if funding
        else "a side, of the traded value"
    )
    return [
        "backtest:",
        f"  signal: {{name: threshold, target: return({horizon}), holding: ladder}}",
        f"  costs: {{fee: 0.001{funding}}}  # {said}",
        *([] if seen.has("open") else ["  fill: next_close  # there are no opens to fill at"]),
    ]


def _plain_name(symbol: str) -> str:
    return _flow(re.sub(r"[^\w .\-]", " ", symbol)[:80])


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...").strip()
