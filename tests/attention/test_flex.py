"""The CUDA path, as far as a CPU shows it: block lists and mask function against the definition, and the wiring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longtape.attention.cuda import block_lists as lists_module
from longtape.attention.cuda import flex
from longtape.attention.cuda.block_lists import ABSENT, BlockLists, BlockRules, Tables, block_lists
from longtape.attention.cuda.block_masks import MaskLists, mask_lists, mask_padded_keys
from longtape.attention.cuda.flex import flex_pattern_attention, flex_table_attention, mask_function
from longtape.attention.operators.block_sparse import block_sparse_attention, pattern_attention
from longtape.attention.pattern import Pattern

PATTERNS = [
    Pattern(block_size=64, window_size=3, n_random=3, n_global=2, placement="both"),
    Pattern(block_size=128, window_size=1, n_random=1, n_global=1, causal=True),
    Pattern(block_size=16, window_size=3, n_random=2, n_global=2, symmetric=True),
    Pattern(block_size=48, window_size=3, n_random=1, n_global=1),
    Pattern(block_size=256, window_size=1, n_random=1, n_global=0),
    Pattern(window_size=257, n_random=2, n_global=3, placement="spaced"),
    Pattern(window_size=301, causal=True),
    Pattern(window_size=33, dilation=3),
]
N = 700


def linked_pairs(pattern: Pattern, positions: Tensor | None) -> Tensor:
    """Bool [P, N, N]: the random links, token by token."""
    links = pattern.links(N, positions)
    unit, none = torch.arange(N) // pattern.block_size, pattern.n_units(N)
    pairs = torch.zeros(len(links), none, none + 1, dtype=torch.bool)
    return pairs.scatter(2, torch.where(links < 0, none, links), True)[:, unit][:, :, unit]


def definition(pattern: Pattern, positions: Tensor | None, global_rows: bool) -> Tensor:
    """Bool [P, N, N]; without rows of their own, global tokens see what others see."""
    if global_rows:
        return pattern.rows(N, torch.arange(N), positions)
    windows = replace(pattern, n_global=0, n_random=0, symmetric=False).rows(N, torch.arange(N))
    flags = pattern.global_flags(N, positions)
    seen = windows | linked_pairs(pattern, positions) | flags[:, None]
    return seen.tril() if pattern.causal else seen


def places(lists: BlockLists, tables: Tables) -> tuple[Tensor, Tensor]:
    """The token [P, places] of every query and key of the kernel; N = filling, N + 1 = learned."""
    own = torch.arange(-(-N // lists.block) * lists.block).clamp(max=N).expand(len(lists.global_blocks), -1)
    queries = torch.cat([lists.global_block_tokens.clamp(max=N).repeat(1, lists.query_copies), own], 1)
    key = lists.tables.key.long()
    return queries, torch.where(key < 0, N + 1, key.clamp(max=N))


def dense(mask: MaskLists, tables: Tables | None, sizes: tuple[int, int], by_key: bool = False) -> Tensor:
    """Bool [P, queries, keys] in the kernel's places: whole blocks as they are listed, others through the mask."""
    kinds = [(mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)]
    block = 64 if sizes[0] // 64 == mask.kv_indices.shape[2] else 128
    n_rows, n_columns = (size // block for size in sizes)
    if by_key:
        kinds = [(mask.q_num_blocks, mask.q_indices), (mask.full_q_num_blocks, mask.full_q_indices)]
        n_rows, n_columns = n_columns, n_rows
    found = []
    for count, index in kinds:
        if count is None:
            found.append(torch.zeros_like(found[0]))
            continue
        listed = torch.arange(index.shape[-1]) < count[..., None]
        pairs = torch.zeros(index.shape[0], n_rows, n_columns + 1, dtype=torch.int64)
        blocks = torch.where(listed, index.long(), n_columns)[:, 0]
        pairs.scatter_add_(2, blocks, torch.ones_like(blocks))
        assert pairs[..., :-1].max() <= 1  # no block twice
        pairs = pairs[..., :-1].transpose(1, 2) if by_key else pairs[..., :-1]
        found.append(pairs.bool().repeat_interleave(block, 1).repeat_interleave(block, 2))
    part, whole = found
    assert not (part & whole).any()
    b = torch.arange(len(part))[:, None, None]
    i, j = torch.arange(part.shape[1])[:, None], torch.arange(part.shape[2])
    return whole | (part & mask_function(tables)(b, b * 0, i, j))


@pytest.fixture(params=[1, 2, 32], ids="pieces of {}".format)
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Blocks in a piece: with 6 blocks, global ones are copied 6 times, 3 times, not at all."""
    monkeypatch.setattr(lists_module, "PIECE", request.param)
    monkeypatch.setattr(lists_module, "FEW", 9.0)
    flex._cached_lists.cache_clear()
    yield request.param
    flex._cached_lists.cache_clear()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("listed", [False, True], ids=["", "listed"])
@pytest.mark.parametrize("global_rows", [False, True], ids=["", "rows"])
@pytest.mark.parametrize("copies_keys", [False, True], ids=["", "keys"])
def test_block_lists_and_mask_function_equal_the_definition(
    pattern, padded, listed, global_rows, copies_keys, piece
) -> None:
    """Over all copies, every pair of the definition is met once and no other ever."""
    positions = ((3, 500, -1), (699, 64, 65)) if listed else ()
    rules = BlockRules(tuple(pattern.to_ints()), N, 2, positions, global_rows, copies_keys)
    lists = block_lists(rules)
    codes, tables = lists.codes, lists.tables
    seen = definition(pattern, torch.tensor(positions) if listed else None, global_rows)
    if padded:
        visible = torch.arange(N) < torch.tensor([[N], [400]])
        codes, tables = mask_padded_keys(lists, visible)
        seen = seen & visible[:, None]
    mask, sizes = mask_lists(lists, codes, True, False), (tables.low.shape[1], tables.key.shape[1])
    by_place = dense(mask, tables, sizes)
    assert torch.equal(by_place, dense(mask, tables, sizes, by_key=True))
    queries, keys = (x.expand(len(by_place), -1) for x in places(lists, tables))
    met = torch.zeros(len(by_place), N + 1, N + 2, dtype=torch.int64)
    index = (queries[:, :, None] * (N + 2) + keys[:, None]).flatten(1)
    met.flatten(1).scatter_add_(1, index, by_place.flatten(1).long())
    assert torch.equal(met[:, :N, :N], seen.long().expand(len(met), -1, -1))
    assert (met[:, :N, N] == 0).all()  # what lies behind the end
    assert (met[:, :N, N + 1] == 2).all()  # both learned tokens, once each


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("n", [1, 127, 129, 600])
def test_lists_at_lengths_that_end_inside_a_unit(pattern: Pattern, n: int) -> None:
    lists = block_lists(BlockRules(tuple(pattern.to_ints()), n))
    sizes = (lists.tables.low.shape[1], lists.tables.key.shape[1])
    tables = None if lists.whole else lists.tables
    seen = dense(mask_lists(lists, lists.codes, False, lists.whole), tables, sizes)
    assert torch.equal(seen[:, :n, :n], pattern.rows(n, torch.arange(n)))
    assert not seen[:, :n, n:].any()


@pytest.mark.parametrize("n", [1024, 1000])
def test_a_pattern_in_the_kernels_own_blocks_needs_no_mask_but_at_the_end(n: int) -> None:
    lists = block_lists(BlockRules(tuple(PATTERNS[0].to_ints()), n, copies_keys=True))
    mask = mask_lists(lists, lists.codes, True, lists.whole)
    assert lists.block == 64
    assert lists.whole == (n % 64 == 0)
    assert (mask.full_kv_num_blocks is None) == lists.whole
    assert int((lists.codes[0, 5] < ABSENT).sum()) == 8


def test_long_rows_and_columns_are_cut_into_pieces() -> None:
    """262,144 tokens: no list is much longer than a piece, and none is as wide as the sequence."""
    rules = BlockRules(
        tuple(Pattern(block_size=128, window_size=3, n_random=3, n_global=2).to_ints()), 1 << 18
    )
    for copies_keys in (False, True):
        lists = block_lists(rules._replace(copies_keys=copies_keys))
        assert lists.codes.shape[1:] == (2048 + 64 * 2, lists_module.PIECE)
    assert lists.most_queries <= lists_module.PIECE + 32
    mask = mask_lists(lists, lists.codes, True, lists.whole)
    assert sum(x.numel() for x in mask if x is not None) < 1_000_000


def dense_kernel(q, k, v, lists, tables, small, with_log):
    """What the compiled kernel computes, with all scores: it has a backward on a CPU."""
    seen = dense(lists, tables, (q.shape[2], k.shape[2]))[:, None]
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
    log = scores.logsumexp(-1)
    weights = (scores - log.clamp(min=-1e30)[..., None]).exp()
    return weights @ v, log if with_log else None


@pytest.mark.parametrize(
    "pattern", [PATTERNS[0], PATTERNS[1], PATTERNS[3], PATTERNS[5], PATTERNS[7]], ids=str
)
@pytest.mark.parametrize(
    ("n_extra", "padded", "n"), [(0, False, 300), (0, False, 384), (0, True, 300), (3, True, 384)]
)
def test_gradients_through_copies(
    pattern: Pattern, n_extra: int, padded: bool, n: int, piece: int, monkeypatch
) -> None:
    """With 384 tokens and nothing hidden, blocks of 64 are all seen whole."""
    monkeypatch.setattr(flex, "kernel", dense_kernel)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, n, 8, dtype=torch.float64).unbind()
    extra = list(torch.randn(2, 2, n_extra, 8, dtype=torch.float64).unbind()) if n_extra else []
    inputs = [x.clone().requires_grad_() for x in (q, k, v, *extra)]
    visible = torch.arange(n) < torch.tensor([[n], [130]])
    given = {
        "visible": visible if padded else None,
        "positions": torch.tensor([[5, 150], [-1, 7]]) if pattern.block_size < 64 else None,
        **dict(zip(("extra_k", "extra_v"), inputs[3:], strict=False)),
    }
    weight = torch.randn(q.shape, dtype=torch.float64)
    if padded:
        weight = weight * visible[:, None, :, None]
    expected = pattern_attention(*inputs[:3], pattern, **given)
    y = flex_pattern_attention(*inputs[:3], pattern, **given, compiled=False)
    assert ((y - expected) * (weight != 0)).abs().max() < 1e-10
    slow, fast = (torch.autograd.grad((out * weight).sum(), inputs) for out in (expected, y))
    for a, b in zip(fast, slow, strict=True):
        assert (a - b).abs().max() < 1e-8


@pytest.mark.parametrize("pattern", [PATTERNS[0], PATTERNS[1], PATTERNS[5], PATTERNS[7]], ids=str)
@pytest.mark.parametrize("n_extra", [0, 3])
def test_flex_attention_gives_what_the_cpu_kernel_gives(pattern: Pattern, n_extra: int, piece: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 200, 16, dtype=torch.float64).unbind()
    extra = torch.randn(2, 2, n_extra, 16, dtype=torch.float64).unbind() if n_extra else (None, None)
    visible = torch.arange(200) < torch.tensor([[200], [130]])
    positions = torch.tensor([[5, 150], [-1, 7]])
    given = {"visible": visible, "positions": positions, "extra_k": extra[0], "extra_v": extra[1]}
    expected = pattern_attention(q, k, v, pattern, **given)
    y = flex_pattern_attention(q, k, v, pattern, **given, compiled=False)
    rows = visible[:, None, :, None].expand_as(y)
    assert (y - expected)[rows].abs().max() < 1e-10


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)], ids=["all", "head", "sample-head"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_table_with_repeats_gives_what_the_cpu_kernel_gives(shape: tuple[int, ...], causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 120, 8, dtype=torch.float64).unbind()
    own = torch.arange(8)[:, None].expand(*shape, 8, 1)
    table = torch.randint(-1, 7, (*shape, 8, 4))
    table = torch.cat([table.masked_fill(table >= own, -1), own], -1)
    visible = torch.arange(120) < torch.tensor([[120], [70]])
    given = {"block_size": 16, "dense": (2,), "visible": visible, "causal": causal}
    expected = block_sparse_attention(q, k, v, table, **given)
    y = flex_table_attention(q, k, v, table, **given, compiled=False)
    rows = visible[:, None, :, None].expand_as(y)
    assert (y - expected)[rows].abs().max() < 1e-6  # ln k in float32
