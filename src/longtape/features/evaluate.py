"""From expressions to numbers, each computed once per symbol and time frame, with its first usable row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from longtape.core.clock import Interval
from longtape.core.errors import UserError, unknown_name
from longtape.features.catalogue import features
from longtape.features.expression import Expression
from longtape.features.registry import CrossSection, Spec
from longtape.features.rolling import Array
from longtape.features.table import Table, longest, newest_known, resample


@dataclass(frozen=True, eq=False)
class Computed:
    """Values [T] of each output. Before row `ready` they depend on where the data begin, and are NaN."""

    values: tuple[Array, ...]
    ready: int
    outputs: tuple[str, ...] = ()


class Evaluator:
    """Evaluates expressions over tables that share one clock; with `own_clocks`, over stretches of one clock."""

    def __init__(self, tables: Mapping[str, Table], own_clocks: bool = False) -> None:
        self._tables, self._own_clocks = dict(tables), own_clocks
        self._coarse: dict[tuple[str, str], Table] = {}
        self._done: dict[tuple[Expression, str, str], Computed] = {}
        self._asked = ""

    def compute(self, expression: Expression, symbol: str) -> Computed:
        """Values of an expression for a symbol. UserError with one line where it cannot be had."""
        self._asked = f"features: '{expression}'"
        return self._compute(expression, self._tables[symbol])

    def _compute(self, expression: Expression, table: Table) -> Computed:
        key = (expression, table.symbol, table.interval.name)
        if key not in self._done:
            inner = self._scoped if expression.scopes else self._own
            self._done[key] = inner(expression, table)
        return self._done[key]

    def _scoped(self, expression: Expression, table: Table) -> Computed:
        (kind, argument), rest = expression.scopes[0], replace(expression, scopes=expression.scopes[1:])
        if kind == "of":
            other = self._other(argument, table)
            return _seen_from(table, other, self._compute(rest, other))
        coarse = self._resampled(table.symbol, Interval.parse(argument), table)
        found = self._compute(rest, coarse)
        rows = newest_known(coarse, table)
        ready = int(np.searchsorted(rows, found.ready)) + longest(coarse.interval, table.interval) - 1
        ready = _enough(ready, expression, table)
        known = np.arange(len(table)) >= ready
        values = tuple(np.where(known, v[np.maximum(rows, 0)], np.nan) for v in found.values)
        return Computed(values, ready, found.outputs)

    def _other(self, symbol: str, table: Table) -> Table:
        if symbol not in self._tables:
            raise unknown_name("symbol", symbol, self._tables, self._asked)
        other = self._tables[symbol]
        return other if other.interval == table.interval else self._resampled(symbol, table.interval, other)

    def _resampled(self, symbol: str, interval: Interval, table: Table) -> Table:
        key = (symbol, interval.name)
        if key not in self._coarse:
            self._coarse[key] = resample(table, interval)
        return self._coarse[key]

    def _own(self, expression: Expression, table: Table) -> Computed:
        spec = features().get(expression.name)
        if spec is None:
            return self._column(expression, table)
        for name in spec.needs:
            table[name]
        arguments, ready = self._arguments(spec, expression, table)
        ready = _enough(ready + spec.warm_up(table, **arguments), expression, table)
        result = spec.function(table, **arguments)
        values = result if isinstance(result, tuple) else (result,)
        for output in values:
            output[:ready] = np.nan
        return Computed(values, ready, spec.output_names(**arguments))

    def _column(self, expression: Expression, table: Table) -> Computed:
        if expression.arguments or expression.keywords or expression.name not in table.columns:
            raise unknown_name("feature", expression.name, [*features(), *table.columns], self._asked)
        return Computed((table[expression.name],), 0)

    def _arguments(self, spec: Spec, expression: Expression, table: Table) -> tuple[dict[str, Any], int]:
        bound: dict[str, Any] = dict(spec.bind(expression))
        ready = 0
        for parameter in spec.parameters:
            if parameter.annotation not in ("Series", "CrossSection"):
                continue
            inner, tables = bound[parameter.name], [table]
            if parameter.annotation == "CrossSection":
                tables = [self._other(symbol, table) for symbol in self._tables]
            found = [_seen_from(table, each, self._compute(inner, each)) for each in tables]
            if len(found[0].values) > 1:
                raise UserError(
                    f"features: '{expression}': '{inner}' has {len(found[0].values)} columns, not one"
                )
            own = list(self._tables).index(table.symbol)
            # A symbol that is listed later does not keep the others waiting.
            waits = found[own : own + 1] if self._own_clocks and len(found) > 1 else found
            ready = max(ready, *(f.ready for f in waits))
            series = tuple(f.values[0] for f in found)
            bound[parameter.name] = (
                CrossSection(series, own) if parameter.annotation == "CrossSection" else series[0]
            )
        return bound, ready

    def is_shared(self, expression: Expression) -> bool:
        """True where every symbol would see the same numbers."""
        if any(kind == "of" for kind, _ in expression.scopes):
            return True
        spec = features().get(expression.name)
        if spec is None or spec.shared:
            return spec is not None
        inner = [a for a in spec.bind(expression).values() if isinstance(a, Expression)]
        return bool(inner) and not spec.needs and all(self.is_shared(a) for a in inner)


def _seen_from(table: Table, other: Table, found: Computed) -> Computed:
    """What was computed on the clock of `other` at the rows of `table`, NaN where `other` has no row."""
    if len(other) == len(table) and other.timestamps[0] == table.timestamps[0]:
        return found
    rows = np.minimum(np.searchsorted(other.timestamps, table.timestamps), len(other) - 1)
    there = (other.timestamps[rows] == table.timestamps) & (rows >= found.ready)
    ready = int(np.argmax(there)) if there.any() else len(table)
    return Computed(tuple(np.where(there, v[rows], np.nan) for v in found.values), ready, found.outputs)


def _enough(ready: int, expression: Expression, table: Table) -> int:
    if ready >= len(table):
        raise UserError(
            f"features: '{expression}' has its first value after {ready} bars of {table.interval}; {table.origin} has"
            f" {len(table)}: load more or shorten it"
        )
    return ready
