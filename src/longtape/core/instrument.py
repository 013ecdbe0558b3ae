"""What is traded, and the facts about it that data, costs and annualisation need."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from longtape.core.clock import ALWAYS_OPEN
from longtape.core.errors import UserError, unknown_name

_SAFE = re.compile(r"[A-Za-z0-9^][A-Za-z0-9._\-^=+]{0,63}")
PERPETUALS = frozenset({"linear", "inverse"})
CATEGORIES = (
    "spot", "linear", "inverse", "future", "stock", "etf", "index", "fund", "fx", "crypto", "synthetic", "other",
)  # fmt: skip
_ALIASES = {
    "perp": "linear", "perpetual": "linear", "swap": "linear", "futures": "future", "equity": "stock",
    "share": "stock", "currency": "fx", "forex": "fx", "coin": "crypto",
}  # fmt: skip


def check_category(name: str) -> None:
    """UserError with the nearest known name for a category that is none of `CATEGORIES`."""
    if name in CATEGORIES:
        return
    meant = _ALIASES.get(name.lower())
    if meant is None:
        raise unknown_name("category", name, CATEGORIES)
    raise UserError(f"unknown category '{name}'; did you mean '{meant}'?")


@dataclass(frozen=True)
class Instrument:
    """One tradable thing. `source / category / symbol` is its key in the store.

    `calendar` is `24/7`, `24/5` or an exchange code such as `XNYS`; it sets the bars in a year. `multiplier`,
    `lot` and `tick` are in units of the base, `funding_hours` is the time between funding payments.
    """

    source: str
    category: str
    symbol: str
    calendar: str = ALWAYS_OPEN
    settlement: str | None = None
    multiplier: float = 1.0
    lot: float | None = None
    tick: float | None = None
    funding_hours: float | None = None

    def __post_init__(self) -> None:
        for field in ("source", "category", "symbol"):
            if not _SAFE.fullmatch(getattr(self, field)):
                raise UserError(
                    f"{field} '{getattr(self, field)}' may hold letters, digits and . _ - ^ = + only, 64 at most"
                )

    @property
    def key(self) -> str:
        """`source/category/symbol`."""
        return f"{self.source}/{self.category}/{self.symbol}"

    @property
    def is_perpetual(self) -> bool:
        """True where a position pays or receives funding."""
        return self.category in PERPETUALS

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and Parquet metadata."""
        return asdict(self)
