"""Which blocks of keys each block of queries needs, as FlexAttention takes it: from the rules in O(N), never by N×N.

A block that holds a global token looks at all keys and is looked at by all queries. One thread block would go through
the whole sequence for it while the others go through eight blocks, and all would wait for that one. Such *global
blocks* are therefore copied in front of the sequence, one copy for each piece of it. A copy of queries looks at the
keys of its piece, and the copies' outputs are joined by their log-sum-exp; a copy of keys is looked at by the queries
of its piece, and the copies' gradients add up.
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
FEW = 0.25  # of a piece: with more global blocks, copies would outgrow the sequence, and work is even anyway
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

    key: Tensor  # int32 [P, keys] the token in a place, −1 = a learned one, ABSENT = nothing
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
    global_blocks: Tensor  # [P, K] blocks that hold a global token; copied where there is more than one piece
    codes: Tensor  # [P, query blocks, W] key block·2 + (1 where only a part is seen), ABSENT behind the last
    most_queries: int  # that any block of keys is needed by
    whole: bool  # whether every block is seen whole: then nobody looks at the tables
    tables: Tables

    def to(self, device: torch.device) -> BlockLists:
        """On another device."""
        return BlockLists(
            self.rules, self.block, self.pieces, self.global_blocks.to(device), self.codes.to(device),
            self.most_queries, self.whole, self.tables.to(device),
        )  # fmt: skip

    @property
    def query_copies(self) -> int:
        """How often global blocks of queries stand in front."""
        return (
            self.pieces if self.pieces > 1 and self.rules.global_rows and self.global_blocks.shape[1] else 0
        )

    @property
    def key_copies(self) -> int:
        """How often global blocks of keys do."""
        return (
            self.pieces if self.pieces > 1 and self.rules.copies_keys and self.global_blocks.shape[1] else 0
        )

    @property
    def learned_copies(self) -> int:
        """How often learned tokens do."""
        return self.pieces if self.rules.copies_keys else 1

    @property
    def global_block_tokens(self) -> Tensor:
        """[P, K·block] the tokens of global blocks; some may lie behind the end."""
        return (
            self.global_blocks[..., None] * self.block
            + torch.arange(self.block, device=self.global_blocks.device)
        ).flatten(1)


def block_lists(rules: BlockRules) -> BlockLists:
    """The lists, on a CPU: rows of the sequence, and in front of them those of copies."""
    b = _Blocks.of(rules)
    codes = _by_place(b, _sequence_rows(b), (b.own * b.pieces // b.n)[None])
    if b.copies_queries:
        codes = codes.scatter(1, b.global_blocks[..., None].expand(-1, -1, codes.shape[2]), ABSENT)
        codes = _stack_rows(_copied_rows(b), codes)
    elif b.has_global_rows:
        codes = _with_global_rows(b, codes)
    codes = codes[..., : max(1, int((codes < ABSENT).sum(-1).max()))]
    return BlockLists(
        rules, b.size, b.pieces, b.global_blocks, codes, _most_queries(codes, b.n_keys),
        bool(((codes == ABSENT) | (codes % 2 == 0)).all()), _mask_tables(b),
    )  # fmt: skip


@dataclass(frozen=True)
class _Blocks:
    """The sequence in blocks of `size` tokens: n of them, and `extra` of learned tokens."""

    rules: BlockRules
    pattern: Pattern
    size: int
    n: int
    extra: int
    pieces: int
    flags: Tensor  # bool [P, N] the global tokens
    links: Tensor  # [P or 1, units, L] random links between units of the pattern
    all_global: (
        Tensor  # bool [P, n] every token of the block is global, filling aside or (`whole_rows`) not counted
    )
    whole_rows: Tensor
    global_blocks: Tensor  # [P, K]

    @classmethod
    def of(cls, rules: BlockRules) -> _Blocks:
        pattern, n_tokens = Pattern.from_ints(rules.pattern), rules.n_tokens
        size = block_size(pattern)
        n, extra = -(-n_tokens // size), -(-rules.n_extra // size)
        positions = torch.tensor(rules.positions, dtype=torch.int64) if rules.positions else None
        flags = pattern.global_flags(n_tokens, positions)
        by_block = F.pad(flags, (0, n * size - n_tokens), value=False).unflatten(1, (-1, size))
        tokens = (n_tokens - torch.arange(n) * size).clamp(max=size)  # of each block
        global_blocks = _global_blocks(by_block.any(-1))
        copied = global_blocks.shape[1] + extra
        pieces = -(-n // PIECE) if 0 < copied <= FEW * PIECE else 1
        return cls(
            rules, pattern, size, n, extra, pieces, flags, pattern.links(n_tokens, positions),
            by_block.all(-1), by_block.sum(-1) == tokens, global_blocks,
        )  # fmt: skip

    @property
    def own(self) -> Tensor:
        """[n] the blocks' numbers."""
        return torch.arange(self.n)

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """The first and the last unit of the pattern in each block, [n] each."""
        ends = ((self.own + 1) * self.size).clamp(max=self.rules.n_tokens) - 1
        return self.own * self.size // self.pattern.block_size, ends // self.pattern.block_size

    @property
    def has_global_rows(self) -> bool:
        """Whether some queries of the kernel look at all keys."""
        return self.rules.global_rows and self.global_blocks.shape[1] > 0

    @property
    def copies_queries(self) -> bool:
        """Whether these stand in front, once for each piece."""
        return self.pieces > 1 and self.has_global_rows

    @property
    def repeats(self) -> int:
        """How often learned tokens, and copies of global blocks of keys, stand in front of the keys."""
        return self.pieces if self.rules.copies_keys else 1

    @property
    def key_copies(self) -> int:
        """Copied blocks in front of the keys."""
        return self.global_blocks.shape[1] * self.pieces if self.repeats > 1 else 0

    @property
    def n_keys(self) -> int:
        """Blocks of keys: copies, learned tokens, the sequence."""
        return self.key_copies + self.extra * self.repeats + self.n


