"""Numbers and sentences as people write them: −0.06, 10.1 %, p < 0.001, 3 h 20 min."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

NOTHING = "–"
_NARROW = "\u00a0"  # a space at which no line breaks
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Format = Callable[[Any], str]


def fixed(value: float | None, decimals: int) -> str:
    """With so many decimals, thousands set apart, a real minus, and no minus before a zero."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{decimals}f}"
    return text[1:] if re.fullmatch(r"-[0.,]+", text) else text.replace("-", "−")


def significant(value: float | None, digits: int = 3) -> str:
    """With so many significant digits; a power of ten where a row of zeros would stand."""
    if value is None or not math.isfinite(value) or value == 0:
        return fixed(value, 0)
    size = math.floor(math.log10(abs(value)))
    if size < -5 or size > 14:
        power = str(size).translate(_SUPERSCRIPTS)
        return f"{fixed(value / 10**size, digits - 1)}{_NARROW}×{_NARROW}10{power}"
    return fixed(value, max(0, digits - 1 - size))


def percent(share: float | None, decimals: int = 1) -> str:
    """A share as a percentage."""
    return NOTHING if share is None or math.isnan(share) else f"{fixed(100 * share, decimals)}{_NARROW}%"


def change(share: float | None) -> str:
    """A relative change with its sign; as many decimals as small changes need."""
    if share is None or math.isnan(share):
        return NOTHING
    text = percent(share, 2 if abs(share) < 0.1 else 1)
    return f"+{text}" if share > 0 and re.search("[1-9]", text) else text


def ratio(value: float | None) -> str:
    """A Sharpe ratio and the like."""
    return fixed(value, 2)


def p_value(value: float | None) -> str:
    """The probability of a test."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"<{_NARROW}0.001" if value < 0.001 else fixed(value, 3 if value < 0.01 else 2)


def money(value: float | None) -> str:
    """An amount: whole from a hundred on."""
    return fixed(value, 0 if value is not None and abs(value) >= 100 else 2)


def price(value: float | None) -> str:
    """A price with at most two decimals where it is large, and five digits where it is small."""
    if value is None or not math.isfinite(value) or abs(value) >= 100:
        return fixed(value, 0 if value is not None and abs(value) >= 10_000 else 2)
    return significant(value, 5)


def moment(value: datetime | None, whole_days: bool = False) -> str:
    """A time of UTC to the minute, a day alone where only days matter."""
    if value is None:
        return NOTHING
    return value.strftime("%Y-%m-%d" if whole_days else "%Y-%m-%d %H:%M")


def duration(seconds: float | None) -> str:
    """Two units at most: 3.2 s, 2 min 5 s, 3 h 20 min, 2 days 3 h, 4.5 years."""
    if seconds is None or math.isnan(seconds):
        return NOTHING
    if seconds < 60:
        return f"{significant(seconds, 2 if seconds < 10 else 3)} s".replace(" ", _NARROW)
    for name, size, small, part in (("min", 60, "s", 1), ("h", 3600, "min", 60), ("days", 86_400, "h", 3600)):
        if seconds < size * {"min": 60, "h": 48, "days": 400}[name]:
            whole, rest = divmod(seconds, size)
            left = int(rest // part)
            return f"{whole:.0f} {name}{f' {left} {small}' if left else ''}".replace(" ", _NARROW)
    return f"{seconds / 31_557_600:.1f}{_NARROW}years"


def typeset(sentence: str) -> str:
    """A sentence of the verdict with real minus signs and percent signs set apart."""
    text = re.sub(r"(?<![\w)\]./-])-(?=\d)", "−", sentence)
    return re.sub(r"(?<=\d)%", f"{_NARROW}%", text).replace(" %", f"{_NARROW}%")


# Columns of tables by name; a name that ends in " %" is a percentage already.
_COLUMNS: Mapping[str, Format] = {
    "Sharpe": ratio, "± s.e.": ratio, "return / s.e.": lambda value: fixed(value, 1),
    "costs paid": money, "final equity": money, "profit": money, "amount": money,
    "turnover a year": lambda value: fixed(value, 1), "price": price, "close": price,
}  # fmt: skip


def column_format(name: str, values: Sequence[Any]) -> Format:
    """How a column is written: by its name, else with as many decimals as its lower quarter needs for three digits."""
    if name in _COLUMNS:
        return _COLUMNS[name]
    if re.search(r"[^\d] %$", name):
        return lambda value: f"{fixed(value, 1)}{_NARROW}%" if _is_number(value) else plain(value)
    if name == "p" or name.startswith("p,"):
        return lambda value: p_value(value) if _is_number(value) else plain(value)
    decimals = _decimals([abs(v) for v in values if isinstance(v, float) and math.isfinite(v) and v != 0])
    if decimals is None:
        return plain
    return lambda value: fixed(value, decimals) if isinstance(value, float) else plain(value)


def _decimals(sizes: Sequence[float]) -> int | None:
    """Of a column of such sizes; None where each value is better written by itself."""
    if not sizes:
        return 0
    size = math.floor(math.log10(sorted(sizes)[len(sizes) // 4]))
    most = 5 if max(sizes) < 0.1 else 4
    return None if size < -3 or size > 9 else max(0, min(most, 2 - size))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: Any) -> str:
    """Any value by its type."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, int):
        return fixed(value, 0)
    return moment(value) if isinstance(value, datetime) else str(value)
