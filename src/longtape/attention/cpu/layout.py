"""From rules to layout: which units of keys each tile of queries reads, and what is added to their scores.

A *tile* is a run of queries computed together, a *unit* a run of keys gathered together. Behind the sequence lie extra
units that hold the keys of single global tokens and of learned tokens, so that one list per tile names everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from longtape.attention.cpu.flash_tiles import MASKED_SCORE
from longtape.attention.pattern import Pattern

SMALLEST_BLOCK = 16  # blocks below this are tiled as tokens: their own products would be too small
UNIT, UNITS_PER_TILE = 16, 4  # about so many tokens at token granularity, rounded down to whole blocks


@dataclass(frozen=True)
class TileGroup:
    """Tiles that see equally many units, so that none needs a mask for the missing ones."""

    tiles: Tensor  # [T]
    units: Tensor  # [T, w]; from `Layout.n_units` on: extra units
    bias: Tensor | None  # [1 or T, 1 or tile, w·unit] to add to the scores; None where every score counts


@dataclass(frozen=True)
class Layout:
    """What each tile of a sequence of one length sees."""

    n_tokens: int
    tile: int
    unit: int
    causal: bool
    groups: tuple[TileGroup, ...]
    dense: Tensor  # [S] slots whose queries see everything
    global_slots: Tensor  # [G] slots whose keys are copied into extra units, behind the learned tokens
    n_extra: int = 0  # learned tokens
    gathered: Tensor | None = None  # [slots, r] slots of the keys of single queries, −1 = none
    order: Tensor | None = None  # [slots] the token in each slot, −1 = filling; None: as they come
    dense_tokens: Tensor | None = (
        None  # [G] tokens (−1 = none) of dense queries that have projections of their own
    )

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

    def unpermute(self, slots: Tensor) -> Tensor:
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
        return self.n_padded + -(-(self.n_extra + len(self.global_slots)) // self.unit) * self.unit


def pattern_layout(pattern: Pattern, n_tokens: int, positions: Tensor | None, n_extra: int) -> Layout:
    """The layout of the rules with explicit global `positions` [G] (−1 = none) of one sample."""
    if pattern.block_size < SMALLEST_BLOCK:
        return _token_layout(pattern, n_tokens, positions, n_extra)
    return _block_layout(pattern, n_tokens, positions, n_extra)


def table_layout(table: Tensor, n_tokens: int, block_size: int, causal: bool, dense: list[int]) -> Layout:
    """The layout of an explicit table [blocks, W] of key blocks, −1 = none; `dense` query blocks see everything."""
    tokens = torch.cat([torch.arange(block_size) + block * block_size for block in dense] or [torch.empty(0)])
    tokens = tokens[tokens < n_tokens].long()
    blocks = torch.arange(len(table))
    tiles = blocks[~torch.isin(blocks, torch.tensor(dense, dtype=torch.int64))]
    layout = Layout(n_tokens, block_size, block_size, causal, (), tokens, tokens[:0])
    return _with_groups(layout, tiles, table[tiles])


@lru_cache(maxsize=256)
def cached_layout(
    rules: tuple[int, ...], n_tokens: int, n_extra: int, positions: tuple[int, ...], own_projections: bool
) -> Layout:
    """`pattern_layout` of `Pattern.to_ints`, kept; with `own_projections` the global queries are asked for by token."""
    named = torch.tensor(positions, dtype=torch.int64) if positions else None
    layout = pattern_layout(Pattern.from_ints(rules), n_tokens, named, n_extra)
    return replace(layout, dense_tokens=named) if own_projections else layout


def dense_layout(n_queries: int, n_keys: int) -> Layout:
    """The layout of queries that see all keys of another sequence."""
    every, none = torch.arange(n_queries), torch.empty(0, dtype=torch.int64)
    return Layout(n_keys, UNIT, UNIT, False, (), every, none, dense_tokens=every)


def _block_layout(pattern: Pattern, n_tokens: int, positions: Tensor | None, n_extra: int) -> Layout:
    """Tiles and units are the pattern's blocks."""
    n, size = pattern.n_units(n_tokens), pattern.block_size
    window, placed, links = _block_lists(pattern, n_tokens)
    table = torch.cat([window, placed, links], -1)
    global_units = pattern.global_units(n_tokens)
    in_global = pattern.global_flags(n_tokens)[0]
    named = pattern.global_flags(n_tokens, None if positions is None else positions[None])[0]
    global_slots = (named & ~in_global).nonzero()[:, 0]
    blocks = torch.arange(n)
    tiles = blocks[~torch.isin(blocks, torch.tensor(global_units, dtype=torch.int64))]
    layout = Layout(n_tokens, size, size, pattern.causal, (), named.nonzero()[:, 0], global_slots, n_extra)
    return _with_groups(layout, tiles, table[tiles])


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


