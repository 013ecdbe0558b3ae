"""Performer: estimates of the softmax kernel, maxima that leak nothing, memory, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longtape.attention import Attention, attention_weights, build_attention
from longtape.attention.cpu.favor_tiles import TASK_TOKENS
from longtape.attention.operators.favor import favor, favor_causal
from longtape.attention.performer import orthogonal_directions
from longtape.attention.tensors.favor import favor_causal_in_tensors, favor_in_tensors

HEADS, WIDTH = 2, 16
CAUSAL = (favor_causal, favor_causal_in_tensors)
COMPILED = (favor,)
FORMS = (favor, favor_in_tensors, *CAUSAL)  # the tensor operations are what other devices than the CPU use


def build(**options) -> Attention:
    torch.manual_seed(0)
    return build_attention("performer", d_model=WIDTH, n_heads=HEADS, **options).eval()


def tokens(n: int, batch: int = 2, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, n, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def heads(n: int, seed: int, width: int = 8) -> Tensor:
    return torch.randn(2, 2, n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quotient(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, causal: bool) -> Tensor:
    """FAVOR+ as the paper writes it, without any stabiliser."""

    def phi(x: Tensor) -> Tensor:
        x = x / x.shape[-1] ** 0.25
        return torch.exp(x @ directions.T - x.square().sum(-1, keepdim=True) / 2) / math.sqrt(len(directions))

    weights = phi(q) @ phi(k).mT
    weights = weights.tril() if causal else weights
    return weights @ v / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("function", FORMS)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 127, 128, 129, 300])
def test_equation(n: int, function) -> None:
    q, k, v = (heads(n, seed) for seed in range(3))
    directions = orthogonal_directions(20, 8, seed=4)
    found = function(q, k, v, directions)
    assert (found - quotient(q, k, v, directions, function in CAUSAL)).abs().max() < 1e-12


@pytest.mark.parametrize("function", FORMS)
@pytest.mark.parametrize(
    ("n", "width", "m"), [(TASK_TOKENS + 65, 8, 9), (130, 20, 37), (130, 33, 8), (65, 1, 1)]
)
def test_values_and_gradients_of_the_equation(n: int, width: int, m: int, function) -> None:
    """Several runs of tokens, the last tile cut; widths and features that fill no vector."""
    q, k, v = (heads(n, seed, width) for seed in range(3))
    directions, weighting = orthogonal_directions(m, width, seed=4), heads(n, 5, width)

    def run(f, *more) -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        y = f(*inputs, directions, *more)
        return [y, *torch.autograd.grad((y * weighting).sum(), inputs)]

    for actual, expected in zip(run(function), run(quotient, function in CAUSAL), strict=True):
        assert (actual - expected).abs().max() < 1e-10 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("function", COMPILED)
def test_bits_depend_neither_on_threads_nor_on_strides(function) -> None:
    q, k, v = (heads(TASK_TOKENS + 65, seed).float() for seed in range(3))
    directions, threads = orthogonal_directions(9, 8, seed=4), torch.get_num_threads()

    def run(*inputs: Tensor) -> list[Tensor]:
        inputs = [x.detach().requires_grad_() for x in inputs]
        y = function(*inputs, directions)
        return [y, *torch.autograd.grad(y.sum(), inputs)]  # the gradient of y has strides of 0

    wanted = run(q, k, v)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(run(q, k, v), wanted, strict=True))
    finally:
        torch.set_num_threads(threads)
    turned = [x.mT.contiguous().mT for x in (q, k, v)]
    assert all(torch.equal(a, b) for a, b in zip(run(*turned), wanted, strict=True))


@pytest.mark.parametrize("function", COMPILED)
def test_nothing_to_see_gives_zeros_and_no_gradient(function) -> None:
    inputs = [(1e3 * heads(70, seed)).float().requires_grad_() for seed in range(3)]
    visible = torch.zeros(2, 70, dtype=torch.bool)
    y = function(*inputs, orthogonal_directions(9, 8, seed=4), visible)
    assert y.abs().max() == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad((1e3 * y).sum(), inputs))


def test_hidden_content_reaches_nothing() -> None:
    q, k, v = (heads(70, seed) for seed in range(3))
    visible = torch.arange(70) < torch.tensor([[70], [41]])
    junk = [x.masked_fill(~visible[:, None, :, None], float("nan")) for x in (k, v)]
    for function in FORMS:
        given = [x.clone().requires_grad_() for x in (q, *junk)]
        y = function(*given, orthogonal_directions(9, 8, seed=4), visible)
        assert torch.equal(y, function(q, k, v, orthogonal_directions(9, 8, seed=4), visible))
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), given))


def test_operator_is_registered_as_torch_wants_it() -> None:
    inputs = [heads(70, seed).float().requires_grad_() for seed in range(3)]
    visible = torch.arange(70) < torch.tensor([[70], [41]])
    torch.library.opcheck(torch.ops.longtape.favor, (*inputs, orthogonal_directions(9, 8, seed=4), visible))


@pytest.mark.parametrize("function", FORMS)
@pytest.mark.parametrize("padded", [False, True])
def test_gradients(function, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of a few tokens each."""
    monkeypatch.setattr("longtape.attention.tensors.favor._CHUNK", 48)
    monkeypatch.setattr("longtape.attention.tensors.favor._CAUSAL_CHUNK", 3)
    inputs = [heads(7, seed, 4).requires_grad_() for seed in range(3)]
    visible = torch.arange(7) < torch.tensor([[7], [5]]) if padded else None
    directions = orthogonal_directions(4, 4, seed=4)
    assert torch.autograd.gradcheck(lambda q, k, v: function(q, k, v, directions, visible), inputs)


