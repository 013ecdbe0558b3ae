"""Which blocks of keys each block of queries needs, as FlexAttention takes it: from the rules in O(N), never by N×N.

A block that holds a global token looks at all keys and is looked at by all queries. One thread block would go through
the whole sequence for it while the others go through eight blocks, and all would wait for that one. Such *hot* blocks
are therefore copied in front of the sequence, one copy for each piece of it. A copy of queries looks at the keys of its
piece, and the copies' outputs are joined by their log-sum-exp; a copy of keys is looked at by the queries of its piece,
and the copies' gradients add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longtape.attention.pattern import Pattern

DEFAULT_BLOCK = 128
PIECE = 32  # blocks in a piece
FEW = 0.25  # of a piece: with more hot blocks, copies would outgrow the sequence, and work is even anyway
ABSENT = 1 << 30  # the number of a key that no query sees; a block that is not there


class BlockRules(NamedTuple):
    """What the lists follow from; as plain numbers, so that they can be kept by it."""

    pattern: tuple[int, ...]  # `Pattern.to_ints`
    n_tokens: int
    n_extra: int = 0  # learned tokens, which every query sees
    positions: tuple[
        tuple[int, ...], ...
    ] = ()  # explicit global tokens of each sample, −1 = none; () = of no sample
    global_rows: bool = (
        True  # whether global tokens see everything; else something beside the kernel computes them
    )
    copies_keys: bool = False  # worth its while where gradients are asked for


class Tables(NamedTuple):
    """What the mask function looks up: P tables, one for all samples or one for each, by place of a query or key."""

    key: Tensor  # int32 [P, keys] the token in a place, −1 = a learned one, NEVER = nothing
    is_global: Tensor  # bool [P, keys]
    low: Tensor  # int32 [P, queries] the window: low ≤ key < high
    high: Tensor  # int32 [P, queries]
    last: Tensor  # int32 [P, queries] the last key that may be seen at all
    links: tuple[Tensor, ...]  # int32 [P, queries] each: a unit, −2 = none
    unit: Tensor | None  # int32 [P, keys] the unit of a key, with links
    query_class: (
        Tensor | None
    )  # int32 [P, queries] token modulo dilation, −1 = sees every class; without dilation None
    key_class: Tensor | None  # int32 [P, keys]

    def to(self, device: torch.device) -> Tables:
        """On another device."""
        moved = {name: x.to(device) for name, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(links=tuple(x.to(device) for x in self.links), **moved)


@dataclass(frozen=True)
class BlockLists:
    """Blocks in the order of the kernel: copies piece by piece, learned tokens likewise, then the sequence."""

    rules: BlockRules
    block: int  # tokens in a block
    pieces: int  # 1 = nothing is copied
    hot: Tensor  # [P, K] blocks that are copied, or are not for want of pieces
    codes: Tensor  # [P, query blocks, W] key block·2 + (1 where only a part is seen), NEVER behind the last
    most_queries: int  # that any block of keys is needed by
    whole: bool  # whether every block is seen whole: then nobody looks at the tables
    tables: Tables

    def to(self, device: torch.device) -> BlockLists:
        """On another device."""
        return BlockLists(
            self.rules, self.block, self.pieces, self.hot.to(device), self.codes.to(device), self.most_queries,
            self.whole, self.tables.to(device),
        )  # fmt: skip

    @property
    def query_copies(self) -> int:
        """How often hot blocks of queries stand in front."""
        return self.pieces if self.pieces > 1 and self.rules.global_rows and self.hot.shape[1] else 0

    @property
    def key_copies(self) -> int:
        """How often hot blocks of keys do."""
        return self.pieces if self.pieces > 1 and self.rules.copies_keys and self.hot.shape[1] else 0

    @property
    def learned_copies(self) -> int:
        """How often learned tokens do."""
        return self.pieces if self.rules.copies_keys else 1

    @property
    def hot_tokens(self) -> Tensor:
        """[P, K·block] the tokens of hot blocks; some may lie behind the end."""
        return (self.hot[..., None] * self.block + torch.arange(self.block, device=self.hot.device)).flatten(
            1
        )


def block_lists(rules: BlockRules) -> BlockLists:
    """The lists, on a CPU."""
    return _Builder(rules).build()


class _Builder:
    """Makes `BlockLists`. u: tokens of the pattern's unit, z: of a block; nB blocks of tokens, E of learned ones."""

    def __init__(self, rules: BlockRules) -> None:
        self.rules, self.pattern, self.n = rules, Pattern.from_ints(rules.pattern), rules.n_tokens
        positions = torch.tensor(rules.positions, dtype=torch.int64) if rules.positions else None
        self.flags = self.pattern.global_flags(self.n, positions)  # [P, N]
        self.links = self.pattern.links(self.n, positions)  # [P or 1, units, L]
        self.z = block_size(self.pattern)
        self.blocks, self.extra = -(-self.n // self.z), -(-rules.n_extra // self.z)
        self.own = torch.arange(self.blocks)
        by_block = F.pad(self.flags, (0, self.blocks * self.z - self.n), value=False).unflatten(
            1, (-1, self.z)
        )
        self.all_global = by_block.all(-1)  # [P, nB]
        self.whole_rows = by_block.sum(-1) == (self.n - self.own * self.z).clamp(max=self.z)
        self.hot = _hot_blocks(by_block.any(-1))
        few = (
            self.hot.shape[1] + self.extra <= FEW * PIECE
        )  # else copies outgrow the sequence, and work is even anyway
        self.pieces = -(-self.blocks // PIECE) if few and self.hot.shape[1] + self.extra else 1

    def build(self) -> BlockLists:
        """Rows of the sequence, and in front of them those of copies."""
        main = self._places(self._main_rows(), (self.own * self.pieces // self.blocks)[None])
        copies = self.pieces > 1 and self.rules.global_rows and self.hot.shape[1] > 0
        if copies:
            main = main.scatter(1, self.hot[..., None].expand(-1, -1, main.shape[2]), ABSENT)
            codes = _stack_rows(self._copied_rows(), main)
        elif self.rules.global_rows and self.hot.shape[1]:
            every = self._places(self._global_rows(), self.hot * self.pieces // self.blocks)
            main = _stack_rows(main, every[:, :0])
            codes = main.scatter(
                1, self.hot[..., None].expand(-1, -1, main.shape[2]), _pad_codes(every, main)
            )
        else:
            codes = main
        codes = codes[..., : max(1, int((codes < ABSENT).sum(-1).max()))]
        return BlockLists(
            self.rules, self.z, self.pieces, self.hot, codes, _most_queries(codes, self.n_key_blocks),
            bool(((codes == ABSENT) | (codes % 2 == 0)).all()), self._tables(bool(copies)),
        )  # fmt: skip

    # --- what a row needs, by blocks of the sequence and behind them those of learned tokens ---

    def _main_rows(self) -> Tensor:
        """Codes [P, nB, C] of what is seen by window, links, global keys and learned tokens."""
        parts = [self._window(), *self._linked(), self._columns(), self._learned().expand(1, self.blocks, -1)]
        tables = max(len(part) for part in parts)
        return _each_once(torch.cat([part.expand(tables, -1, -1) for part in parts], -1))

    def _window(self) -> Tensor:
        u, z, p = self.pattern.block_size, self.z, self.pattern
        first, last = self.own * z // u, (((self.own + 1) * z).clamp(max=self.n) - 1) // u
        reach = p.reach * p.dilation
        low, high = (
            ((first - reach) * u).clamp(min=0) // z,
            (((last + reach + 1) * u).clamp(max=self.n) - 1) // z,
        )
        keys = low[:, None] + torch.arange(int((high - low).max()) + 1)
        whole = (keys * z >= (last - reach)[:, None] * u) & (
            (keys + 1) * z <= (first + reach + 1)[:, None] * u
        )
        return self._coded(keys, keys <= high[:, None], whole & (p.dilation == 1))[None]

    def _linked(self) -> list[Tensor]:
        """Of every unit with a token in the row; of every block with a token of the unit that is linked to."""
        u, z, n_links = self.pattern.block_size, self.z, self.links.shape[2]
        if n_links == 0:
            return []
        first, last = self.own * z // u, (((self.own + 1) * z).clamp(max=self.n) - 1) // u
        units = first[:, None] + torch.arange(int((last - first).max()) + 1)  # [nB, m]
        there = self.links[:, units.clamp(max=self.links.shape[1] - 1)]  # [P, nB, m, L]
        there = there.masked_fill((units > last[:, None])[..., None], -1).flatten(2)[..., None]
        keys = there * u // z + torch.arange((u - 1) // z + 2)
        valid = (there >= 0) & (keys * z < ((there + 1) * u).clamp(max=self.n))
        whole = (there * u <= keys * z) & ((keys + 1) * z <= (there + 1) * u)
        alone = (first == last)[:, None, None]
        return [self._coded(keys.flatten(2), valid.flatten(2), (whole & alone).flatten(2))]

    def _columns(self) -> Tensor:
        keys = self.hot[:, None].expand(-1, self.blocks, -1)
        return self._coded(keys, keys >= 0, self.all_global.gather(1, self.hot)[:, None].expand_as(keys))

    def _learned(self) -> Tensor:
        e = torch.arange(self.extra)
        return (2 * (self.blocks + e) + ((e + 1) * self.z > self.rules.n_extra))[None, None]

    def _coded(self, keys: Tensor, valid: Tensor, whole: Tensor) -> Tensor:
        """Key blocks [P, nB, C] (or without P) as codes: a block that the end or the diagonal cuts is seen in part."""
        own = self.own[:, None]
        whole = whole & ((keys + 1) * self.z <= self.n)
        if self.pattern.causal:
            valid, whole = valid & (keys <= own), whole & (keys < own)
        return torch.where(valid, 2 * keys + ~whole, ABSENT)

    def _global_rows(self) -> Tensor:
        """Codes [P, K, nB + E] of hot rows, which look at all keys."""
        keys, own = torch.arange(self.blocks), self.hot[..., None]
        whole = self.whole_rows.gather(1, self.hot)[..., None] & ((keys + 1) * self.z <= self.n)
        codes = (2 * keys + ~(whole & (keys < own) if self.pattern.causal else whole)).expand(
            *self.hot.shape, -1
        )
        if self.pattern.causal:
            codes = codes.masked_fill(keys > own, ABSENT)
        return torch.cat([codes, self._learned().expand(*self.hot.shape, -1)], -1).sort(-1).values

    def _copied_rows(self) -> Tensor:
        """Codes [P, S·K, …] of the copies: each has the keys of its piece, the first also the learned tokens."""
        rows = self._global_rows()
        piece = torch.where(rows // 2 < self.blocks, rows // 2 * self.pieces // self.blocks, 0)
        mine = [rows.masked_fill(piece != s, ABSENT).sort(-1).values for s in range(self.pieces)]
        width = max(1, int((torch.stack(mine) < ABSENT).sum(-1).max()))
        return self._in_sequence(torch.cat([row[..., :width] for row in mine], 1))

    # --- where the kernel has these blocks ---

    @property
    def repeats(self) -> int:
        """How often learned tokens, and copies of hot blocks of keys, stand in front of the keys."""
        return self.pieces if self.rules.copies_keys else 1

    @property
    def key_copies(self) -> int:
        return self.hot.shape[1] * self.pieces if self.repeats > 1 else 0

    @property
    def n_key_blocks(self) -> int:
        return self.key_copies + self.extra * self.repeats + self.blocks

    def _in_sequence(self, codes: Tensor) -> Tensor:
        """Codes by blocks → codes by places, hot blocks by themselves; learned tokens in the first piece."""
        learned, sequence = self.key_copies - self.blocks, self.n_key_blocks - self.blocks
        return torch.where(
            codes < ABSENT, codes + 2 * torch.where(codes // 2 < self.blocks, sequence, learned), ABSENT
        )

    def _places(self, codes: Tensor, piece: Tensor) -> Tensor:
        """The same, hot blocks and learned tokens by the copies of each row's `piece` [P, rows]."""
        if self.repeats == 1:
            return self._in_sequence(codes)
        blocks, places, piece = codes // 2, self._in_sequence(codes) // 2, piece[..., None]
        places = torch.where(blocks >= self.blocks, places + piece * self.extra, places)
        number = torch.full((len(self.hot), self.blocks + 1), -1)  # of a hot block among the hot ones
        number.scatter_(1, self.hot, torch.arange(self.hot.shape[1]).expand_as(self.hot))
        index = blocks.clamp(max=self.blocks).flatten(1).expand(len(number), -1)
        k = number.gather(1, index).view(-1, *blocks.shape[1:])
        places = torch.where(k >= 0, k + piece * self.hot.shape[1], places)
        return torch.where(codes < ABSENT, 2 * places + codes % 2, ABSENT)

    # --- what the mask function looks up ---

    def _tables(self, copies: bool) -> Tables:
        p, u, tables = self.pattern, self.pattern.block_size, len(self.hot)
        tokens = torch.arange(self.blocks * self.z).expand(tables, -1)
        hot = (self.hot[..., None] * self.z + torch.arange(self.z)).flatten(1)
        query = torch.cat([hot.repeat(1, self.pieces), tokens] if copies else [tokens], 1).clamp(
            max=self.n - 1
        )
        learned = torch.arange(self.extra * self.z).expand(tables, -1)
        learned = torch.where(learned < self.rules.n_extra, -1, ABSENT)
        front = [hot.repeat(1, self.pieces)] if self.key_copies else []
        key = torch.cat([*front, learned.repeat(1, self.repeats), tokens], 1)
        key = torch.where((key >= self.n) | (key == ABSENT), ABSENT, key)
        wide = self.flags.gather(1, query) & self.rules.global_rows
        reach = p.reach * p.dilation
        real = (key >= 0) & (key < self.n)
        links: tuple[Tensor, ...] = ()
        unit, query_class, key_class = None, None, None
        if self.links.shape[2]:
            linked = self.links.expand(tables, -1, -1)
            index = (query // u)[..., None].expand(-1, -1, linked.shape[2])
            linked = linked.gather(1, index)
            links = tuple(x.contiguous() for x in linked.masked_fill(linked < 0, -2).int().unbind(-1))
            unit = torch.where(real, key // u, -1).int()
        if p.dilation > 1:
            query_class = torch.where(wide, -1, query % p.dilation).int()
            key_class = (key % p.dilation).int()
        return Tables(
            key.int(),
            torch.where(real, self.flags.gather(1, key.clamp(0, self.n - 1)), key == -1),
            ((query // u - reach) * u).clamp(min=0).masked_fill(wide, 0).int(),
            ((query // u + reach + 1) * u).clamp(max=self.n).masked_fill(wide, self.n).int(),
            (query if p.causal else torch.full_like(query, self.n - 1)).int(),
            links, unit, query_class, key_class,
        )  # fmt: skip


def block_size(pattern: Pattern) -> int:
    """Tokens in a block of the kernel: what divides the pattern's own, so that blocks are seen whole."""
    return next((z for z in (128, 64) if pattern.block_size % z == 0), DEFAULT_BLOCK)


def _hot_blocks(flagged: Tensor) -> Tensor:
    """Bool [P, nB] → [P, K] blocks; where a sample has fewer than others, any further ones."""
    count = int(flagged.sum(-1).max()) if flagged.numel() else 0
    return (~flagged).to(torch.int8).argsort(dim=-1, stable=True)[:, :count].sort(-1).values


def _each_once(codes: Tensor) -> Tensor:
    """Sort, and of several codes of a block keep the first: whole, if any rule shows it whole."""
    codes = codes.sort(-1).values
    again = F.pad(codes[..., 1:] // 2 == codes[..., :-1] // 2, (1, 0), value=False)
    return codes.masked_fill(again, ABSENT).sort(-1).values


def _pad_codes(codes: Tensor, other: Tensor) -> Tensor:
    return F.pad(codes, (0, max(0, other.shape[-1] - codes.shape[-1])), value=ABSENT)


def _stack_rows(above: Tensor, below: Tensor) -> Tensor:
    tables = max(len(above), len(below))
    above, below = _pad_codes(above, below), _pad_codes(below, above)
    return torch.cat([above.expand(tables, -1, -1), below.expand(tables, -1, -1)], 1)


def _most_queries(codes: Tensor, n_keys: int) -> int:
    """How many rows at most need one block of keys."""
    blocks = torch.where(codes < ABSENT, codes // 2, n_keys).flatten(1)
    counts = torch.zeros(len(codes), n_keys + 1, dtype=torch.int64).scatter_add_(
        1, blocks, torch.ones_like(blocks)
    )
    return max(1, int(counts[:, :n_keys].max()))


# --- the form that FlexAttention takes; on any device, with nothing read back from it ---


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
        found |= _named(f"{name}kv", *_counted(blocks))
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


def _counted(blocks: Tensor) -> tuple[Tensor, Tensor]:
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
