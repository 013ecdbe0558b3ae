"""Lists of blocks in the form that FlexAttention takes; on any device, with nothing read back from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longtape.attention.cuda.block_lists import ABSENT, BlockLists, Tables


class MaskLists(NamedTuple):
    """Arguments of `BlockMask`: counts [P, 1, rows], indices [P, 1, rows, most], int32; `…q_…` for gradients.

    Where all blocks are seen whole there is one list and no mask function; else one for parts, `full_…` for wholes.
    """

    kv_num_blocks: Tensor
    kv_indices: Tensor
    q_num_blocks: Tensor | None = None
    q_indices: Tensor | None = None
    full_kv_num_blocks: Tensor | None = None
    full_kv_indices: Tensor | None = None
    full_q_num_blocks: Tensor | None = None
    full_q_indices: Tensor | None = None


def mask_lists(lists: BlockLists, codes: Tensor, backward: bool, whole: bool) -> MaskLists:
    """Lists by query and, where gradients are asked for, by key; `whole`: no block of `codes` is seen in part."""
    n_keys, there = lists.tables.key.shape[1] // lists.block, codes < ABSENT
    found: dict[str, Tensor] = {}
    for name, kind in (("", there),) if whole else (("", codes % 2 == 1), ("full_", codes % 2 == 0)):
        blocks = torch.where(there & kind, codes // 2, ABSENT).sort(-1).values
        found |= _named(f"{name}kv", *_counts(blocks))
        if backward:
            found |= _named(f"{name}q", *_transposed(blocks, n_keys, lists.most_queries))
    return MaskLists(**found)


def _named(name: str, count: Tensor, index: Tensor) -> dict[str, Tensor]:
    return {f"{name}_num_blocks": count.int()[:, None], f"{name}_indices": index.int()[:, None]}


def mask_padded_keys(lists: BlockLists, visible: Tensor) -> tuple[Tensor, Tables]:
    """Codes [B, query blocks, W] and tables of one call whose tokens are `visible` [B, N]."""
    tables, n = lists.tables, lists.rules.n_tokens
    key = tables.key.expand(len(visible), -1).long()
    shown = torch.where(key < 0, True, visible.gather(1, key.clamp(0, n - 1)))
    by_block = (shown & (key < ABSENT)).unflatten(1, (-1, lists.block))
    codes = lists.codes.expand(len(visible), -1, -1)
    index = torch.where(codes < ABSENT, codes // 2, 0).flatten(1)
    some, whole = (x.gather(1, index).view(codes.shape) for x in (by_block.any(-1), by_block.all(-1)))
    codes = torch.where((codes < ABSENT) & some, codes // 2 * 2 + torch.where(whole, codes % 2, 1), ABSENT)
    return codes, tables._replace(key=torch.where(shown, key, ABSENT).int())


def _counts(blocks: Tensor) -> tuple[Tensor, Tensor]:
    there = blocks < ABSENT
    return there.sum(-1), torch.where(there, blocks, 0)


def _transposed(blocks: Tensor, n_keys: int, most: int) -> tuple[Tensor, Tensor]:
    """Key blocks of rows [P, Q, W] → counts [P, n_keys] and rows [P, n_keys, most]."""
    n_rows = blocks.shape[1]
    row = torch.arange(n_rows, device=blocks.device)[:, None]
    pairs = (
        torch.where(blocks < ABSENT, blocks * n_rows + row, torch.iinfo(torch.int64).max)
        .flatten(1)
        .sort(-1)
        .values
    )
    borders = (torch.arange(n_keys + 1, device=blocks.device) * n_rows).expand(len(pairs), -1)
    first = torch.searchsorted(pairs, borders.contiguous())
    count, rank = first.diff(dim=-1), torch.arange(most, device=blocks.device)
    index = (first[:, :-1, None] + rank).clamp(max=pairs.shape[1] - 1)
    rows = pairs.gather(1, index.flatten(1)).view(index.shape) % n_rows
    return count, torch.where(rank < count[..., None], rows, 0)
