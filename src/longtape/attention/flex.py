"""The pattern mechanisms on CUDA: compiled FlexAttention with a block mask made from block lists.

Dong et al. 2024, "Flex Attention". The lists come from the rules in O(blocks²) at most, never from an N×N mask. The
lists and the mask function are tested against the definition on CPU; speed and the compiled kernels need a GPU and are
measured by `benchmarks/attention_cuda.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from longtape.attention.pattern import Pattern

DEFAULT_BLOCK = 128
_Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rules:
    """A pattern for one length with the tensors its mask function looks up."""

    pattern: Pattern
    n_tokens: int
    n_extra: int
    flags: Tensor  # bool [P, N]: global tokens
    rows: Tensor  # bool [P, N]: queries that see everything
    links: Tensor  # [P, units, L]

    @property
    def block(self) -> int:
        """Block of the kernel: the pattern's own where it is one of the kernel's sizes."""
        return self.pattern.block_size if self.pattern.block_size in (64, 128) else DEFAULT_BLOCK

    @property
    def n_padded(self) -> int:
        """Keys of the sequence in whole blocks; learned tokens stand behind them."""
        return -(-self.n_tokens // self.block) * self.block


def rules_of(
    pattern: Pattern, n_tokens: int, positions: Tensor | None, n_extra: int, global_rows: bool
) -> Rules:
    """Look up what the rules need, once for a length."""
    positions = None if positions is None else positions.cpu()
    flags, links = pattern.global_flags(n_tokens, positions), pattern.links(n_tokens, positions)
    return Rules(pattern, n_tokens, n_extra, flags, flags if global_rows else torch.zeros_like(flags), links)


def block_maps(rules: Rules, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Bool [P or B, blocks, key blocks]: pairs of blocks in which something is seen, and those in which all is."""
    some, full = _window_map(rules)
    linked, whole = _link_map(rules)
    column, row = _by_block(rules, rules.flags), _by_block(rules, rules.rows)
    some = some | linked | column.any(-1)[:, None] | row.any(-1)[..., None]
    full = full | whole | column.all(-1)[:, None] | _by_block(rules, rules.rows, True).all(-1)[..., None]
    start = torch.arange(some.shape[-1]) * rules.block
    if rules.pattern.causal:
        some = some & (start <= start[:, None] + rules.block - 1)
        full = full & (start + rules.block - 1 <= start[:, None])
    if visible is not None:
        shown = _by_block(rules, visible.cpu())
        some, full = some & shown.any(-1)[:, None], full & shown.all(-1)[:, None]
    full = full & (
        start + rules.block <= rules.n_tokens
    )  # the filling at the end is hidden by the mask function
    extra = -(-rules.n_extra // rules.block)
    return F.pad(some, (0, extra), value=True), F.pad(full, (0, extra), value=False)


def _window_map(rules: Rules) -> tuple[Tensor, Tensor]:
    size, unit, reach = rules.block, rules.pattern.block_size, rules.pattern.reach * rules.pattern.dilation
    start = torch.arange(rules.n_padded // size) * size
    first, last = start // unit, ((start + size).clamp(max=rules.n_tokens) - 1) // unit
    nearest = torch.maximum(first - last[:, None], first[:, None] - last)
    farthest = torch.maximum(last - first[:, None], last[:, None] - first)
    full = (farthest <= reach) & (rules.pattern.dilation == 1)
    return (nearest <= reach)[None], full[None]


def _link_map(rules: Rules) -> tuple[Tensor, Tensor]:
    size, unit, n = rules.block, rules.pattern.block_size, rules.n_padded // rules.block
    n_tables, n_units, _ = rules.links.shape
    step = gcd(size, unit)  # a unit is so many steps, and each step lies in one block
    inside = torch.arange(0, unit, step)
    source = (torch.arange(n_units)[:, None] * unit + inside)[:, None, :, None]  # tokens [units, 1, steps, 1]
    target = (rules.links[..., None] * unit + inside)[..., None, :]  # tokens [P, units, L, 1, steps]
    real = (target >= 0) & (target < rules.n_tokens) & (source < rules.n_tokens)
    pairs = torch.where(real, source // size * n + target // size, n * n).flatten(1)
    seen = torch.zeros(n_tables, n * n + 1, dtype=torch.bool).scatter(1, pairs, True)
    seen = seen[:, : n * n].reshape(n_tables, n, n)
    return seen, seen if unit % size == 0 else torch.zeros_like(seen)


def _by_block(rules: Rules, flags: Tensor, filling: bool = False) -> Tensor:
    return F.pad(flags, (0, rules.n_padded - rules.n_tokens), value=filling).unflatten(1, (-1, rules.block))


def mask_function(rules: Rules, visible: Tensor | None, device: torch.device) -> _Mask:
    """The rules as FlexAttention asks for them: (sample, head, query, key) → seen."""
    pattern, n, n_padded, n_extra = rules.pattern, rules.n_tokens, rules.n_padded, rules.n_extra
    flags, rows, links = (t.to(device) for t in (rules.flags, rules.rows, rules.links))
    many_flags, many_links = len(flags) > 1, len(links) > 1
    hidden = None if visible is None else (~visible).to(device)

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        query, key = i.clamp(max=n - 1), j.clamp(max=n - 1)
        p = b if many_flags else b * 0
        apart = query // pattern.block_size - key // pattern.block_size
        shown = (apart.abs() <= pattern.reach * pattern.dilation) & (apart % pattern.dilation == 0)
        shown = shown | flags[p, key] | rows[p, query]
        for t in range(links.shape[2]):
            link = links[b if many_links else b * 0, query // pattern.block_size, t]
            shown = shown | (link == key // pattern.block_size)
        if pattern.causal:
            shown = shown & (key <= query)
        if hidden is not None:
            shown = shown & ~hidden[b, key]
        return (shown & (j < n)) | ((j >= n_padded) & (j < n_padded + n_extra))

    return seen


def block_mask(rules: Rules, visible: Tensor | None, device: torch.device) -> BlockMask:
    """FlexAttention's mask from the block lists."""
    some, full = (m[:, None].to(device) for m in block_maps(rules, visible))
    part = some & ~full
    return BlockMask.from_kv_blocks(
        *_lists(part), *_lists(full), BLOCK_SIZE=rules.block, mask_mod=mask_function(rules, visible, device),
        seq_lengths=(rules.n_padded, some.shape[-1] * rules.block),
    )  # fmt: skip


def _lists(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [B, 1, Q, K] → number of key blocks [B, 1, Q] and their indices, first in each row of [B, 1, Q, K]."""
    order = (~pairs).to(torch.int8).argsort(dim=-1, stable=True)
    return pairs.sum(-1, dtype=torch.int32), order.to(torch.int32)


@lru_cache(maxsize=32)
def _fixed_mask(
    rules: tuple[int, ...], n_tokens: int, n_extra: int, global_rows: bool, device: torch.device
) -> tuple[Rules, BlockMask]:
    found = rules_of(Pattern.from_ints(rules), n_tokens, None, n_extra, global_rows)
    return found, block_mask(found, None, device)


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def flex_pattern_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    visible: Tensor | None = None,
    positions: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    of_global: tuple[Tensor, Tensor, Tensor] | None = None,
    compiled: bool = True,
) -> Tensor:
    """`pattern_attention` through FlexAttention; same arguments. Rows of padded queries are not zeroed."""
    n, n_extra = q.shape[2], 0 if extra_k is None else extra_k.shape[1]
    global_rows = of_global is None
    if visible is None and positions is None:
        rules, mask = _fixed_mask(tuple(pattern.to_ints()), n, n_extra, global_rows, q.device)
    else:
        rules = rules_of(pattern, n, positions, n_extra, global_rows)
        mask = block_mask(rules, visible, q.device)
    if visible is not None:
        k, v = (x.masked_fill(~visible[:, None, :, None], 0.0) for x in (k, v))
    k, v = (_with_extra(rules, x, e) for x, e in ((k, extra_k), (v, extra_v)))
    attend = _compiled() if compiled else flex_attention
    out = attend(_filled(q, rules.n_padded), k, v, block_mask=mask, scale=q.shape[-1] ** -0.5)
    if of_global is None or positions is None:
        return out[:, :, :n]
    return put_rows(
        out[:, :, :n], look_at_all(*of_global, positions, visible, causal=pattern.causal), positions
    )


def look_at_all(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, visible: Tensor | None, *, causal: bool
) -> Tensor:
    """The global queries q [B, H, G, D] at `positions` [B, G] over all keys [B, H, N, D] → [B, H, G, D]."""
    bias = None
    if visible is not None or causal:
        seen = (
            q.new_ones(q.shape[0], 1, k.shape[2], dtype=torch.bool) if visible is None else visible[:, None]
        )
        if causal:
            seen = seen & (torch.arange(k.shape[2], device=q.device) <= positions.clamp(min=0)[..., None])
        bias = q.new_zeros(seen.shape).masked_fill(~seen, torch.finfo(q.dtype).min)[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=q.shape[-1] ** -0.5)


def put_rows(y: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """Y [B, H, N, D] with rows [B, H, G, D] in place of those at `positions` [B, G]; −1 goes nowhere."""
    n = y.shape[2]
    spare = F.pad(y.transpose(1, 2), (0, 0, 0, 0, 0, 1))  # a copy with one row more, for the −1
    index = torch.where(positions < 0, n, positions)[..., None, None]
    rows = rows.transpose(1, 2).to(y.dtype)
    return spare.scatter_(1, index.expand_as(rows), rows)[:, :n].transpose(1, 2)


def _filled(x: Tensor, length: int) -> Tensor:
    return F.pad(x, (0, 0, 0, length - x.shape[2]))


def _with_extra(rules: Rules, x: Tensor, extra: Tensor | None) -> Tensor:
    if extra is None:
        return _filled(x, rules.n_padded)
    blocks = -(-rules.n_extra // rules.block)
    return torch.cat(
        [_filled(x, rules.n_padded), _filled(extra[None], blocks * rules.block).expand(len(x), -1, -1, -1)], 2
    )


def flex_table_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    *,
    block_size: int,
    dense: Sequence[int] = (),
    visible: Tensor | None = None,
    causal: bool = False,
    compiled: bool = True,
) -> Tensor:
    """`block_sparse_attention` through FlexAttention; same arguments. A block named k times adds ln k to its scores."""
    n = q.shape[2]
    counts = _table_counts(table, -(-n // block_size), dense).to(q.device)
    hidden = None if visible is None else (~visible).to(q.device)

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        key = j.clamp(max=n - 1)
        shown = (j < n) & ((j <= i) if causal else (j >= 0))
        return shown if hidden is None else shown & ~hidden[b, key]

    def weigh(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        at = counts[b if len(counts) > 1 else b * 0, h if counts.shape[1] > 1 else h * 0]
        return score + at[i // block_size, j // block_size].log()

    none = torch.zeros_like(counts, dtype=torch.bool)
    length = counts.shape[-1] * block_size
    mask = BlockMask.from_kv_blocks(
        *_lists(counts > 0), *_lists(none), BLOCK_SIZE=block_size, mask_mod=seen, seq_lengths=(length, length)
    )
    if visible is not None:
        k, v = (x.masked_fill(~visible[:, None, :, None], 0.0) for x in (k, v))
    attend = _compiled() if compiled else flex_attention
    q, k, v = (_filled(x, length) for x in (q, k, v))
    return attend(q, k, v, score_mod=weigh, block_mask=mask, scale=q.shape[-1] ** -0.5)[:, :, :n]


def _table_counts(table: Tensor, n_blocks: int, dense: Sequence[int]) -> Tensor:
    """How often each query block sees each key block, float32 [1 or B, 1 or H, blocks, blocks]."""
    table = table.cpu()[(None,) * (4 - table.dim())]
    counts = torch.zeros(*table.shape[:3], n_blocks + 1)
    counts.scatter_add_(3, torch.where(table < 0, n_blocks, table), torch.ones(table.shape))
    counts[:, :, list(dense)] = 1.0
    return counts[..., :n_blocks]
