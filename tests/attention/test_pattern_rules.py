"""Fixed patterns checked pair by pair against their rules, written here a second time in plain Python."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from longtape.attention import build_attention


def seen(name: str, n: int, **options) -> list[set[int]]:
    """Keys that each query sees, from the layer."""
    layer = build_attention(name, d_model=8, n_heads=2, seq_len=n, **options)
    pairs = layer.visible_pairs(n)
    assert pairs.dtype == torch.bool
    assert pairs.shape == (n, n)
    return [set(row.nonzero().flatten().tolist()) for row in pairs]


def unit_rules(n: int, window: int, global_units: set[int], causal: bool) -> list[set[int]]:
    """Units that window and global units give; random links left out."""
    rows = []
    for i in range(n):
        row = {j for j in range(n) if abs(i - j) <= window // 2} | global_units
        row = set(range(n)) if i in global_units else row
        rows.append({j for j in row if j <= i} if causal else row)
    return rows


def placed(n: int, g: int, placement: str) -> set[int]:
    g = min(g, n)
    first = {"first": g, "last": 0, "both": math.ceil(g / 2)}[placement]
    return set(range(first)) | set(range(n - (g - first), n))


def assert_rows_obey(rows, fixed, n_random, causal, global_units):
    n = len(rows)
    for i, (row, given) in enumerate(zip(rows, fixed, strict=True)):
        assert given <= row
        others = row - given
        candidates = set(range(i + 1 if causal else n)) - given
        assert others <= candidates
        wanted = 0 if i in global_units else min(n_random, len(candidates))
        assert len(others) == wanted, f"query {i} of {n}: {len(others)} random keys, {wanted} wanted"


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 64, 65, 200])
@pytest.mark.parametrize("placement", ["first", "last", "both"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "n_random", "n_global"), [(7, 3, 2), (1, 0, 0), (3, 5, 3), (1, 4, 1)])
def test_bigbird_tokens(n, placement, causal, window, n_random, n_global) -> None:
    rows = seen(
        "bigbird", n, block_size=1, window_size=window, n_random=n_random, n_global=n_global,
        global_tokens=placement, causal=causal,
    )  # fmt: skip
    global_units = placed(n, n_global, placement)
    fixed = unit_rules(n, window, global_units, causal)
    expected_global = {i: fixed[i] for i in global_units}
    assert all(rows[i] == row for i, row in expected_global.items())
    assert_rows_obey(rows, fixed, n_random, causal, global_units)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 100, 256, 333])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [4, 16])
def test_bigbird_blocks(n, causal, block) -> None:
    """At block granularity a token sees whole blocks, cut at the last token and, when causal, at the diagonal."""
    tokens = seen("bigbird", n, block_size=block, window_size=3, n_random=2, n_global=2, causal=causal)
    n_blocks = math.ceil(n / block)
    blocks = [{j // block for j in tokens[min(n, (b + 1) * block) - 1]} for b in range(n_blocks)]
    global_units = placed(n_blocks, 2, "both")
    for i, row in enumerate(tokens):
        whole = {j for b in blocks[i // block] for j in range(b * block, min(n, (b + 1) * block))}
        assert row == ({j for j in whole if j <= i} if causal else whole)
    assert_rows_obey(blocks, unit_rules(n_blocks, 3, global_units, causal), 2, causal, global_units)


def test_spaced_and_random_global_tokens_are_as_many_as_asked() -> None:
    for placement in ("spaced", "random"):
        rows = seen(
            "bigbird", 60, block_size=1, window_size=1, n_random=0, n_global=4, global_tokens=placement
        )
        full = [i for i, row in enumerate(rows) if len(row) == 60]
        assert len(full) == 4
        assert all(row == {i} | set(full) for i, row in enumerate(rows) if i not in full)
        if placement == "spaced":
            gaps = {b - a for a, b in itertools.pairwise(full)}
            assert gaps == {15}


def test_explicit_positions_are_tokens_at_every_block_size() -> None:
    rows = seen("bigbird", 64, block_size=8, window_size=1, n_random=0, n_global=0, global_tokens=(3, 40))
    for i, row in enumerate(rows):
        own = set(range(i // 8 * 8, i // 8 * 8 + 8))
        assert row == (set(range(64)) if i in (3, 40) else own | {3, 40})


def test_symmetric_links_are_the_drawn_links_and_their_mirrors() -> None:
    options = {"block_size": 1, "window_size": 5, "n_random": 3, "n_global": 2}
    plain, both = seen("bigbird", 120, **options), seen("bigbird", 120, **options, symmetric=True)
    for i in range(120):
        assert both[i] == plain[i] | {j for j in range(120) if i in plain[j]}


@pytest.mark.parametrize("n", [1, 5, 64, 130])
@pytest.mark.parametrize("causal", [False, True])
def test_local(n, causal) -> None:
    assert seen("local", n, window_size=9, causal=causal) == unit_rules(n, 9, set(), causal)


@pytest.mark.parametrize("n", [1, 5, 64, 130])
def test_longformer(n) -> None:
    rows = seen("longformer", n, window_size=9, n_global=3, global_tokens="first")
    assert rows == unit_rules(n, 9, placed(n, 3, "first"), False)


# --- the random part ---

MASK = 0xFFFFFFFF
PINNED = [[322, 527, 549], [38, 497, 577], [10, 147, 849], [121, 421, 475]]


def hash32(*words: int) -> int:
    """The documented hash, in Python integers."""
    h = 0
    for word in words:
        h = ((h + 0x9E3779B9) & MASK) ^ word
        h ^= h >> 16
        h = (h * 0x7FEB352D) & MASK
        h ^= h >> 15
        h = (h * 0x846CA68B) & MASK
        h ^= h >> 16
    return h


def drawn(seed: int, n: int, query: int, candidates: list[int], count: int) -> set[int]:
    """Floyd's sampling of `count` candidates as documented."""
    take = min(count, len(candidates))
    ranks: set[int] = set()
    for t in range(take):
        top = len(candidates) - take + t
        u = (hash32(seed, n, query, t) * (top + 1)) >> 32
        ranks.add(top if u in ranks else u)
    return {candidates[rank] for rank in ranks}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seed", [0, 7, MASK])
