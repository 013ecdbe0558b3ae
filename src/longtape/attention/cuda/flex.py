"""The pattern mechanisms on CUDA: compiled FlexAttention with a block mask made from block lists.

Dong et al. 2024, "Flex Attention". Lists (`block_lists.py`) and mask function are tested against the definition on a
CPU, the compiled kernels where there is a GPU; `benchmarks/attention_cuda.py` measures them. A compilation serves every
length; patterns of one dtype and head width differ in tensors, but for their links and the need of a mask. A compiled
model breaks its graph here, so that this holds within one too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention, noop_mask

from longtape.attention.base import mask_heads
from longtape.attention.cuda.block_lists import (
    ABSENT,
    DEFAULT_BLOCK,
    BlockLists,
    BlockRules,
    Tables,
    block_lists,
)
from longtape.attention.cuda.block_masks import MaskLists, mask_lists, mask_padded_keys
from longtape.attention.pattern import Pattern, check_positions

MODE = "max-autotune-no-cudagraphs"  # of torch.compile: the kernel's tiles are chosen by measuring, once
TILES: dict[
    str, Any
] = {}  # of the kernel by name (`fwd_BLOCK_M`, `bwd_num_warps`, …), in place of what MODE chooses
NARROWEST = 16  # head width that the kernel takes
_VARIANTS = (
    256  # compilations that are kept: dtypes, head widths, numbers of links, with and without gradient
)
_NO_LSE = -1e30  # log-sum-exp of a row that sees nothing, finite
_Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@torch.compiler.disable
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
    global_qkv: tuple[Tensor, Tensor, Tensor] | None = None,
    compiled: bool = True,
) -> Tensor:
    """`pattern_attention` through FlexAttention; same arguments. Rows of padded queries are not zeroed."""
    _refuse_float64(q)
    given = [x for x in (q, k, v, extra_k, extra_v) if x is not None]
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    rules = BlockRules(
        tuple(pattern.to_ints()),
        q.shape[2],
        0 if extra_k is None else extra_k.shape[1],
        _rows_of(positions, q.shape[2]),
        global_qkv is None,
        differentiable,
    )
    lists, mask = _cached_lists(rules, q.device)
    tables = None if lists.whole else lists.tables
    if visible is not None:
        codes, tables = mask_padded_keys(lists, visible)
        mask = mask_lists(lists, codes, differentiable, False)
        k, v = (mask_heads(x, visible) for x in (k, v))
    out = _attend_listed(q, k, v, extra_k, extra_v, lists, mask, tables, compiled)
    if global_qkv is None or positions is None:
        return out
    return scatter_rows(
        out, global_attention(*global_qkv, positions, visible, causal=pattern.causal), positions
    )


def _refuse_float64(q: Tensor) -> None:
    if q.is_cuda and q.dtype == torch.float64:
        raise ValueError("float64 has no form in FlexAttention: on CUDA use float32, or compute on a CPU")


def _rows_of(positions: Tensor | None, n_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The named tokens of each sample; once, where all samples have the same."""
    if positions is None:
        return ()
    check_positions(positions, n_tokens)
    rows = [tuple(row) for row in positions.tolist()]
    return tuple(rows[:1]) if rows.count(rows[0]) == len(rows) else tuple(rows)


@lru_cache(maxsize=32)
def _cached_lists(rules: BlockRules, device: torch.device) -> tuple[BlockLists, MaskLists]:
    lists = block_lists(rules).to(device)
    mask = mask_lists(lists, lists.codes, rules.copies_keys, lists.whole)
    return lists, mask


