"""Reformer against its rules, written here a second time token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longtape.attention import Attention, attention_weights, build_attention
from longtape.attention.operators.lsh import lsh_attention
from longtape.attention.reformer import nearest_axis
from longtape.attention.tensors.lsh import lsh_in_tensors

HEADS, WIDTH, SIZE, ROUNDS = 2, 16, 4, 3


def build(**options) -> Attention:
    torch.manual_seed(0)
    options = {"bucket_size": SIZE, "n_hashes": ROUNDS, **options}
    return build_attention("reformer", d_model=WIDTH, n_heads=HEADS, **options).double().eval()


def tokens(n: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def partners(buckets: list[list[int]], shown: list[int]) -> dict[int, set[int]]:
    """What each shown token sees: over all rounds its own chunk and the one before, itself only for want of others."""
    seen: dict[int, set[int]] = {i: set() for i in shown}
    for round_ in buckets:
        row = sorted(shown, key=lambda i: (round_[i], i))
        chunks = [row[i : i + SIZE] for i in range(0, len(row), SIZE)]
        for c, chunk in enumerate(chunks):
            for i in chunk:
                seen[i] |= set(chunk) | set(chunks[c - 1] if c else [])
    return {i: found - {i} or {i} for i, found in seen.items()}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 30, 61])
@pytest.mark.parametrize("padded", [False, True])
def test_a_token_sees_the_union_of_its_chunks_once(n: int, padded: bool) -> None:
    layer, x = build(), tokens(n)
    visible = torch.ones(2, n, dtype=torch.bool)
    if padded:
        visible[1, n // 2 + 1 :] = False
        visible[0, n // 3 + 1 : n // 3 + 3] = False
    q = layer.split_heads(layer.q_proj(x))
    buckets = layer.hash(q, visible if padded else None)
    weights = attention_weights(layer, x, visible=visible if padded else None)
    y = layer(x, visible=visible if padded else None)
    v = layer.split_heads(layer.v_proj(x))
    heads = torch.zeros_like(v)
    for b in range(2):
        shown = [i for i in range(n) if visible[b, i]]
        for h in range(HEADS):
            for i, seen in partners(buckets[b, h].tolist(), shown).items():
                keys = sorted(seen)
                unit = q[b, h, keys] / q[b, h, keys].norm(dim=-1, keepdim=True)
                mine = (unit @ q[b, h, i] / math.sqrt(WIDTH / HEADS)).softmax(-1)
                assert (weights[b, h, i, keys] - mine).abs().max() < 1e-12
                assert weights[b, h, i].count_nonzero() == len(keys)
                heads[b, h, i] = mine @ v[b, h, keys]
    expected = layer.out_proj(heads.transpose(1, 2).flatten(2))
    assert (y - expected).abs().max() < 1e-12


def test_hash_is_the_nearest_signed_axis() -> None:
    x = torch.randn(5, 8, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.equal(nearest_axis(x, 4), torch.cat([x, -x], -2).argmax(-2))
    assert torch.equal(nearest_axis(x.float(), 4), torch.cat([x, -x], -2).argmax(-2))


@pytest.mark.parametrize(("n", "bits"), [(4, 0), (5, 1), (8, 1), (9, 2), (300, 7), (2000, 9)])
def test_number_of_buckets(n: int, bits: int) -> None:
    """The first power of two with at most bucket_size tokens each; identical tokens always share one."""
    layer, x = build(), tokens(n)
    x[:, 1] = x[:, 0]
    bucket = layer.hash(layer.split_heads(layer.q_proj(x)))
    assert bucket.min() >= 0
    assert bucket.max() < 2**bits
    assert len(bucket[0, 0, 0].unique()) > 2**bits // 4
    assert torch.equal(bucket[..., 0], bucket[..., 1])


def test_padding_of_any_amount_changes_nothing() -> None:
    layer, x = build(), tokens(20)
    alone = layer(x)
    for n in (21, 64, 200):
        padded = torch.cat([x, torch.full((2, n - 20, WIDTH), float("nan"), dtype=x.dtype)], 1)
        found = layer(padded, visible=(torch.arange(n) < 20).expand(2, n))
        assert (found[:, :20] - alone).abs().max() < 1e-12


def test_samples_of_different_lengths_in_one_batch() -> None:
    layer, x = build(), tokens(40, batch=3)
    lengths = (40, 13, 1)
    y = layer(x, visible=torch.arange(40) < torch.tensor(lengths)[:, None])
    for b, n in enumerate(lengths):
        assert (y[b, :n] - layer(x[b : b + 1, :n])[0]).abs().max() < 1e-12


def test_one_chunk_is_full_attention_to_the_others() -> None:
    layer, x = build(bucket_size=50), tokens(50)
    q, v = (layer.split_heads(p(x)) for p in (layer.q_proj, layer.v_proj))
    scores = q @ (q / q.norm(dim=-1, keepdim=True)).mT / math.sqrt(WIDTH / HEADS)
    weights = scores.masked_fill(torch.eye(50, dtype=torch.bool), float("-inf")).softmax(-1)
    expected = layer.out_proj((weights @ v).transpose(1, 2).flatten(2))
    assert (layer(x) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("padded", ["none", "right", "left"])
@pytest.mark.parametrize("attention", [lsh_attention, lsh_in_tensors])
def test_gradients(attention, padded: str) -> None:
    """The compiled loops, and the tensor operations."""
    generator = torch.Generator().manual_seed(2)
    q, v = (torch.randn(2, 2, 7, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    bucket = torch.randint(4, (2, 2, 3, 7), generator=generator)
    visible = torch.arange(7) < torch.tensor([[7], [4]])
    visible = {"none": None, "right": visible, "left": visible.flip(1)}[padded]
    if visible is not None:
        bucket = bucket.masked_fill(~visible[:, None, None], 4)

    def run(q: Tensor, v: Tensor) -> Tensor:
        out = attention(q, v, bucket, visible, 2)
        return out if visible is None else out * visible[:, None, :, None]

    assert torch.autograd.gradcheck(run, (q.requires_grad_(), v.requires_grad_()))


@pytest.mark.parametrize(("size", "width", "n"), [(5, 20, 333), (64, 32, 1000), (100, 16, 450), (64, 48, 63)])
@pytest.mark.parametrize("padded", [False, True])
def test_compiled_loops_give_what_tensor_operations_give(size: int, width: int, n: int, padded: bool) -> None:
    """Chunks longer than the lanes or no multiple of them, heads that are no whole vectors."""
    q, v, g = (torch.randn(2, n, 3, width, dtype=torch.float64).transpose(1, 2) for _ in range(3))
    visible = torch.arange(n) < torch.tensor([[n], [n - 20]]) if padded else None
    bucket = torch.randint(6, (2, 3, 4, n))
    if visible is not None:
        bucket = bucket.masked_fill(~visible[:, None, None], 6)
        g = g * visible[:, None, :, None]
    found = []
    for attention in (lsh_attention, lsh_in_tensors):
        inputs = [x.clone().requires_grad_() for x in (q, v)]
        y = attention(*inputs, bucket, visible, size)
        shown = y if visible is None else y * visible[:, None, :, None]
        found.append([shown, *torch.autograd.grad(y, inputs, g)])
    assert all((a - b).abs().max() < 1e-11 for a, b in zip(*found, strict=True))


def test_any_strides_and_what_hidden_tokens_hold() -> None:
    """Widths that are not the last in memory, a gradient that is one number everywhere, NaN where nobody looks."""
    q, v = torch.randn(2, 2, 2, 9, 70, dtype=torch.float64).transpose(-2, -1)
    visible = torch.arange(70) % 5 < torch.tensor([[3], [0]])
    bucket = torch.randint(6, (2, 2, 3, 70)).masked_fill(~visible[:, None, None], 6)
    hidden = ~visible[:, None, :, None]
    found = []
    for junk in (0.0, float("nan")):
        inputs = [x.masked_fill(hidden, junk).requires_grad_() for x in (q, v)]
        y = lsh_attention(*inputs, bucket, visible, 8)
        found.append([y, *torch.autograd.grad(y.sum(), inputs)])
        assert all(not x.masked_select(hidden).any() for x in found[-1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    straight = lsh_attention(q.contiguous(), v.contiguous(), bucket, visible, 8)
    assert torch.equal(straight, found[0][0])


def test_threads_change_no_bit() -> None:
    layer, x = build(), tokens(61).requires_grad_()
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            y = layer(x)
            found.append([y, torch.autograd.grad(y.square().sum(), x)[0]])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("n", "size"), [(1, 4), (63, 4), (65, 64), (700, 4), (5000, 4)])
def test_the_compiled_hash_is_that_of_tensor_operations(
    n: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to two digits, several runs of tokens; samples of other lengths, hidden tokens in between."""
    monkeypatch.setattr("longtape.attention.reformer._ROTATED", 1 << 12)
    layer, x = build(bucket_size=size), tokens(n, batch=3)
    q = layer.split_heads(layer.q_proj(x))
    visible = torch.arange(n) % 3 < torch.tensor([[3], [1], [2]])
    for shown in (None, visible):
        assert torch.equal(layer.hash(q, shown), layer.hash_in_tensors(q, shown))
    narrow = q.float()
    same = layer.float().hash(narrow) == layer.hash_in_tensors(narrow)
    assert same.double().mean() > 0.999  # sums are rounded in another order


def test_the_operator_keeps_its_promises() -> None:
    q, v = (torch.randn(2, 2, 30, 8).requires_grad_() for _ in range(2))
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    given = (q, v, torch.randint(4, (2, 2, 3, 30)), None, 4)
    torch.library.opcheck(torch.ops.longtape.lsh.default, given, test_utils=tests)


def test_large_queries_give_numbers() -> None:
    x = (1000 * tokens(100)).float().requires_grad_()
    y = build().float()(x)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


def test_rotations_belong_to_the_module() -> None:
    first, second = build(seed=1), build(seed=2)
    x = tokens(50)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    second.redraw(9)
    assert not torch.equal(first(x), second(x))


def test_queries_are_their_own_keys() -> None:
    assert not hasattr(build(), "k_proj")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"causal": True}, "later tokens"),
        ({"bucket_size": 0}, "bucket_size=0"),
        ({"n_hashes": 0}, "n_hashes=0"),
        ({"attention_dropout": 0.1}, "no attention_dropout"),
    ],
)
def test_refusals(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(**options)
