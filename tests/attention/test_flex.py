"""The CUDA path, as far as a CPU shows it: block lists and mask function against the definition, and the wiring."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from longtape.attention.block_sparse import block_sparse_attention, pattern_attention
from longtape.attention.flex import (
    block_maps,
    flex_pattern_attention,
    flex_table_attention,
    mask_function,
    rules_of,
)
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


def linked_pairs(pattern: Pattern, links: torch.Tensor) -> torch.Tensor:
    """Bool [P, N, N]: the random links, token by token."""
    unit, none = torch.arange(N) // pattern.block_size, pattern.n_units(N)
    pairs = torch.zeros(len(links), none, none + 1, dtype=torch.bool)
    return pairs.scatter(2, torch.where(links < 0, none, links), True)[:, unit][:, :, unit]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("global_rows", [False, True])
def test_block_lists_and_mask_function_equal_the_definition(pattern, padded, listed, global_rows) -> None:
    positions = torch.tensor([[3, 500, -1], [699, 64, 65]]) if listed else None
    visible = None
    if padded:
        visible = torch.arange(N) < torch.tensor([[N], [400]])
    rules = rules_of(pattern, N, positions, 0, global_rows)
    seen = pattern.rows(N, torch.arange(N), positions)
    if not global_rows:  # the rows of global tokens are then those of others
        windows = replace(pattern, n_global=0, n_random=0, symmetric=False).rows(N, torch.arange(N))
        seen = windows | linked_pairs(pattern, rules.links) | rules.flags[:, None]
        seen = seen.tril() if pattern.causal else seen
    if visible is not None:
        seen = seen & visible[:, None]
    some, full = block_maps(rules, visible)
    missing = rules.n_padded - N
    by_block = (
        F.pad(seen, (0, missing, 0, missing)).unflatten(2, (-1, rules.block)).unflatten(1, (-1, rules.block))
    )
    filled = F.pad(seen, (0, 0, 0, missing), value=True)
    filled = F.pad(filled, (0, missing)).unflatten(2, (-1, rules.block)).unflatten(1, (-1, rules.block))
    needed, allowed = by_block.any(4).any(2), filled.all(4).all(2)
    assert (needed <= some).all()  # nothing seen is left out
    assert (full <= allowed.expand_as(full)).all()  # nothing hidden goes unmasked
    if pattern.dilation == 1 and not pattern.causal and not padded:
        assert (some <= needed.expand_as(some)).all()  # and nothing is computed in vain
    see = mask_function(rules, visible, torch.device("cpu"))
    b = torch.arange(len(seen))[:, None, None]
    assert torch.equal(see(b, b * 0, torch.arange(N)[:, None], torch.arange(N)).expand_as(seen), seen)


@pytest.mark.parametrize("n", [1, 127, 129, 600])
def test_lists_at_lengths_that_end_inside_a_unit(n: int) -> None:
    for pattern in PATTERNS:
        some, full = block_maps(rules_of(pattern, n, None, 0, True))
        size = rules_of(pattern, n, None, 0, True).block
        seen = F.pad(pattern.rows(n, torch.arange(n)), (0, -n % size, 0, -n % size))
        needed = seen.unflatten(2, (-1, size)).unflatten(1, (-1, size)).any(4).any(2)
        assert (needed <= some).all()
        assert (full <= some).all()


def test_a_pattern_in_the_kernels_own_blocks_needs_no_masks_but_at_the_end() -> None:
    rules = rules_of(PATTERNS[0], 1024, None, 0, True)
    some, full = block_maps(rules)
    assert torch.equal(some, full)
    assert int(some[0, 5].sum()) == 8


@pytest.mark.parametrize("pattern", [PATTERNS[0], PATTERNS[1], PATTERNS[5], PATTERNS[7]], ids=str)
@pytest.mark.parametrize("n_extra", [0, 3])
def test_flex_attention_gives_what_the_cpu_kernel_gives(pattern: Pattern, n_extra: int) -> None:
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