def _attend_listed(
    q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None,
    lists: BlockLists, mask: MaskLists, tables: Tables | None, compiled: bool,
) -> Tensor:  # fmt: skip
    """Copies in front, the kernel, and the copies of queries joined where they belong."""
    n, width = q.shape[2], q.shape[3]
    q = prepend_copies(q, lists, lists.query_copies)
    k, v = (prepend_copies(x, lists, lists.key_copies, extra) for x, extra in ((k, extra_k), (v, extra_v)))
    if width < NARROWEST:
        q = q * (NARROWEST / width) ** 0.5  # the scale follows the width that the kernel sees
        q, k, v = (F.pad(x, (0, NARROWEST - width)) for x in (q, k, v))
    out, lse = run_kernel(q, k, v, mask, tables, lists.block, lists.query_copies > 0, compiled)
    if lse is not None:
        out = _merge_copies(out, lse, lists)
    return out[:, :, :n, :width]


def prepend_copies(x: Tensor, lists: BlockLists, copies: int, learned: Tensor | None = None) -> Tensor:
    """x [B, H, N, D] in whole blocks, in front its global blocks, `copies` times, and learned tokens [H, E, D]."""
    filling = -x.shape[2] % lists.block
    if learned is not None:
        learned = F.pad(learned, (0, 0, 0, -learned.shape[1] % lists.block)).repeat(
            1, lists.learned_copies, 1
        )
        learned = learned.expand(len(x), -1, -1, -1)
    if not copies and not filling and learned is None:
        return x
    extended: Tensor = _PrependCopies.apply(
        x, lists.global_block_tokens.clamp(max=x.shape[2] - 1), copies, learned, filling
    )
    return extended


class _PrependCopies(torch.autograd.Function):
    """Copies, learned tokens, x, zeros. Backward works in the incoming gradient's memory, which is nobody else's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tokens: Tensor, copies: int, learned: Tensor | None, filling: int
    ) -> Tensor:
        index = tokens[:, None, :, None].expand(len(x), x.shape[1], -1, x.shape[3])
        ctx.save_for_backward(index)
        ctx.sizes = [
            copies * tokens.shape[1],
            0 if learned is None else learned.shape[2],
            x.shape[2],
            filling,
        ]
        ctx.copies = copies
        front = [x.gather(2, index).repeat(1, 1, copies, 1)] if copies else []
        last = [x.new_zeros(*x.shape[:2], filling, x.shape[3])] if filling else []
        return _cat_tokens([*front, *([] if learned is None else [learned]), x, *last])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        front, learned, own, _ = grads[0].split(ctx.sizes, 2)
        if ctx.copies:
            (index,) = ctx.saved_tensors
            own.scatter_add_(2, index, front.unflatten(2, (ctx.copies, -1)).sum(2))
        return own, None, None, learned if ctx.sizes[1] else None, None


def _cat_tokens(parts: list[Tensor]) -> Tensor:
    """Along the tokens, in memory by tokens where the parts are, as projections give them."""
    if parts[-1].stride(1) < parts[-1].stride(2):
        return torch.cat([x.transpose(1, 2) for x in parts], 1).transpose(1, 2)
    return torch.cat(parts, 2)


def _merge_copies(out: Tensor, lse: Tensor, lists: BlockLists) -> Tensor:
    """[B, H, copies + sequence, D] and log-sum-exp → [B, H, sequence, D]: copies joined into the rows they are of."""
    tokens = lists.query_copies * lists.global_blocks.shape[1] * lists.block
    copies, own = out.split([tokens, out.shape[2] - tokens], 2)
    weight = lse[:, :, :tokens].unflatten(2, (lists.query_copies, -1)).clamp(min=_NO_LSE).softmax(2)
    rows = (copies.unflatten(2, (lists.query_copies, -1)) * weight[..., None]).sum(2).to(out.dtype)
    index = lists.global_block_tokens[:, None, :, None].expand_as(rows)
    return own.scatter(2, index, rows) if torch.is_grad_enabled() else own.scatter_(2, index, rows)


def mask_function(tables: Tables | None) -> _Mask:
    """The rules as FlexAttention asks for them: (sample, head, place of a query, place of a key) → seen."""
    if tables is None:
        return noop_mask

    def table(x: Tensor, b: Tensor) -> Tensor:
        return b if x.shape[0] > 1 else b * 0

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        p = table(tables.low, b)
        key = tables.key[table(tables.key, b), j]
        shown = (tables.low[p, i] <= key) & (key < tables.high[p, i])
        if tables.query_class is not None and tables.key_class is not None:
            mine = tables.query_class[p, i]
            shown = shown & ((mine == tables.key_class[p, j]) | (mine < 0))
        shown = shown | tables.is_global[p, j]
        if tables.unit is not None:
            for linked in tables.links:
                shown = shown | (linked[p, i] == tables.unit[p, j])
        return shown & (key <= tables.last[p, i])

    return seen


def kernel(
    q: Tensor, k: Tensor, v: Tensor, lists: MaskLists, tables: Tables | None, small: bool, with_log: bool
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention with these lists in blocks of 64 (`small`) or 128: the output, and its log-sum-exp if asked for."""
    size = 64 if small else 128
    mask = BlockMask(
        seq_lengths=(q.shape[2], k.shape[2]),
        BLOCK_SIZE=(size, size),
        mask_mod=mask_function(tables),
        **lists._asdict(),
    )
    options = _kernel_options(q)
    if not with_log:
        return flex_attention(q, k, v, block_mask=mask, kernel_options=options), None
    out, more = flex_attention(
        q, k, v, block_mask=mask, kernel_options=options, return_aux=AuxRequest(lse=True)
    )
    return out, more.lse