def _with_groups(layout: Layout, tiles: Tensor, table: Tensor) -> Layout:
    """Sort tiles by the number of units they see; add masks where the diagonal, the end or single tokens need one."""
    far = layout.n_units  # sorts last
    none = (table < 0) | (table > tiles[:, None]) if layout.causal else table < 0
    ordered = table.masked_fill(none, far).sort(-1).values
    count = (ordered < far).sum(-1)
    extra = torch.arange(layout.n_units, layout.n_keys // layout.unit)
    groups = []
    for w in count.unique().tolist():
        chosen = count == w
        units = torch.cat([ordered[chosen, :w], extra.expand(int(chosen.sum()), -1)], -1)
        if units.shape[1]:
            groups.append(TileGroup(tiles[chosen], units, _block_bias(layout, tiles[chosen], units, w)))
    return replace(layout, groups=tuple(groups))


def _block_bias(layout: Layout, tiles: Tensor, units: Tensor, w: int) -> Tensor | None:
    """[1 or T, 1 or tile, w·unit + extra]: the future, the filling behind the end, tokens already seen in a unit."""
    keys = _tokens_of(units[:, :w], layout.unit)
    seen = torch.ones(1, 1, keys.shape[1], dtype=torch.bool)
    if (
        layout.causal
    ):  # the last of its units is a tile's own, all others lie before it: one mask for the group
        seen = keys[:1, None] <= _tokens_of(tiles[:1, None], layout.tile)[..., None]
    elif layout.n_padded > layout.n_tokens:
        seen = (keys < layout.n_tokens)[:, None]
    new = ~(units[:, :w, None] == layout.global_slots // layout.unit).any(1)[:, None]
    if layout.causal:
        new = new & (layout.global_slots <= _tokens_of(tiles[:, None], layout.tile)[..., None])
    return _as_bias(_concat_keys(seen, _extra_visible(layout, new)))


def _extra_visible(layout: Layout, new: Tensor) -> Tensor:
    """Bool [T, 1 or tile, extra keys]: learned tokens always, shared ones where they are new."""
    seen = F.pad(new, (layout.n_extra, 0), value=True)
    return F.pad(seen, (0, layout.n_keys - layout.n_padded - seen.shape[-1]))


def _concat_keys(left: Tensor, right: Tensor) -> Tensor:
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
    return torch.zeros(seen.shape).masked_fill(~seen, MASKED_SCORE)


def _token_layout(pattern: Pattern, n_tokens: int, positions: Tensor | None, n_extra: int) -> Layout:
    """Tiles of queries over a band of keys; global tokens in extra units; random keys query by query.

    With a dilation d, tokens of the same remainder modulo d stand together: their window is a band again.
    """
    named = None if positions is None else positions[None]
    flags = pattern.global_flags(n_tokens, named)[0]
    unit = pattern.block_size * (UNIT // pattern.block_size)
    tile = unit * UNITS_PER_TILE
    order = _by_remainder(n_tokens, pattern.dilation, tile) if pattern.dilation > 1 else None
    slots = flags.nonzero()[:, 0] if order is None else _slots_of(order, n_tokens)[flags].sort().values
    gathered = _gathered_links(pattern, n_tokens, named, flags, tile)
    layout = Layout(n_tokens, tile, unit, pattern.causal, (), slots, slots, n_extra, gathered, order)
    return replace(layout, groups=_band_groups(layout, pattern))


def _by_remainder(n_tokens: int, dilation: int, tile: int) -> Tensor:
    """[slots]: tokens sorted by remainder, each class filled up to whole tiles with −1."""
    classes = [torch.arange(r, n_tokens, dilation) for r in range(min(dilation, n_tokens))]
    return torch.cat([F.pad(c, (0, -len(c) % tile), value=-1) for c in classes])


def _slots_of(order: Tensor, n_tokens: int) -> Tensor:
    """[N]: the slot of each token."""
    slots = torch.empty(n_tokens, dtype=torch.int64)
    slots[order[order >= 0]] = (order >= 0).nonzero()[:, 0]
    return slots


def _band_groups(layout: Layout, pattern: Pattern) -> tuple[TileGroup, ...]:
    """Tiles whose band lies alike share a mask; those near the ends or near a global token get one each."""
    around = min(-(-pattern.reach * pattern.block_size // layout.unit), layout.n_units)
    tiles = torch.arange(layout.n_padded // layout.tile)
    table = tiles[:, None] * UNITS_PER_TILE + torch.arange(-around, UNITS_PER_TILE + around)
    valid = (table >= 0) & (table < layout.n_units)
    first, stop = table[:, 0] * layout.unit, (table[:, -1] + 1) * layout.unit
    breaks = (
        torch.cat([layout.global_slots, (layout.tokens.diff() != pattern.dilation).nonzero()[:, 0]])
        .sort()
        .values
    )
    special = torch.searchsorted(breaks, stop) > torch.searchsorted(breaks, first)
    extra_slots = torch.searchsorted(layout.global_slots, first) * (~special if layout.causal else 0)
    kind = torch.stack([valid.sum(-1), special, table[:, 0] < 0, extra_slots], -1)
    kinds, which = kind.unique(dim=0, return_inverse=True)
    extra = torch.arange(layout.n_units, layout.n_keys // layout.unit)
    groups = []
    for number, (w, is_special, *_) in enumerate(kinds.tolist()):
        chosen = tiles[which == number]
        units = torch.cat([table[chosen][valid[chosen]].view(-1, w), extra.expand(len(chosen), -1)], -1)
        pick = slice(None) if is_special else slice(1)
        groups.append(
            TileGroup(chosen, units, _as_bias(_band_visible(layout, pattern, chosen[pick], units[pick, :w])))
        )
    return tuple(groups)


def _band_visible(layout: Layout, pattern: Pattern, tiles: Tensor, units: Tensor) -> Tensor:
    """Bool [T, tile, keys]: the window in tokens and the extra keys that it does not hold."""
    queries = layout.tokens[_tokens_of(tiles[:, None], layout.tile)][..., None]
    keys = layout.tokens[_tokens_of(units, layout.unit)][:, None]
    seen = _in_window(pattern, queries, keys) & (keys >= 0)
    if layout.causal:
        seen = seen & (keys <= queries)
    global_slots = layout.tokens[layout.global_slots]
    new = ~_in_window(pattern, queries, global_slots)
    if layout.causal:
        new = new & (global_slots <= queries)
    return _concat_keys(seen, _extra_visible(layout, new))


def _in_window(pattern: Pattern, queries: Tensor, keys: Tensor) -> Tensor:
    apart = queries // pattern.block_size - keys // pattern.block_size
    near = apart.abs() <= pattern.reach * pattern.dilation
    return near & (apart % pattern.dilation == 0) if pattern.dilation > 1 else near


def _gathered_links(
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
