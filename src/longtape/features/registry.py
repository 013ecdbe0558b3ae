"""The registry of features and targets: one decorator adds one, and the parser, the documentation and the tests
follow. Which families there are stands in `features.catalogue`.

A feature is a function of a `Table` and its parameters. The annotation of a parameter says what may stand
there: `int` (a number of rows, at least 1), `float`, `str`, `Series` (a column or another expression) or
`CrossSection` (an expression, taken for every symbol).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longtape.core.errors import UserError
from longtape.features.expression import Argument, Expression

Series: TypeAlias = npt.NDArray[np.float64]
WarmUp: TypeAlias = Callable[..., int]
Check: TypeAlias = Callable[..., None]
Outputs: TypeAlias = tuple[str, ...] | Callable[..., tuple[str, ...]]

FEATURES: dict[str, Spec] = {}
TARGETS: dict[str, Spec] = {}


@dataclass(frozen=True, eq=False)
class CrossSection:
    """One series of every symbol on the same clock, and which of them is asked for."""

    values: tuple[Series, ...]
    own: int


@dataclass(frozen=True)
class Spec:
    """One feature or target: its function, what it needs, and what the documentation says of it."""

    name: str
    family: str
    function: Callable[..., Any]
    parameters: tuple[inspect.Parameter, ...]
    needs: tuple[str, ...]
    warm_up: WarmUp
    formula: str
    source: str
    outputs: Outputs
    shared: bool
    check: Check
    kind: str = ""  # of a target
    horizons: Callable[..., Sequence[int]] | None = (
        None  # of a target: rows ahead at which its labels are known
    )

    @property
    def usage(self) -> str:
        """How it is written, with defaults."""
        inside = ", ".join(
            p.name if p.default is inspect.Parameter.empty else f"{p.name}={_shown(p.default)}"
            for p in self.parameters
        )
        return f"{self.name}({inside})" if inside else self.name

    def output_names(self, **arguments: Any) -> tuple[str, ...]:
        """Names of the columns, where there are several."""
        return self.outputs(**arguments) if callable(self.outputs) else self.outputs

    @property
    def description(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())

    @property
    def section(self) -> str:
        """Of an experiment, in which it is written."""
        return "targets" if self.kind else "features"

    def bind(self, expression: Expression) -> dict[str, Argument]:
        """Arguments by parameter name, checked. UserError with the usage where they do not fit."""
        names = [p.name for p in self.parameters]
        if len(expression.arguments) > len(names):
            raise UserError(
                f"{self.section}: '{expression}': {len(expression.arguments)} arguments; write {self.usage}"
            )
        given: dict[str, Argument] = dict(zip(names, expression.arguments, strict=False))
        for name, value in expression.keywords:
            if name not in names or name in given:
                raise UserError(
                    f"{self.section}: '{expression}': argument '{name}' does not fit; write {self.usage}"
                )
            given[name] = value
        for parameter in self.parameters:
            if parameter.name not in given and parameter.default is inspect.Parameter.empty:
                raise UserError(
                    f"{self.section}: '{expression}': '{parameter.name}' is missing; write {self.usage}"
                )
        given = {p.name: given.get(p.name, p.default) for p in self.parameters}
        fitted = {p.name: self._fit(expression, p, given[p.name]) for p in self.parameters}
        try:
            self.check(**fitted)
        except UserError as error:
            raise UserError(f"{self.section}: '{expression}': {error}; write {self.usage}") from None
        return fitted

    def _fit(self, expression: Expression, parameter: inspect.Parameter, value: Argument) -> Argument:
        kind = parameter.annotation
        if kind == "str" and isinstance(value, Expression) and str(value) == value.name:
            return value.name
        if kind in ("Series", "CrossSection") and isinstance(value, str):
            value = Expression(value)
        wanted = {
            "int": (isinstance(value, int) and value >= 1, "a whole number of rows, at least 1"),
            "float": (isinstance(value, int | float) and math.isfinite(value), "a finite number"),
            "str": (isinstance(value, str), "a text in quotes"),
            "Series": (isinstance(value, Expression), "a column or a feature"),
            "CrossSection": (isinstance(value, Expression), "a column or a feature"),
        }
        fits, what = wanted[kind]
        if not fits:
            raise UserError(
                f"{self.section}: '{expression}': '{parameter.name}' must be {what}; write {self.usage}"
            )
        return value


def _shown(default: object) -> str:
    return f'"{default}"' if isinstance(default, str) else str(default)


def _none(*_: object, **__: object) -> int:
    return 0


def _anything(**_: object) -> None:
    pass


def refuse_unless(holds: bool, what: str) -> None:
    """For a `check`: UserError that says what must hold of the parameters, where it does not."""
    if not holds:
        raise UserError(what)


def lag_rows(table: object, n: int, **_: Any) -> int:
    """A `warm_up`: the n rows before the first that can look n rows back."""
    return n


def window_rows(table: object, n: int, **_: Any) -> int:
    """A `warm_up`: the n − 1 rows before the first whole window of n."""
    return n - 1


def two_rows(*, n: int, **_: object) -> None:
    """A `check`: n of at least 2, for what one value says nothing about."""
    refuse_unless(n >= 2, "n must be at least 2")


def feature(
    formula: str,
    source: str,
    *,
    needs: tuple[str, ...] = (),
    warm_up: WarmUp = _none,
    outputs: Outputs = (),
    shared: bool = False,
    check: Check = _anything,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a feature under its own name.

    `warm_up(table, **arguments)` is the number of rows before the first value that no longer depends on where
    the data begin, on top of what its series arguments need. `outputs` names the columns of a function that
    returns several, or is a function of its arguments that does. `shared`: the same for every symbol.
    `check(**arguments)` refuses, by `refuse_unless`, parameters that make no sense; it is asked before there are data,
    and series arguments are still expressions.
    """
    return _register(FEATURES, formula, source, needs, warm_up, outputs, shared, check, "")


def target(
    formula: str,
    source: str,
    kind: str,
    *,
    needs: tuple[str, ...] = ("close",),
    horizons: Callable[..., Sequence[int]],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a target of a kind: it returns a label for each of `horizons(**arguments)`."""
    return _register(TARGETS, formula, source, needs, _none, (), False, _anything, kind, horizons)


def family_of(module: str) -> str:
    """The name of a family, from that of the module that holds it."""
    return module.rsplit(".", 1)[-1].removesuffix("_features")


def _register(
    registry: dict[str, Spec],
    formula: str,
    source: str,
    needs: tuple[str, ...],
    warm_up: WarmUp,
    outputs: Outputs,
    shared: bool,
    check: Check,
    kind: str,
    horizons: Callable[..., Sequence[int]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.removesuffix("_")
        family = family_of(function.__module__)
        parameters = tuple(inspect.signature(function).parameters.values())[1:]
        registry[name] = Spec(
            name,
            family,
            function,
            parameters,
            needs,
            warm_up,
            formula,
            source,
            outputs,
            shared,
            check,
            kind,
            horizons,
        )
        return function

    return add