def test_the_draw_follows_the_documented_hash(seed, causal) -> None:
    n = 90
    rows = seen("bigbird", n, block_size=1, window_size=7, n_random=3, n_global=2, seed=seed, causal=causal)
    fixed = unit_rules(n, 7, {0, n - 1}, causal)
    for i in range(1, n - 1):
        candidates = [j for j in range(i + 1 if causal else n) if j not in fixed[i]]
        assert rows[i] - fixed[i] == drawn(seed, n, i, candidates, 3)


def test_indices_never_change_between_releases() -> None:
    """Literal values: a model saved today sees the same pairs for ever."""
    rows = seen("bigbird", 1000, block_size=1, window_size=7, n_random=3, n_global=2, seed=0)
    fixed = unit_rules(1000, 7, {0, 999}, False)
    assert [sorted(rows[i] - fixed[i]) for i in (1, 2, 500, 998)] == PINNED


def test_seed_and_length_change_the_links_and_links_are_spread_evenly() -> None:
    def links(n: int, seed: int) -> list[set[int]]:
        rows = seen("bigbird", n, block_size=1, window_size=1, n_random=4, n_global=0, seed=seed)
        return [row - {i} for i, row in enumerate(rows)]

    first, other = links(400, 0), links(400, 1)
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 5
    assert sum(a == b for a, b in zip(first, links(401, 0), strict=False)) < 5
    quarters = Counter(key // 100 for row in first for key in row)
    expected = 4 * 400 / 4  # keys in each quarter; 5 standard deviations of a binomial
    assert all(abs(quarters[q] - expected) < 5 * math.sqrt(expected * 0.75) for q in range(4))