def _kernel_options(q: Tensor) -> Any:
    """Lengths are whole blocks, which a symbolic length does not show; short ones take the same kernel as long ones."""
    return {"IS_DIVISIBLE": True, "BACKEND": "TRITON", **TILES} if q.is_cuda else None


def run_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: MaskLists,
    tables: Tables | None,
    block: int,
    with_log: bool,
    compiled: bool,
) -> tuple[Tensor, Tensor | None]:
    """`kernel`, compiled once for all lengths."""
    found: tuple[Tensor, Tensor | None]
    found = _call_kernel(kernel, [q, k, v], lists, tables, (block == 64, with_log), compiled)
    return found


def _call_kernel(
    function: Callable[..., Any], qkv: Sequence[Tensor], lists: MaskLists, tables: Any,
    flags: tuple[bool, ...], compiled: bool,
) -> Any:  # fmt: skip
    if not compiled:
        return function(*qkv, lists, tables, *flags)
    for x in qkv:
        torch._dynamo.maybe_mark_dynamic(x, 2)
    for listed in lists:
        for dim in range(2, 0 if listed is None else listed.dim()):
            torch._dynamo.maybe_mark_dynamic(listed, dim)
    for table in (*(tables or ()), *getattr(tables, "links", ())):
        if isinstance(table, Tensor):
            torch._dynamo.maybe_mark_dynamic(table, 1)
    with torch._dynamo.config.patch(recompile_limit=_VARIANTS, accumulated_recompile_limit=_VARIANTS):
        return _compiled(function, MODE)(*qkv, lists, tables, *flags)


@lru_cache(maxsize=4)
def _compiled(function: Callable[..., Any], mode: str) -> Any:
    """Fails, rather than fall back to a form that holds N×N scores, when there are too many variants."""
    return torch.compile(function, fullgraph=True, mode=mode)


