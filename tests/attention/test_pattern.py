"""Facts of the pattern as a graph, its draws, and what it refuses; the pairs themselves stand in test_pattern_rules."""

from __future__ import annotations

import pytest
import torch

from longtape.attention.pattern import PLACEMENTS, Pattern, draw

PATTERNS = [
    Pattern(window_size=7, n_random=3, n_global=2, placement="both"),
    Pattern(window_size=7, n_random=3, n_global=2, placement="both", causal=True),
    Pattern(window_size=5, n_random=4, n_global=3, placement="spaced", symmetric=True),
    Pattern(block_size=8, window_size=3, n_random=2, n_global=2, placement="both"),
    Pattern(block_size=8, window_size=3, n_random=2, n_global=2, placement="last", causal=True),
    Pattern(block_size=8, window_size=1, n_random=3, n_global=1, placement="random", symmetric=True),
    Pattern(window_size=9, dilation=3, causal=True),
    Pattern(window_size=9, dilation=3, n_global=2),
]
POSITIONS = torch.tensor([[3, 40, -1], [62, 0, 1]])


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 63, 100])
def test_degrees_count_the_visible_pairs(pattern: Pattern, n: int) -> None:
    rows = pattern.rows(n, torch.arange(n))
    assert torch.equal(pattern.degrees(n), rows.sum(-1))
    assert pattern.density(n) == pytest.approx(rows.double().mean().item())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_degrees_with_positions_of_each_sample(pattern: Pattern) -> None:
    rows = pattern.rows(70, torch.arange(70), POSITIONS)
    assert torch.equal(pattern.degrees(70, POSITIONS).expand(2, -1), rows.sum(-1).expand(2, -1))


def test_some_rows_are_those_of_all() -> None:
    for pattern in PATTERNS:
        chosen = torch.tensor([61, 0, 7])
        assert torch.equal(pattern.rows(70, chosen), pattern.rows(70, torch.arange(70))[:, chosen])


def matrix_hops(seen: torch.Tensor, query: int, key: int) -> int:
    """Shortest path by powers of the adjacency matrix."""
    reach = torch.eye(len(seen), dtype=torch.bool)
    for hops in range(len(seen) + 1):
        if reach[query, key]:
            return hops
        reach = (reach.double() @ seen.double()) > 0
    return -1


@pytest.mark.parametrize("pattern", [Pattern(window_size=5), *PATTERNS[:4], PATTERNS[6]], ids=str)
def test_hops_are_the_shortest_path(pattern: Pattern) -> None:
    seen = pattern.rows(40, torch.arange(40))[0]
    for query, key in [(0, 0), (0, 39), (39, 0), (20, 3), (3, 31)]:
        assert pattern.hops(40, query, key) == matrix_hops(seen, query, key)


def test_a_global_token_brings_any_two_within_two_hops_and_a_window_alone_does_not() -> None:
    assert Pattern(window_size=5).hops(401, 0, 400) == 200
    assert Pattern(window_size=5, n_global=1).hops(401, 1, 400) == 2
    assert Pattern(window_size=5, causal=True).hops(100, 3, 50) == -1


def test_quarter_of_a_million_tokens_need_no_square() -> None:
    n = 262_144
    links = Pattern(window_size=7, n_random=3, n_global=2, placement="both").random_units(n)
    assert links.shape == (1, n, 3)
    assert links.min() >= 1
    assert links.max() <= n - 2


def test_draws_are_different_and_take_all_where_too_few_remain() -> None:
    sizes = torch.tensor([0, 1, 3, 5, 50])
    picks = draw(9, 50, torch.arange(5), sizes, 5)
    assert [len(set(row[row >= 0].tolist())) for row in picks] == [0, 1, 3, 5, 5]
    assert all((row[row >= 0] < size).all() for row, size in zip(picks, sizes, strict=True))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("g", [0, 1, 3, 100])
def test_placements_give_as_many_units_as_there_are(placement: str, g: int) -> None:
    units = Pattern(block_size=4, n_global=g, placement=placement).global_units(63)
    assert len(units) == len(set(units)) == min(g, 16)
    assert units == sorted(units)
    assert all(0 <= unit < 16 for unit in units)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"window_size": 4}, "odd"),
        ({"window_size": 0}, "odd"),
        ({"block_size": 0}, "block_size"),
        ({"n_random": -1}, "n_random"),
        ({"placement": "middle"}, "middle"),
        ({"seed": 2**32}, "seed"),
        ({"symmetric": True, "causal": True}, "symmetric"),
        ({"dilation": 2, "n_random": 1}, "dilat"),
    ],
)
def test_refusals(options: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Pattern(**options)


def test_integers_carry_a_pattern() -> None:
    assert all(Pattern.from_ints(pattern.to_ints()) == pattern for pattern in PATTERNS)