# --- what a row needs, by blocks of the sequence and behind them those of learned tokens ---


def _sequence_rows(b: _Blocks) -> Tensor:
    """Codes [P, n, C] of what is seen by window, links, global keys and learned tokens."""
    parts = [_window_codes(b), *_link_codes(b), _global_key_codes(b), _learned_codes(b).expand(1, b.n, -1)]
    tables = max(len(part) for part in parts)
    return _deduplicated(torch.cat([part.expand(tables, -1, -1) for part in parts], -1))


def _window_codes(b: _Blocks) -> Tensor:
    unit, size, n_tokens, (first, last) = b.pattern.block_size, b.size, b.rules.n_tokens, b.units
    reach = b.pattern.reach * b.pattern.dilation
    low = ((first - reach) * unit).clamp(min=0) // size
    high = (((last + reach + 1) * unit).clamp(max=n_tokens) - 1) // size
    keys = low[:, None] + torch.arange(int((high - low).max()) + 1)
    whole = (keys * size >= (last - reach)[:, None] * unit) & (
        (keys + 1) * size <= (first + reach + 1)[:, None] * unit
    )
    return _encode(b, keys, keys <= high[:, None], whole & (b.pattern.dilation == 1))[None]


def _link_codes(b: _Blocks) -> list[Tensor]:
    """Of every unit with a token in the row; of every block with a token of the unit that is linked to."""
    unit, size, (first, last) = b.pattern.block_size, b.size, b.units
    if b.links.shape[2] == 0:
        return []
    units = first[:, None] + torch.arange(int((last - first).max()) + 1)  # [n, m]
    linked = b.links[:, units.clamp(max=b.links.shape[1] - 1)]  # [P, n, m, L]
    linked = linked.masked_fill((units > last[:, None])[..., None], -1).flatten(2)[..., None]
    keys = linked * unit // size + torch.arange((unit - 1) // size + 2)
    valid = (linked >= 0) & (keys * size < ((linked + 1) * unit).clamp(max=b.rules.n_tokens))
    whole = (linked * unit <= keys * size) & ((keys + 1) * size <= (linked + 1) * unit)
    alone = (first == last)[:, None, None]
    return [_encode(b, keys.flatten(2), valid.flatten(2), (whole & alone).flatten(2))]