def global_attention(
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


def scatter_rows(y: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """Y [B, H, N, D] with rows [B, H, G, D] in place of those at `positions` [B, G]; −1 goes nowhere."""
    n = y.shape[2]
    spare = F.pad(y.transpose(1, 2), (0, 0, 0, 0, 0, 1))  # a copy with one row more, for the −1
    index = torch.where(positions < 0, n, positions)[..., None, None]
    rows = rows.transpose(1, 2).to(y.dtype)
    return spare.scatter_(1, index.expand_as(rows), rows)[:, :n].transpose(1, 2)


# --- an explicit table of blocks ---


class TableRules(NamedTuple):
    """What score and mask of a table look up, by place."""

    key: Tensor  # int32 [1 or B, N'] the token in a place, NEVER = none or hidden
    last: Tensor  # int32 [1, N'] the last key that a query may see
    unit: Tensor  # int32 [1, N'] the block of the table
    log_count: Tensor  # float32 [1 or B, blocks, blocks, 1 or H] ln of how often it is named, −∞ = never


@torch.compiler.disable
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
    _refuse_float64(q)
    n, width = q.shape[2], q.shape[3]
    counts = _table_counts(table, -(-n // block_size), dense)
    block = 64 if block_size % 64 == 0 and block_size % 128 else DEFAULT_BLOCK
    filling, token = -n % block, torch.arange(n + -n % block)
    key = torch.where(token < n, token, ABSENT)[None].to(q.device)
    if visible is not None:
        key = torch.where(F.pad(visible, (0, filling)), key, ABSENT)
        k, v = (mask_heads(x, visible) for x in (k, v))
    last, unit = (
        (token if causal else token * 0 + n - 1),
        (token // block_size).clamp(max=counts.shape[-1] - 1),
    )
    rules = TableRules(
        key.int(),
        last[None].int().to(q.device),
        unit[None].int().to(q.device),
        counts.permute(0, 2, 3, 1).log().to(q.device),
    )
    lists = MaskLists(*(x.to(q.device) for x in _table_lists(counts, block_size, block, n)))
    padded = [F.pad(x, (0, max(0, NARROWEST - width), 0, filling)) for x in (q, k, v)]
    padded[0] = padded[0] * (padded[0].shape[3] / width) ** 0.5
    out: Tensor = _call_kernel(table_kernel, padded, lists, rules, (block == 64,), compiled)
    return out[:, :, :n, :width]


def table_kernel(q: Tensor, k: Tensor, v: Tensor, lists: MaskLists, rules: TableRules, small: bool) -> Tensor:
    """FlexAttention with the counts of a table."""

    def count(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        table, head = (
            (b if rules.log_count.shape[0] > 1 else b * 0),
            (h if rules.log_count.shape[3] > 1 else h * 0),
        )
        return rules.log_count[table, rules.unit[b * 0, i], rules.unit[b * 0, j], head]

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        key = rules.key[b if rules.key.shape[0] > 1 else b * 0, j]
        return (key <= rules.last[b * 0, i]) & (count(b, h, i, j) > _NO_LSE)

    def add_log_count(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + count(b, h, i, j)

    size = 64 if small else 128
    mask = BlockMask(
        seq_lengths=(q.shape[2], k.shape[2]), BLOCK_SIZE=(size, size), mask_mod=seen, **lists._asdict()
    )
    options = _kernel_options(q)
    found: Tensor = flex_attention(q, k, v, score_mod=add_log_count, block_mask=mask, kernel_options=options)
    return found


def _table_counts(table: Tensor, n_blocks: int, dense: Sequence[int]) -> Tensor:
    """How often each query block sees each key block, float32 [1 or B, 1 or H, blocks, blocks]."""
    table = table.cpu()[(None,) * (4 - table.dim())]
    counts = torch.zeros(*table.shape[:3], n_blocks + 1)
    counts.scatter_add_(3, torch.where(table < 0, n_blocks, table), torch.ones(table.shape))
    counts[:, :, list(dense)] = 1.0
    return counts[..., :n_blocks]


def _table_lists(counts: Tensor, block_size: int, block: int, n: int) -> list[Tensor]:
    """Lists in blocks of the kernel: a pair of them is needed if a pair of the table's blocks in it is named."""
    own, unit = torch.arange(-(-n // block))[:, None] * block, torch.arange(counts.shape[-1]) * block_size
    overlaps = ((unit < own + block) & (unit + block_size > own)).float()
    needed = (overlaps @ (counts > 0).float() @ overlaps.T > 0).flatten(0, 1)
    found = []
    for pairs in (needed, needed.transpose(1, 2)):
        order = (~pairs).to(torch.int8).argsort(dim=-1, stable=True)
        found += [pairs.sum(-1).unflatten(0, counts.shape[:2]), order.unflatten(0, counts.shape[:2])]
    return [x.to(torch.int32) for x in found]
