"""Every feature and target that there is: the list that imports the families, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longtape.core.errors import UserError, unknown_name
from longtape.features import (
    book_features,
    calendar_features,
    cross_asset,
    order_flow,
    own_past,
    price,
    trade_features,
    volatility,
    volume,
)
from longtape.features import book_targets as _book_targets  # noqa: F401
from longtape.features import targets as _targets  # noqa: F401  its import registers the targets
from longtape.features.expression import Expression, parse
from longtape.features.registry import FEATURES, TARGETS, Spec, family_of

FAMILIES = tuple(
    family_of(module.__name__)
    for module in (
        price,
        volatility,
        volume,
        own_past,
        order_flow,
        book_features,
        trade_features,
        calendar_features,
        cross_asset,
    )
)

MOST_STEPS = 10_000  # of one target


def features() -> Mapping[str, Spec]:
    """Every feature by name."""
    return FEATURES


def targets() -> Mapping[str, Spec]:
    """Every target by name."""
    return TARGETS


def find_target(expression: Expression) -> Spec:
    """The target of an expression; UserError with the nearest name."""
    if expression.name not in targets():
        raise unknown_name("target", expression.name, targets(), "targets")
    if expression.scopes:
        raise UserError(f"targets: '{expression}': a target takes no of(…) or resample(…) before it")
    return targets()[expression.name]


def target_horizons(expression: Expression) -> Sequence[int]:
    """Rows ahead at which the labels of a target are known, rising. UserError where the expression is none, or has
    more steps than a panel can hold.
    """
    spec = find_target(expression)
    if spec.horizons is None:
        raise ValueError(f"target '{spec.name}' does not say its horizons")
    found = spec.horizons(**spec.bind(expression))
    if len(found) > MOST_STEPS:
        raise UserError(
            f"targets: '{expression}' has {len(found):,} steps, each a column of labels; at most {MOST_STEPS:,}"
        )
    return found


def check_features(texts: Sequence[str], symbols: Sequence[str] | None = None) -> None:
    """UserError for what can be told of feature expressions without data: notation, names, arguments, repetition.

    A name without arguments that is no feature may be a column of the data, so it is not judged here; nor are symbols
    where it is not known which are loaded (None).
    """
    seen: set[str] = set()
    for text in texts:
        expression = parse(text)
        _check_expression(expression, symbols)
        if str(expression) in seen:
            raise UserError(f"features: '{text}' is listed twice")
        seen.add(str(expression))


def _check_expression(expression: Expression, symbols: Sequence[str] | None) -> None:
    for kind, symbol in expression.scopes:
        if kind == "of" and symbols is not None and symbol not in symbols:
            raise unknown_name("symbol", symbol, symbols, f"features: '{expression}'")
    spec = features().get(expression.name)
    if spec is None:
        if expression.arguments or expression.keywords:
            raise unknown_name("feature", expression.name, features(), f"features: '{expression}'")
        return
    for argument in spec.bind(expression).values():
        if isinstance(argument, Expression):
            _check_expression(argument, symbols)


def reads_market(texts: Sequence[str]) -> bool:
    """True where some feature of a symbol reads other symbols too."""
    return any(_reads_others(parse(text)) for text in texts)


def _reads_others(expression: Expression) -> bool:
    spec = features().get(expression.name)
    if any(kind == "of" for kind, _ in expression.scopes):
        return True
    if spec is None:
        return False
    if any(parameter.annotation == "CrossSection" for parameter in spec.parameters):
        return True
    return any(_reads_others(one) for one in spec.bind(expression).values() if isinstance(one, Expression))
