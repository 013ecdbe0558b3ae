"""Names of the mechanisms. Adding one is one file and one line here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from longtape.attention.base import Attention


class _Mechanisms(Mapping[str, str]):
    def __init__(self, entries: dict[str, str]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return ", ".join(self._entries)


MECHANISMS: Mapping[str, str] = _Mechanisms(
    {
        "full": "longtape.attention.full:FullAttention",
        "flash": "longtape.attention.flash:FlashAttention",
        "local": "longtape.attention.local:LocalAttention",
        "longformer": "longtape.attention.longformer:LongformerAttention",
        "bigbird": "longtape.attention.bigbird:BigBirdAttention",
        "linformer": "longtape.attention.linformer:LinformerAttention",
        "performer": "longtape.attention.performer:PerformerAttention",
        "reformer": "longtape.attention.reformer:ReformerAttention",
        "probsparse": "longtape.attention.probsparse:ProbSparseAttention",
    }
)


def mechanism_class(name: str) -> type[Attention]:
    """The module class of a mechanism; ValueError with the nearest name for an unknown one."""
    if name not in MECHANISMS:
        raise ValueError(f"unknown mechanism '{name}'; {_nearest(name, list(MECHANISMS))}")
    module, attribute = MECHANISMS[name].split(":")
    found: type[Attention] = getattr(import_module(module), attribute)
    return found


def build_attention(
    name: str, *, d_model: int, n_heads: int, shared: Attention | None = None, **options: Any
) -> Attention:
    """Build one attention layer, `[B, N, d_model] → [B, N, d_model]`.

    `options` are the fields of the mechanism's `Config`; an unknown one, a value out of range, or `causal=True` where
    it is not defined raises ValueError. `shared` takes another Linformer's projection.
    """
    cls = mechanism_class(name)
    known = {f.name: f for f in fields(cls.Config)}
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option '{option}'; {_nearest(option, list(known))}")
    for field in known.values():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in options and field.name not in ("d_model", "n_heads"):
            raise ValueError(f"{name} needs the option '{field.name}'")
    config = cls.Config(d_model=d_model, n_heads=n_heads, **options)
    if shared is None:
        return cls(config)
    if not cls.can_share:
        raise ValueError(f"{name} has nothing to share between layers; only linformer takes shared=")
    return cls(config, shared=shared)  # type: ignore[call-arg]


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