def _global_key_codes(b: _Blocks) -> Tensor:
    keys = b.global_blocks[:, None].expand(-1, b.n, -1)
    whole = b.all_global.gather(1, b.global_blocks)[:, None].expand_as(keys)
    return _encode(b, keys, keys >= 0, whole)


def _learned_codes(b: _Blocks) -> Tensor:
    e = torch.arange(b.extra)
    return (2 * (b.n + e) + ((e + 1) * b.size > b.rules.n_extra))[None, None]


def _encode(b: _Blocks, keys: Tensor, valid: Tensor, whole: Tensor) -> Tensor:
    """Key blocks [P, n, C] (or without P) as codes: a block that the end or the diagonal cuts is seen in part."""
    own = b.own[:, None]
    whole = whole & ((keys + 1) * b.size <= b.rules.n_tokens)
    if b.pattern.causal:
        valid, whole = valid & (keys <= own), whole & (keys < own)
    return torch.where(valid, 2 * keys + ~whole, ABSENT)


def _global_rows(b: _Blocks) -> Tensor:
    """Codes [P, K, n + extra] of the rows of global blocks, which look at all keys."""
    keys, own = b.own, b.global_blocks[..., None]
    whole = b.whole_rows.gather(1, b.global_blocks)[..., None] & ((keys + 1) * b.size <= b.rules.n_tokens)
    if b.pattern.causal:
        codes = (2 * keys + ~(whole & (keys < own))).masked_fill(keys > own, ABSENT)
    else:
        codes = (2 * keys + ~whole).expand(*b.global_blocks.shape, -1)
    return torch.cat([codes, _learned_codes(b).expand(*b.global_blocks.shape, -1)], -1).sort(-1).values


