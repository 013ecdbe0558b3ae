"""From rules to work: which units of keys each tile of queries gathers, and what is added to their scores.

A *tile* is a run of queries computed together, a *unit* a run of keys gathered together. Behind the sequence lie extra
units that hold the keys of single global tokens and of learned tokens, so that one list per tile names everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longtape.attention.cpu.tiles import LOW
from longtape.attention.pattern import Pattern

SMALLEST_BLOCK = 16  # blocks below this are tiled as tokens: their own products would be too small
UNIT, UNITS_PER_TILE = 16, 4  # about so many tokens at token granularity, rounded down to whole blocks


@dataclass(frozen=True)
class Group:
    """Tiles that see equally many units, so that none needs a mask for the missing ones."""

    tiles: Tensor  # [T]
    units: Tensor  # [T, w]; from `Plan.n_units` on: extra units
    bias: Tensor | None  # [1 or T, 1 or tile, w·unit] to add to the scores; None where every score counts


@dataclass(frozen=True)
class Plan:
    """What each tile of a sequence of one length sees."""

    n_tokens: int
    tile: int
    unit: int
    causal: bool
    groups: tuple[Group, ...]
    dense: Tensor  # [S] slots whose queries see everything
    shared: Tensor  # [G] slots whose keys are copied into extra units, behind the learned tokens
    n_extra: int = 0  # learned tokens
    scattered: Tensor | None = None  # [slots, r] slots of the keys of single queries, −1 = none
    order: Tensor | None = None  # [slots] the token in each slot, −1 = filling; None: as they come
    asked: Tensor | None = None  # [G] tokens (−1 = none) of dense queries that have projections of their own
    prepared: dict[Any, Any] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )  # by `works_of`

    @property
    def n_padded(self) -> int:
        """Slots for tokens: whole tiles."""
        return -(-self.n_tokens // self.tile) * self.tile if self.order is None else len(self.order)

    @property
    def tokens(self) -> Tensor:
        """[slots] the token in each slot, −1 = filling."""
        if self.order is not None:
            return self.order
        tokens = torch.arange(self.n_padded)
        return tokens.masked_fill(tokens >= self.n_tokens, -1)

    def take_home(self, slots: Tensor) -> Tensor:
        """The inverse: [B, H, ≥ slots, …] → [B, H, N, …]."""
        if self.order is None:
            return slots[:, :, : self.n_tokens]
        return slots[:, :, _slots_of(self.order, self.n_tokens)]

    @property
    def n_units(self) -> int:
        """Units of the padded sequence."""
        return self.n_padded // self.unit

    @property
    def n_keys(self) -> int:
        """Padded tokens and the extra units behind them."""
        return self.n_padded + -(-(self.n_extra + len(self.shared)) // self.unit) * self.unit


def plan_pattern(pattern: Pattern, n_tokens: int, positions: Tensor | None, n_extra: int) -> Plan:
    """The plan of the rules with explicit global `positions` [G] (−1 = none) of one sample."""
    if pattern.block_size < SMALLEST_BLOCK:
        return _plan_tokens(pattern, n_tokens, positions, n_extra)
    return _plan_blocks(pattern, n_tokens, positions, n_extra)


def plan_table(table: Tensor, n_tokens: int, block_size: int, causal: bool, dense: list[int]) -> Plan:
    """The plan of an explicit table [blocks, W] of key blocks, −1 = none; `dense` query blocks see everything."""
    tokens = torch.cat([torch.arange(block_size) + block * block_size for block in dense] or [torch.empty(0)])
    tokens = tokens[tokens < n_tokens].long()
    blocks = torch.arange(len(table))
    tiles = blocks[~torch.isin(blocks, torch.tensor(dense, dtype=torch.int64))]
    plan = Plan(n_tokens, block_size, block_size, causal, (), tokens, tokens[:0])
    return _with_groups(plan, tiles, table[tiles])


@lru_cache(maxsize=256)
def plan_cached(
    rules: tuple[int, ...], n_tokens: int, n_extra: int, positions: tuple[int, ...], own_projections: bool
) -> Plan:
    """`plan_pattern` of `Pattern.to_ints`, kept; with `own_projections` the global queries are asked for by token."""
    named = torch.tensor(positions, dtype=torch.int64) if positions else None
    plan = plan_pattern(Pattern.from_ints(rules), n_tokens, named, n_extra)
    return replace(plan, asked=named) if own_projections else plan


@lru_cache(maxsize=16)
def plan_dense(n_queries: int, n_keys: int) -> Plan:
    """The plan of queries that see all keys of another sequence."""
    every, none = torch.arange(n_queries), torch.empty(0, dtype=torch.int64)
    return Plan(n_keys, UNIT, UNIT, False, (), every, none, asked=every)


def _plan_blocks(pattern: Pattern, n_tokens: int, positions: Tensor | None, n_extra: int) -> Plan:
    """Tiles and units are the pattern's blocks."""
    n, size = pattern.n_units(n_tokens), pattern.block_size
    window, placed, links = _block_lists(pattern, n_tokens)
    table = torch.cat([window, placed, links], -1)
    global_units = pattern.global_units(n_tokens)
    in_global = pattern.global_flags(n_tokens)[0]
    named = pattern.global_flags(n_tokens, None if positions is None else positions[None])[0]
    shared = (named & ~in_global).nonzero()[:, 0]
    blocks = torch.arange(n)
    tiles = blocks[~torch.isin(blocks, torch.tensor(global_units, dtype=torch.int64))]
    plan = Plan(n_tokens, size, size, pattern.causal, (), named.nonzero()[:, 0], shared, n_extra)
    return _with_groups(plan, tiles, table[tiles])


