"""The sliding window: reach, blocks, cost."""

from __future__ import annotations

import pytest
import torch

from longtape.attention import build_attention
from longtape.attention.cpu.layout import cached_layout


def layer(**options):
    torch.manual_seed(0)
    return build_attention("local", d_model=16, n_heads=2, **options).double().eval()


def reached(model, n: int, changed: int) -> list[int]:
    """Queries whose output a change of one token moves."""
    x = torch.randn(1, n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other[:, changed] += 1
    with torch.no_grad():
        return (model(x) != model(other)).any(-1)[0].nonzero()[:, 0].tolist()


def test_a_token_reaches_half_a_window_and_no_further() -> None:
    assert reached(layer(window_size=9), 150, 70) == list(range(66, 75))
    assert reached(layer(window_size=9, causal=True), 150, 70) == list(range(70, 75))


def test_blocks_reach_whole_blocks() -> None:
    assert reached(layer(window_size=3, block_size=16), 150, 70) == list(range(48, 96))


@pytest.mark.parametrize("window", [7, 65, 257])
def test_work_follows_the_window_not_the_length(window: int) -> None:
    model = layer(window_size=window)
    layout = cached_layout(tuple(model.pattern.to_ints()), 8192, 0, (), True)
    pairs = sum(group.units.numel() * layout.unit * layout.tile for group in layout.groups)
    assert pairs <= 8192 * (window + 2 * layout.tile)


def test_masks_are_shared_by_tiles_that_lie_alike() -> None:
    layout = cached_layout(tuple(layer(window_size=257).pattern.to_ints()), 65_536, 0, (), True)
    assert sum(0 if group.bias is None else group.bias.numel() for group in layout.groups) < 1_000_000