def test_more_features_come_closer_to_softmax_attention() -> None:
    x = tokens(40)
    exact = build_attention("full", d_model=WIDTH, n_heads=HEADS).double()
    errors = []
    for m in (8, 64, 512):
        layer = build(n_features=m).double()
        exact.load_state_dict({n: p for n, p in layer.state_dict().items() if n != "features"})
        wanted = attention_weights(exact, x)
        found = []
        for seed in range(8):
            layer.redraw(seed)
            found.append((attention_weights(layer, x) - wanted).square().mean())
        errors.append(torch.stack(found).mean().item())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_directions_are_orthogonal_and_have_gaussian_lengths() -> None:
    directions = orthogonal_directions(4000, 16, seed=0)
    for block in directions.split(16)[:5]:
        gram = block @ block.T
        assert (gram - gram.diagonal().diag()).abs().max() < 1e-10
    assert abs(directions.norm(dim=1).square().mean() - 16) < 0.5
    assert directions.mean(0).abs().max() < 0.1


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_a_later_token_of_any_size_leaves_no_trace(scale: float) -> None:
    layer, x = build(causal=True), tokens(300, dtype=torch.float32)
    later = x.clone()
    later[:, 200:] *= scale
    assert torch.equal(layer(x)[:, :200], layer(later)[:, :200])


def test_another_sample_of_any_size_leaves_no_trace() -> None:
    for causal in (False, True):
        layer, x = build(causal=causal), tokens(70, dtype=torch.float32)
        other = x.clone()
        other[1] *= 1e4
        assert torch.equal(layer(x)[0], layer(other)[0])


def test_large_keys_give_numbers() -> None:
    for causal in (False, True):
        y = build(causal=causal)(200 * tokens(100, dtype=torch.float32))
        assert torch.isfinite(y).all()


@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_sums_in_float32(causal: bool) -> None:
    layer, x = build(causal=causal), tokens(4000, batch=1, dtype=torch.float32)
    exact = layer(x)
    for dtype in (torch.bfloat16, torch.float16):
        error = (layer.to(dtype)(x.to(dtype)).float() - exact).abs().max() / exact.abs().max()
        assert error < 20 * torch.finfo(dtype).eps
        layer.float()


@pytest.mark.parametrize("causal", [False, True])
def test_what_is_kept_for_the_backward_pass_grows_with_the_length_alone(causal: bool) -> None:
    kept: list[int] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    layer = build(causal=causal, n_features=64)
    sizes = []
    for n in (512, 1024):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            layer(tokens(n, batch=1, dtype=torch.float32))
        sizes.append(sum(kept))
    assert sizes[1] < 2.1 * sizes[0]
    assert max(kept) <= 1024 * WIDTH  # no features [N, m], no N×D×D


def test_directions_belong_to_the_module() -> None:
    state = torch.get_rng_state()
    first, second = build(seed=1), build(seed=2)
    assert not torch.equal(first.features, second.features)
    assert torch.equal(build(seed=1).features, first.features)
    second.load_state_dict(first.state_dict())
    x = tokens(30, dtype=torch.float32)
    assert torch.equal(first(x), second(x))
    torch.set_rng_state(state)
    first.redraw(5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first(x), second(x))


def test_default_number_of_features() -> None:
    assert build_attention("performer", d_model=256, n_heads=8).features.shape == (110, 32)
    assert build_attention("performer", d_model=2, n_heads=2).features.shape == (1, 1)


def test_cross_attention() -> None:
    layer, x, context = build().double(), tokens(11), tokens(30, seed=2)
    visible = torch.arange(30) < torch.tensor([[30], [7]])
    given = {"context": context, "context_visible": visible}
    assert (layer(x, **given) - layer.reference(x, **given)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="self-attention"):
        build(causal=True).double()(x, context=context)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="nothing to drop"):
        build(attention_dropout=0.1)
    with pytest.raises(ValueError, match="at least 1"):
        build(n_features=0)