def _copied_rows(b: _Blocks) -> Tensor:
    """Codes [P, S·K, …] of the copies: each has the keys of its piece, the first also the learned tokens."""
    rows = _global_rows(b)
    piece = torch.where(rows // 2 < b.n, rows // 2 * b.pieces // b.n, 0)
    mine = [rows.masked_fill(piece != s, ABSENT).sort(-1).values for s in range(b.pieces)]
    width = max(1, int((torch.stack(mine) < ABSENT).sum(-1).max()))
    return _in_sequence(b, torch.cat([row[..., :width] for row in mine], 1))


def _with_global_rows(b: _Blocks, codes: Tensor) -> Tensor:
    """Codes by place [P, n, W] with the rows of global blocks in their places."""
    rows = _by_place(b, _global_rows(b), b.global_blocks * b.pieces // b.n)
    codes = _stack_rows(codes, rows[:, :0])  # as wide, and as many tables
    index = b.global_blocks[..., None].expand(-1, -1, codes.shape[2])
    return codes.scatter(1, index, _pad_codes(rows, codes))


# --- where the kernel has these blocks ---


def _in_sequence(b: _Blocks, codes: Tensor) -> Tensor:
    """Codes by blocks → codes by places, global blocks by themselves; learned tokens in the first piece."""
    learned, sequence = b.key_copies - b.n, b.n_keys - b.n
    return torch.where(codes < ABSENT, codes + 2 * torch.where(codes // 2 < b.n, sequence, learned), ABSENT)


def _by_place(b: _Blocks, codes: Tensor, piece: Tensor) -> Tensor:
    """The same, global blocks and learned tokens by the copies of each row's `piece` [P, rows]."""
    if b.repeats == 1:
        return _in_sequence(b, codes)
    blocks, places, piece = codes // 2, _in_sequence(b, codes) // 2, piece[..., None]
    places = torch.where(blocks >= b.n, places + piece * b.extra, places)
    number = torch.full((len(b.global_blocks), b.n + 1), -1)  # of a global block among the global ones
    number.scatter_(1, b.global_blocks, torch.arange(b.global_blocks.shape[1]).expand_as(b.global_blocks))
    index = blocks.clamp(max=b.n).flatten(1).expand(len(number), -1)
    k = number.gather(1, index).view(-1, *blocks.shape[1:])
    places = torch.where(k >= 0, k + piece * b.global_blocks.shape[1], places)
    return torch.where(codes < ABSENT, 2 * places + codes % 2, ABSENT)


# --- what the mask function looks up ---


def _mask_tables(b: _Blocks) -> Tables:
    p, unit, n_tokens = b.pattern, b.pattern.block_size, b.rules.n_tokens
    query, key = _query_tokens(b), _key_tokens(b)
    is_token = (key >= 0) & (key < n_tokens)
    sees_all = b.flags.gather(1, query) & b.rules.global_rows
    reach = p.reach * p.dilation
    links, linked_unit = _link_tables(b, query, torch.where(is_token, key // unit, -1))
    return Tables(
        key.int(),
        torch.where(is_token, b.flags.gather(1, key.clamp(0, n_tokens - 1)), key == -1),
        ((query // unit - reach) * unit).clamp(min=0).masked_fill(sees_all, 0).int(),
        ((query // unit + reach + 1) * unit).clamp(max=n_tokens).masked_fill(sees_all, n_tokens).int(),
        (query if p.causal else torch.full_like(query, n_tokens - 1)).int(),
        links,
        linked_unit,
        torch.where(sees_all, -1, query % p.dilation).int() if p.dilation > 1 else None,
        (key % p.dilation).int() if p.dilation > 1 else None,
    )


def _query_tokens(b: _Blocks) -> Tensor:
    """[P, queries] the token in each place of a query; the last one also behind the end."""
    tokens = torch.arange(b.n * b.size).expand(len(b.global_blocks), -1)
    copies = [_tokens_of_global_blocks(b).repeat(1, b.pieces)] if b.copies_queries else []
    return torch.cat([*copies, tokens], 1).clamp(max=b.rules.n_tokens - 1)


def _key_tokens(b: _Blocks) -> Tensor:
    """[P, keys] the token in each place of a key, −1 = a learned one, ABSENT = none."""
    tables = len(b.global_blocks)
    learned = torch.arange(b.extra * b.size).expand(tables, -1)
    learned = torch.where(learned < b.rules.n_extra, -1, ABSENT)
    copies = [_tokens_of_global_blocks(b).repeat(1, b.pieces)] if b.key_copies else []
    tokens = torch.arange(b.n * b.size).expand(tables, -1)
    key = torch.cat([*copies, learned.repeat(1, b.repeats), tokens], 1)
    return torch.where(key >= b.rules.n_tokens, ABSENT, key)


def _tokens_of_global_blocks(b: _Blocks) -> Tensor:
    return (b.global_blocks[..., None] * b.size + torch.arange(b.size)).flatten(1)


def _link_tables(b: _Blocks, query: Tensor, key_unit: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The units that each query is linked to, and the unit of each key; nothing without links."""
    if not b.links.shape[2]:
        return (), None
    links = b.links.expand(len(query), -1, -1)
    index = (query // b.pattern.block_size)[..., None].expand(-1, -1, links.shape[2])
    links = links.gather(1, index)
    links = links.masked_fill(links < 0, -2).int()
    return tuple(one.contiguous() for one in links.unbind(-1)), key_unit.int()


def block_size(pattern: Pattern) -> int:
    """Tokens in a block of the kernel: what divides the pattern's own, so that blocks are seen whole."""
    return next((z for z in (128, 64) if pattern.block_size % z == 0), DEFAULT_BLOCK)


def _global_blocks(flagged: Tensor) -> Tensor:
    """Bool [P, nB] → [P, K] blocks; where a sample has fewer than others, any further ones."""
    count = int(flagged.sum(-1).max()) if flagged.numel() else 0
    return (~flagged).to(torch.int8).argsort(dim=-1, stable=True)[:, :count].sort(-1).values


def _deduplicated(codes: Tensor) -> Tensor:
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
