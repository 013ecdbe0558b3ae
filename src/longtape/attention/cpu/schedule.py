"""From a `Layout` to the lists that the compiled loops of `flash_tiles.py` go through."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longtape.attention.cpu.flash_tiles import KEY_TILE, QUERY_TILE, TileSchedule
from longtape.attention.cpu.layout import Layout, TileGroup, cached_layout, dense_layout


class Scheduled(NamedTuple):
    """A layout, and what the loops go through for it in one dtype."""

    layout: Layout
    tiled: list[TileSchedule]
    dense: list[TileSchedule]  # of the queries that see everything: one or none


@lru_cache(maxsize=256)
def schedule_pattern(
    rules: tuple[int, ...],
    n_tokens: int,
    n_extra: int,
    positions: tuple[int, ...],
    own_projections: bool,
    dtype: torch.dtype,
) -> Scheduled:
    """Of `cached_layout`, kept."""
    return schedule_layout(cached_layout(rules, n_tokens, n_extra, positions, own_projections), dtype)


@lru_cache(maxsize=16)
def schedule_dense(n_queries: int, n_keys: int, dtype: torch.dtype) -> Scheduled:
    """Of queries that see all keys of another sequence, kept."""
    return schedule_layout(dense_layout(n_queries, n_keys), dtype)


def schedule_layout(layout: Layout, dtype: torch.dtype) -> Scheduled:
    """The groups of a layout, and the queries that see everything."""
    dense = [_dense(layout, dtype)] if len(layout.dense) else []
    return Scheduled(layout, [_schedule(layout, group, dtype) for group in layout.groups], dense)


class _KeyTiles(NamedTuple):
    starts: Tensor  # [T, P]
    sizes: Tensor  # [P]
    columns: Tensor  # [P]


def _schedule(layout: Layout, group: TileGroup, dtype: torch.dtype) -> TileSchedule:
    tokens = layout.tokens.clone()
    tokens[layout.dense] = -1  # these have a schedule of their own
    rows = tokens.view(-1, layout.tile)[group.tiles]
    key_tiles = _key_tiles(layout, group.units)
    bias, steps = torch.empty(0, dtype=dtype), (0, 0, 0)
    masked = torch.zeros(len(key_tiles.sizes), dtype=torch.bool)
    if group.bias is not None:
        by_key = group.bias.transpose(1, 2).contiguous()  # queries last, as the lanes are
        a, b, c = (0 if n == 1 else s for n, s in zip(by_key.shape, by_key.stride(), strict=True))
        steps = (a, b, c)
        hides = (by_key < 0).any(2).any(0)
        masked = torch.stack([part.any() for part in _cut(hides, key_tiles)])
        bias = by_key.flatten().to(dtype)
    gathered = torch.empty(0, 0, dtype=torch.int64) if layout.gathered is None else layout.gathered
    return TileSchedule(
        rows.numpy(), rows.numpy(), key_tiles.starts.numpy(), key_tiles.sizes.numpy(), key_tiles.columns.numpy(),
        masked.numpy(), bias.numpy(), *steps,
        torch.empty(0, dtype=torch.int64).numpy(), False,
        gathered.contiguous().numpy(), (group.tiles * layout.tile).numpy(),
    )  # fmt: skip


def _dense(layout: Layout, dtype: torch.dtype) -> TileSchedule:
    """Queries that see everything, as many at a time as the lanes take."""
    queries = layout.tokens[layout.dense] if layout.dense_tokens is None else layout.dense_tokens
    rows = queries if layout.dense_tokens is None else torch.arange(len(queries)).masked_fill(queries < 0, -1)
    rows, queries = (
        F.pad(x, (0, -len(x) % QUERY_TILE), value=-1).view(-1, QUERY_TILE) for x in (rows, queries)
    )
    key_tiles = _key_tiles(layout, torch.arange(layout.n_keys // layout.unit).expand(len(rows), -1))
    slots = torch.full((layout.n_keys,), -1)
    slots[: layout.n_padded] = layout.tokens
    slots[layout.n_padded : layout.n_padded + layout.n_extra] = 0  # learned tokens lie before all others
    none = torch.empty(0, dtype=torch.int64).numpy()
    return TileSchedule(
        rows.numpy(), queries.numpy(), key_tiles.starts.numpy(), key_tiles.sizes.numpy(), key_tiles.columns.numpy(),
        torch.zeros(len(key_tiles.sizes), dtype=torch.bool).numpy(), torch.empty(0, dtype=dtype).numpy(), 0, 0, 0,
        slots.numpy(), layout.causal, none.reshape(0, 0), none,
    )  # fmt: skip


def _key_tiles(layout: Layout, units: Tensor) -> _KeyTiles:
    """Join units [T, w] that follow each other in every tile, and cut what is longer than the loops take."""
    follows = (units[:, 1:] == units[:, :-1] + 1).all(0) & (units[:, 1:] != layout.n_units).all(0)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), (~follows).nonzero()[:, 0] + 1])  # of each run
    length = torch.diff(first, append=torch.tensor([units.shape[1]])) * layout.unit
    pieces = -(-length // KEY_TILE)
    run = torch.repeat_interleave(pieces)
    within = (torch.arange(len(run)) - (pieces.cumsum(0) - pieces)[run]) * KEY_TILE
    sizes = torch.minimum(length[run] - within, torch.tensor(KEY_TILE))
    starts = units[:, first[run]] * layout.unit + within
    return _KeyTiles(starts.contiguous(), sizes, first[run] * layout.unit + within)


def _cut(by_column: Tensor, key_tiles: _KeyTiles) -> list[Tensor]:
    ends = key_tiles.columns + key_tiles.sizes
    return [
        by_column[start:stop] for start, stop in zip(key_tiles.columns.tolist(), ends.tolist(), strict=True)
    ]