def _block_lists(pattern: Pattern, n_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Window [n, w], placed [n, g] and linked [n, r] units of each unit, −1 where none; no unit twice in a row."""
    n = pattern.n_units(n_tokens)
    own = torch.arange(n)[:, None]
    window = own + torch.arange(-pattern.reach, pattern.reach + 1)
    window = window.masked_fill((window < 0) | (window >= n), -1)
    placed = torch.tensor(pattern.global_units(n_tokens), dtype=torch.int64).expand(n, -1)
    links = pattern.links(n_tokens)[0]
    mirrored = (links[..., None] == placed[:, None]).any(-1)  # a mirrored link may come from a global unit
    in_window = (placed - own).abs() <= pattern.reach
    return window, placed.masked_fill(in_window, -1), links.masked_fill(mirrored, -1)


def _with_groups(plan: Plan, tiles: Tensor, table: Tensor) -> Plan:
    """Sort tiles by the number of units they see; add masks where the diagonal, the end or single tokens need one."""
    far = plan.n_units  # sorts last
    none = (table < 0) | (table > tiles[:, None]) if plan.causal else table < 0
    ordered = table.masked_fill(none, far).sort(-1).values
    count = (ordered < far).sum(-1)
    extra = torch.arange(plan.n_units, plan.n_keys // plan.unit)
    groups = []
    for w in count.unique().tolist():
        chosen = count == w
        units = torch.cat([ordered[chosen, :w], extra.expand(int(chosen.sum()), -1)], -1)
        if units.shape[1]:
            groups.append(Group(tiles[chosen], units, _block_bias(plan, tiles[chosen], units, w)))
    return replace(plan, groups=tuple(groups))


def _block_bias(plan: Plan, tiles: Tensor, units: Tensor, w: int) -> Tensor | None:
    """[1 or T, 1 or tile, w·unit + extra]: the future, the filling behind the end, tokens already seen in a unit."""
    keys = _tokens_of(units[:, :w], plan.unit)
    seen = torch.ones(1, 1, keys.shape[1], dtype=torch.bool)
    if plan.causal:  # the last of its units is a tile's own, all others lie before it: one mask for the group
        seen = keys[:1, None] <= _tokens_of(tiles[:1, None], plan.tile)[..., None]
    elif plan.n_padded > plan.n_tokens:
        seen = (keys < plan.n_tokens)[:, None]
    new = ~(units[:, :w, None] == plan.shared // plan.unit).any(1)[:, None]
    if plan.causal:
        new = new & (plan.shared <= _tokens_of(tiles[:, None], plan.tile)[..., None])
    return _as_bias(_beside(seen, _see_extra(plan, new)))


def _see_extra(plan: Plan, new: Tensor) -> Tensor:
    """Bool [T, 1 or tile, extra keys]: learned tokens always, shared ones where they are new."""
    seen = F.pad(new, (plan.n_extra, 0), value=True)
    return F.pad(seen, (0, plan.n_keys - plan.n_padded - seen.shape[-1]))


def _beside(left: Tensor, right: Tensor) -> Tensor:
    if right.shape[-1] == 0:
        return left
    shape = torch.broadcast_shapes(left.shape[:2], right.shape[:2])
    return torch.cat([left.expand(*shape, -1), right.expand(*shape, -1)], -1)


def _tokens_of(units: Tensor, size: int) -> Tensor:
    return (units[..., None] * size + torch.arange(size)).flatten(-2)


def _as_bias(seen: Tensor) -> Tensor | None:
    """0 where seen, LOW elsewhere, in the smallest shape that broadcasts to the same; None where all is seen."""
    if bool(seen.all()):
        return None
    for dim in (0, 1):
        if bool((seen == seen.narrow(dim, 0, 1)).all()):
            seen = seen.narrow(dim, 0, 1)
    return torch.zeros(seen.shape).masked_fill(~seen, LOW)


def _plan_tokens(pattern: Pattern, n_tokens: int, positions: Tensor | None, n_extra: int) -> Plan:
    """Tiles of queries over a band of keys; global tokens in extra units; random links query by query.

    With a dilation d, tokens of the same remainder modulo d stand together: their window is a band again.
    """
    named = None if positions is None else positions[None]
    flags = pattern.global_flags(n_tokens, named)[0]
    unit = pattern.block_size * (UNIT // pattern.block_size)
    tile = unit * UNITS_PER_TILE
    order = _by_remainder(n_tokens, pattern.dilation, tile) if pattern.dilation > 1 else None
    slots = flags.nonzero()[:, 0] if order is None else _slots_of(order, n_tokens)[flags].sort().values
    scattered = _scatter(pattern, n_tokens, named, flags, tile)
    plan = Plan(n_tokens, tile, unit, pattern.causal, (), slots, slots, n_extra, scattered, order)
    return replace(plan, groups=_band_groups(plan, pattern))


def _by_remainder(n_tokens: int, dilation: int, tile: int) -> Tensor:
    """[slots]: tokens sorted by remainder, each class filled up to whole tiles with −1."""
    classes = [torch.arange(r, n_tokens, dilation) for r in range(min(dilation, n_tokens))]
    return torch.cat([F.pad(c, (0, -len(c) % tile), value=-1) for c in classes])


def _slots_of(order: Tensor, n_tokens: int) -> Tensor:
    """[N]: the slot of each token."""
    slots = torch.empty(n_tokens, dtype=torch.int64)
    slots[order[order >= 0]] = (order >= 0).nonzero()[:, 0]
    return slots


def _band_groups(plan: Plan, pattern: Pattern) -> tuple[Group, ...]:
    """Tiles whose band lies alike share a mask; those near the ends or near a global token get one each."""
    around = min(-(-pattern.reach * pattern.block_size // plan.unit), plan.n_units)
    tiles = torch.arange(plan.n_padded // plan.tile)
    table = tiles[:, None] * UNITS_PER_TILE + torch.arange(-around, UNITS_PER_TILE + around)
    valid = (table >= 0) & (table < plan.n_units)
    first, stop = table[:, 0] * plan.unit, (table[:, -1] + 1) * plan.unit
    breaks = torch.cat([plan.shared, (plan.tokens.diff() != pattern.dilation).nonzero()[:, 0]]).sort().values
    special = torch.searchsorted(breaks, stop) > torch.searchsorted(breaks, first)
    behind = torch.searchsorted(plan.shared, first) * (~special if plan.causal else 0)
    kind = torch.stack([valid.sum(-1), special, table[:, 0] < 0, behind], -1)
    kinds, which = kind.unique(dim=0, return_inverse=True)
    extra = torch.arange(plan.n_units, plan.n_keys // plan.unit)
    groups = []
    for number, (w, is_special, *_) in enumerate(kinds.tolist()):
        chosen = tiles[which == number]
        units = torch.cat([table[chosen][valid[chosen]].view(-1, w), extra.expand(len(chosen), -1)], -1)
        pick = slice(None) if is_special else slice(1)
        groups.append(Group(chosen, units, _as_bias(_band(plan, pattern, chosen[pick], units[pick, :w]))))
    return tuple(groups)


def _band(plan: Plan, pattern: Pattern, tiles: Tensor, units: Tensor) -> Tensor:
    """Bool [T, tile, keys]: the window in tokens and the extra keys that it does not hold."""
    queries = plan.tokens[_tokens_of(tiles[:, None], plan.tile)][..., None]
    keys = plan.tokens[_tokens_of(units, plan.unit)][:, None]
    seen = _in_window(pattern, queries, keys) & (keys >= 0)
    if plan.causal:
        seen = seen & (keys <= queries)
    shared = plan.tokens[plan.shared]
    new = ~_in_window(pattern, queries, shared)
    if plan.causal:
        new = new & (shared <= queries)
    return _beside(seen, _see_extra(plan, new))


def _in_window(pattern: Pattern, queries: Tensor, keys: Tensor) -> Tensor:
    apart = queries // pattern.block_size - keys // pattern.block_size
    near = apart.abs() <= pattern.reach * pattern.dilation
    return near & (apart % pattern.dilation == 0) if pattern.dilation > 1 else near


def _scatter(
    pattern: Pattern, n_tokens: int, positions: Tensor | None, flags: Tensor, tile: int
) -> Tensor | None:
    """[slots, r]: the keys of each query's random links that are not global tokens anyway, −1 = none."""
    links = pattern.links(n_tokens, positions)[0]
    if links.shape[1] == 0:
        return None
    tokens = torch.where(links[..., None] < 0, n_tokens, links[..., None] * pattern.block_size)
    tokens = (tokens + torch.arange(pattern.block_size)).flatten(1).clamp(max=n_tokens)
    tokens = tokens.masked_fill(F.pad(flags, (0, 1), value=True)[tokens], -1)
    rows = torch.arange(n_tokens) // pattern.block_size
    return F.pad(tokens[rows], (0, 0, 0, -n_tokens % tile), value=-1)
