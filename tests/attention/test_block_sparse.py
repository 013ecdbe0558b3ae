"""The shared kernel: gradients, explicit tables, dropout, precision, operators."""

from __future__ import annotations

import pytest
import torch

from longtape.attention.cpu import kernel
from longtape.attention.full import full_attention
from longtape.attention.operators.block_sparse import block_sparse_attention, pattern_attention
from longtape.attention.pattern import Pattern

BLOCKS = Pattern(block_size=16, window_size=3, n_random=1, n_global=1)
TOKENS = Pattern(window_size=5, n_random=2, n_global=1, placement="spaced")


def qkv(n: int, batch: int = 2, heads: int = 2, width: int = 4, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, heads, n, width, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(3)
    ]


def counted_attention(q, k, v, counts: torch.Tensor) -> torch.Tensor:
    """Softmax in which key j counts counts[…, i, j] times."""
    scores = q @ k.mT * q.shape[-1] ** -0.5 + counts.log()
    return scores.softmax(-1) @ v


def counts_of(table: torch.Tensor, n: int, size: int, dense: tuple[int, ...], causal: bool) -> torch.Tensor:
    """How often each query sees each key, [..., N, N], pair by pair from the table."""
    counts = torch.zeros(*table.shape[:-2], n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            named = (table[..., i // size, :] == j // size).sum(-1).double()
            times = torch.ones_like(named) if i // size in dense else named
            counts[..., i, j] = times * (not causal or j <= i)
    return counts


@pytest.mark.parametrize("pattern", [BLOCKS, TOKENS], ids=str)
@pytest.mark.parametrize("n", [1, 40])
def test_gradcheck(pattern: Pattern, n: int) -> None:
    inputs = [x.requires_grad_() for x in qkv(n)]
    extra = [torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    visible = torch.ones(2, n, dtype=torch.bool)
    visible[1, n // 2 : n - 1] = False
    positions = torch.tensor([[n - 1, -1], [0, n // 3]])

    def run(q, k, v, extra_k, extra_v):
        return pattern_attention(
            q, k, v, pattern, visible=visible, positions=positions, extra_k=extra_k, extra_v=extra_v
        )

    assert torch.autograd.gradcheck(run, (*inputs, *extra), fast_mode=True)


@pytest.mark.parametrize("pattern", [BLOCKS, TOKENS], ids=str)
def test_dropout_has_one_mask_in_forward_and_backward(pattern: Pattern) -> None:
    inputs = [x.requires_grad_() for x in qkv(40)]

    def run(q, k, v):
        torch.manual_seed(2)
        return pattern_attention(q, k, v, pattern, dropout=0.4)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_dropout_drops_weights_and_scales_the_rest() -> None:
    q, k, _ = qkv(40, batch=1, heads=1, width=40)
    identity = torch.eye(40, dtype=torch.float64)[None, None]
    for pattern in (BLOCKS, TOKENS):
        whole = pattern_attention(q, k, identity, pattern)
        ratio = (pattern_attention(q, k, identity, pattern, dropout=0.25) / whole)[whole > 0]
        dropped = ratio.abs() < 1e-12
        assert (dropped | ((ratio - 1 / 0.75).abs() < 1e-9)).all()
        assert 0.15 < dropped.double().mean() < 0.35


@pytest.mark.parametrize("shape", [(), (2,), (3, 2)], ids=["all", "head", "sample-head"])
@pytest.mark.parametrize("dense", [(), (0, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_table_of_blocks_counts_repeats(
    shape: tuple[int, ...], dense: tuple[int, ...], causal: bool
) -> None:
    n, size = 30, 8  # the last block is short
    generator = torch.Generator().manual_seed(1)
    table = torch.randint(-1, 3, (*shape, 4, 5), generator=generator)  # repeats, and gaps
    own = torch.arange(4)[:, None].expand(*shape, 4, 1)
    table = torch.cat([table.masked_fill((table == own) | (table > own), -1) if causal else table, own], -1)
    inputs = [x.requires_grad_() for x in qkv(n, batch=3)]
    counts = counts_of(table, n, size, dense, causal)
    y = block_sparse_attention(*inputs, table, block_size=size, dense=dense, causal=causal)
    expected = counted_attention(*inputs, counts)
    assert (y - expected).abs().max() < 1e-10
    mine, wanted = (torch.autograd.grad((out * expected.detach()).sum(), inputs) for out in (y, expected))
    assert all((a - b).abs().max() < 1e-8 for a, b in zip(mine, wanted, strict=True))


def test_a_table_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="4, W"):
        block_sparse_attention(*qkv(30), torch.zeros(3, 2, dtype=torch.int64), block_size=8)


@pytest.mark.parametrize("pattern", [BLOCKS, TOKENS], ids=str)
def test_threads_and_the_size_of_their_tasks_change_no_bit(
    pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [x.requires_grad_() for x in qkv(100)]

    def results() -> list[torch.Tensor]:
        y = pattern_attention(*inputs, pattern)
        return [y, *torch.autograd.grad((y * y.detach()).sum(), inputs)]

    threads = torch.get_num_threads()
    alone = results()
    monkeypatch.setattr(kernel, "TASK_PRODUCTS", 1)
    torch.set_num_threads(3)
    try:
        assert all(torch.equal(a, b) for a, b in zip(alone, results(), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [16, 40, 100, 128, 200])
@pytest.mark.parametrize("width", [16, 20, 32, 48])
def test_blocks_and_heads_of_any_size(size: int, width: int) -> None:
    """Blocks longer than the loops take at once or no multiple of it; heads read in place or filled up."""
    pattern = Pattern(block_size=size, window_size=3, n_random=1, n_global=1, placement="last")
    q, k, v = (
        torch.randn(2, 450, 2, width, dtype=torch.float64).transpose(1, 2).requires_grad_() for _ in range(3)
    )
    seen = pattern.rows(450, torch.arange(450))[0]
    y, exact = pattern_attention(q, k, v, pattern), full_attention(q, k, v, seen)
    assert (y - exact).abs().max() < 1e-12
    weights = torch.randn_like(y)
    a, b = (torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (y, exact))
    assert all((x - z).abs().max() < 1e-10 for x, z in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    inputs = qkv(100, dtype=dtype)
    for pattern in (BLOCKS, TOKENS):
        y = pattern_attention(*inputs, pattern)
        compute_dtype = pattern_attention(*(x.float() for x in inputs), pattern)
        assert y.dtype == dtype
        assert torch.equal(y, compute_dtype.to(dtype))


def test_nan_and_infinity_in_hidden_keys_reach_nothing() -> None:
    for pattern in (BLOCKS, TOKENS):
        q, k, v = qkv(60)
        visible = torch.ones(2, 60, dtype=torch.bool)
        visible[0, 20:33] = False
        positions = torch.tensor([[25], [3]])
        dirty = [x.masked_fill(~visible[:, None, :, None], float("nan")).requires_grad_() for x in (k, v)]
        y = pattern_attention(q, *dirty, pattern, visible=visible, positions=positions)
        assert torch.equal(y, pattern_attention(q, k, v, pattern, visible=visible, positions=positions))
        grads = torch.autograd.grad(y.sum(), dirty)
        assert all(g.isfinite().all() and (g[0, :, 20:33] == 0).all() for g in grads)


def test_any_layout_of_memory_gives_the_same() -> None:
    q, k, v = qkv(64)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert torch.equal(pattern_attention(q, k, v, BLOCKS), pattern_attention(*strided, BLOCKS))


@pytest.mark.parametrize("pattern", [BLOCKS, TOKENS], ids=str)
def test_the_operator_keeps_its_promises(pattern: Pattern) -> None:
    """Schema, shapes without data, autograd registration: what torch.compile and torch.export rely on."""
    q, k, v = (x.float().requires_grad_() for x in qkv(40))
    global_qkv = [x.detach().clone().requires_grad_() for x in (q[:, :, [3, 9]], k, v)]
    positions = torch.tensor([[3, 9], [-1, 12]])
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    for more, at in (([None] * 3, None), (global_qkv, positions)):
        given = (q, k, v, None, None, *more, None, at, None, None, pattern.to_ints(), [], 0.0)
        torch.library.opcheck(torch.ops.longtape.block_sparse.default, given, test_utils=tests)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("width", [4, 16])
def test_global_queries_look_through_projections_of_their_own(causal: bool, padded: bool, width: int) -> None:
    n, pattern = 90, Pattern(window_size=9, causal=causal)
    q, k, v, global_k, global_v = (torch.randn(2, 2, n, width, dtype=torch.float64) for _ in range(5))
    positions = torch.tensor([[0, 7, 88], [-1, 40, -1]])
    global_q = torch.randn(2, 2, 3, width, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v, global_q, global_k, global_v)]
    visible = torch.arange(n) < torch.tensor([[n], [70]]) if padded else None
    y = pattern_attention(
        q, k, v, pattern, visible=visible, positions=positions, global_qkv=(global_q, global_k, global_v)
    )
    seen = pattern.rows(n, torch.arange(n), positions)[:, None]
    if visible is not None:
        seen = seen & visible[:, None, None]
    index = positions.clamp(min=0)[:, None, :, None].expand_as(global_q)
    sparse = torch.zeros_like(q).scatter_add(2, index, global_q * (positions >= 0)[:, None, :, None])
    is_global = torch.zeros(2, n, dtype=torch.bool)
    for sample, row in enumerate(positions.tolist()):
        is_global[sample, [token for token in row if token >= 0]] = True
    exact = torch.where(
        is_global[:, None, :, None],
        full_attention(sparse, global_k, global_v, seen),
        full_attention(q, k, v, seen),
    )
    shown = torch.ones(2, 1, n, 1) if visible is None else visible[:, None, :, None]
    assert ((y - exact) * shown).abs().max() < 1e-12
    weights = torch.randn_like(y) * shown
    a, b = (torch.autograd.grad((out * weights).sum(), inputs) for out in (y, exact))
    assert all((x - z).abs().max() < 1e-10 for x, z in zip(a, b, strict=True))


def test_a_plain_window_is_banded_full_attention() -> None:
    q, k, v = qkv(90)
    apart = (torch.arange(90)[:, None] - torch.arange(90)).abs()
    y = pattern_attention(q, k, v, Pattern(window_size=11))
    assert (y - full_attention(q, k, v, apart <= 5)).abs().max() < 1e-12
