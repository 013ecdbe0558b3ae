"""The notation of features: `volatility(20)`, `zscore(close, 100)`, `resample("4h").rsi`,
`of("ETHUSDT").log_return`.

An expression is a name, with arguments where it takes any; an argument is a number, a text or another
expression. Two prefixes change what it is computed on: `of("SYMBOL").` another symbol on the same clock,
`resample("4h").` a longer time frame, seen from its close. The text is read by Python's own parser into plain
values and never run.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TypeAlias

from longtape.core.errors import UserError

LONGEST = 300
SCOPES = ("of", "resample")


@dataclass(frozen=True)
class Expression:
    """A name with its arguments and the prefixes before it, outermost first."""

    name: str
    arguments: tuple[Argument, ...] = ()
    keywords: tuple[tuple[str, Argument], ...] = ()
    scopes: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inside = [_text(a) for a in self.arguments] + [f"{name}={_text(a)}" for name, a in self.keywords]
        before = "".join(f'{kind}("{name}").' for kind, name in self.scopes)
        return f"{before}{self.name}" + (f"({', '.join(inside)})" if inside else "")


Argument: TypeAlias = Expression | int | float | str


def _text(argument: Argument) -> str:
    return f'"{argument}"' if isinstance(argument, str) else str(argument)


def parse(text: str) -> Expression:
    """Read one expression. UserError with one line for anything else."""
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"features: {text!r} is not an expression; write for example volatility(20)")
    if len(text) > LONGEST:
        raise UserError(f"features: '{text[:40]}…' is longer than {LONGEST} characters")
    python = re.sub(r"\breturn\b", "return_", text.strip())  # the one name here that Python keeps for itself
    try:
        tree = ast.parse(python, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refuse(text, "it cannot be read") from None
    found = _argument(tree, text)
    if not isinstance(found, Expression):
        raise _refuse(text, "it is a value, not a feature")
    return found


def _refuse(text: str, why: str) -> UserError:
    return UserError(
        f"features: '{text}': {why}; write for example volatility(20) or resample(\"4h\").momentum(20)"
    )


def _argument(node: ast.expr, text: str) -> Argument:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _argument(node.operand, text)
        if isinstance(value, int | float):
            return -value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, str):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.Call):
        arguments = tuple(_argument(a, text) for a in node.args)
        keywords = tuple((k.arg, _argument(k.value, text)) for k in node.keywords if k.arg)
        if len(keywords) == len(node.keywords):
            return _named(node.func, text, arguments, keywords)
    if isinstance(node, ast.Name | ast.Attribute):
        return _named(node, text)
    raise _refuse(text, f"'{ast.unparse(node)}' has no meaning here")


def _named(
    node: ast.expr,
    text: str,
    arguments: tuple[Argument, ...] = (),
    keywords: tuple[tuple[str, Argument], ...] = (),
) -> Expression:
    if isinstance(node, ast.Name):
        return Expression(node.id.removesuffix("_"), arguments, keywords)
    if isinstance(node, ast.Attribute):
        scopes = _scopes(node.value, text)
        return Expression(node.attr.removesuffix("_"), arguments, keywords, scopes)
    raise _refuse(text, f"'{ast.unparse(node)}' cannot be called")


def _scopes(node: ast.expr, text: str) -> tuple[tuple[str, str], ...]:
    found = _argument(node, text)
    known = isinstance(found, Expression) and found.name in SCOPES and not found.keywords
    if not (known and isinstance(found, Expression) and len(found.arguments) == 1):
        raise _refuse(
            text, f'before a point stand of("SYMBOL") and resample("4h"), not \'{ast.unparse(node)}\''
        )
    value = found.arguments[0]
    if not isinstance(value, str):
        raise _refuse(text, f"{found.name}(…) takes one text in quotes")
    return (*found.scopes, (found.name, value))
