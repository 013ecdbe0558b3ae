"""Which target of several a signal trades, and what about an experiment's targets it cannot trade."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from longtape.core.errors import unknown_name
from longtape.features import target_kinds

VOLATILITY, WEIGHT = target_kinds.VOLATILITY.name, target_kinds.WEIGHT.name
# Kinds of target whose mean does not say by how much a price moves.
UNTRADED = frozenset(kind.name for kind in target_kinds.KINDS.values() if not kind.traded)


class Choice(Protocol):
    """What a signal's configuration says of what it trades."""

    @property
    def name(self) -> str: ...
    @property
    def target(self) -> str | None: ...
    @property
    def horizon(self) -> int | None: ...
    @property
    def cost(self) -> float | None: ...


class Target(NamedTuple):
    """What an expression says of a target; one for each horizon of those that have several."""

    text: str  # "return(5)", with or without spaces
    kind: str  # "return", "volatility", …
    horizon: int | None = None  # in bars, as in the forecast frame; None: not known yet


def plain(expression: str) -> str:
    """The text of a target as it is compared: without spaces."""
    return "".join(expression.split())


def candidates(
    targets: Iterable[Target], target: str | None = None, horizon: int | None = None
) -> list[Target]:
    """The targets that a signal can trade, those of returns, of this text and horizon where they are named."""
    found = [one for one in dict.fromkeys(targets) if one.kind not in UNTRADED]
    if target is not None:
        found = [one for one in found if plain(one.text) == plain(target)]
    return [one for one in found if None in (horizon, one.horizon) or one.horizon == horizon]


def mismatch(signal: Choice, targets: Sequence[Target], symbols: Sequence[str] | None) -> str | None:
    """One line that says why `signal` cannot trade these targets and symbols, before any data are read; None where it
    can. `symbols` and horizons that are not known yet (None) are not judged.
    """
    named = [one for one in targets if signal.target in (None, plain(one.text))]
    if not named and signal.target is not None:
        return str(
            unknown_name("target", signal.target, {plain(one.text) for one in targets}, "signal.target")
        )
    found = candidates(named, horizon=signal.horizon)
    if not found:
        over = "" if signal.horizon is None else f" over {signal.horizon} bars"
        return f"signal '{signal.name}' trades forecasts of returns{over}; there is {listed(named)}"
    return (
        _ambiguous(found)
        or _weights(signal, found[0])
        or _incomplete(signal.name, found[0], targets, symbols)
    )


def _ambiguous(found: Sequence[Target]) -> str | None:
    if len({plain(one.text) for one in found}) > 1:
        return f"signal.target: name one of {', '.join(dict.fromkeys(one.text for one in found))}"
    if len(found) > 1:
        bars = ", ".join(str(one.horizon) for one in found)
        return f"signal.horizon: name one of the horizons of {found[0].text}: {bars}"
    return None


def _weights(signal: Choice, traded: Target) -> str | None:
    """Weights go to the account as they are, and nothing else does."""
    if traded.kind == WEIGHT and signal.name != "allocation":
        return (
            f"signal '{signal.name}' trades forecasts of returns, and the head of {traded.text} gives weights;"
            " name allocation"
        )
    if traded.kind == WEIGHT and signal.cost is not None:
        return f"signal.cost weighs an expected return, and the head of {traded.text} gives weights"
    if traded.kind != WEIGHT and signal.name == "allocation":
        return f"signal 'allocation' takes weights; give {traded.text} a head of weights (model.heads: allocation)"
    return None


def _incomplete(
    signal: str, traded: Target, targets: Sequence[Target], symbols: Sequence[str] | None
) -> str | None:
    """What the signal needs beside the target that it trades."""
    if signal == "rank" and symbols is not None and len(symbols) < 2:
        return f"signal 'rank' compares symbols; there is {', '.join(symbols) or 'none'} alone"
    spreads = {one.horizon for one in targets if one.kind == VOLATILITY}
    known = traded.horizon is not None and None not in spreads
    if signal == "volatility_target" and (not spreads or (known and traded.horizon not in spreads)):
        return f"signal 'volatility_target' needs a volatility over the same bars as {traded.text} among the targets"
    return None


def listed(targets: Iterable[Target]) -> str:
    """The targets for a message: text and kind of each."""
    return ", ".join(dict.fromkeys(f"{one.text} ({one.kind})" for one in targets)) or "none"
