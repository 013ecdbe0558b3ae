"""Every mechanism on a GPU against its definition in float64 on the CPU. Needs torch, pytest and longtape.attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from longtape.attention import Attention, attention_weights, build_attention
from longtape.attention.cuda import flex
from longtape.attention.full import full_attention
from longtape.attention.operators.block_sparse import block_sparse_attention
from longtape.attention.probsparse import Chosen
from tests.contracts.attention_cases import CASES, MAIN, Case, gap, padding, tokens, values_and_gradients

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")

N, WIDTH = 197, {"d_model": 64, "n_heads": 2}
VALUES, GRADIENTS = 2e-5, 1e-4  # float32, of the largest value
every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_of_each = pytest.mark.parametrize("case", MAIN, ids=str)
padded_or_not = pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])


@pytest.fixture(autouse=True)
def _tiles_by_rule(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Choosing tiles by measuring takes half a minute for each variant of the kernel; one test below does it."""
    monkeypatch.setattr(flex, "MODE", "default")
    yield
    torch.cuda.synchronize()


def on_device(layer: Attention, exact: Attention, dtype: torch.dtype) -> Attention:
    """A copy there, which looks where the exact layer looks: rounding may not decide who meets whom."""
    moved = copy.deepcopy(layer).to(DEVICE, dtype)
    for name in ("hash", "choose"):
        if hasattr(exact, name):
            made = _remember(exact, name)
            setattr(moved, name, lambda *_, made=made: _moved(made[-1]))
    return moved


def _remember(exact: Attention, name: str) -> list[Any]:
    """What a method of the layer returns, as a list that grows."""
    made: list[Any] = []
    method: Callable[..., Any] = getattr(exact, name)

    def remembered(*arguments: Any) -> Any:
        made.append(method(*arguments))
        return made[-1]

    setattr(exact, name, remembered)
    return made


def _moved(choice: Tensor | Chosen) -> Tensor | Chosen:
    if isinstance(choice, Tensor):
        return choice.to(DEVICE)
    return Chosen(*(part.to(DEVICE) for part in choice))


def both(case: Case, n: int, dtype: torch.dtype, **more: Any) -> tuple[list[Tensor], list[Tensor], Attention]:
    """Values and gradients of the layer on the device and of its definition in float64, and the layer."""
    layer = case.build(n, **{**WIDTH, **more.pop("build", {})}).to(dtype)
    exact = copy.deepcopy(layer).double()
    there = on_device(layer, exact, dtype)
    x = tokens(n, d_model=layer.config.d_model, dtype=dtype)
    slow = values_and_gradients(exact.reference, exact, x.double(), **more)
    moved = {name: value.to(DEVICE) for name, value in more.items()}
    weighted = _with_weighting_there(there)
    fast = values_and_gradients(weighted, there, x.to(DEVICE), **moved)
    return [part.cpu() for part in fast], slow, there


def _with_weighting_there(layer: Attention) -> Callable[..., Tensor]:
    """`values_and_gradients` weighs the output with a tensor on the CPU: a copy there carries the gradient back."""
    return lambda x, **more: layer(x, **more).cpu()


def assert_near(fast: list[Tensor], slow: list[Tensor], values: float, gradients: float) -> None:
    for number, (actual, expected) in enumerate(zip(fast, slow, strict=True)):
        found = gap(actual, expected)
        assert found <= (gradients if number else values), f"part {number}: {found:.2e}"


# --- the equation ---


@every_case
@padded_or_not
def test_float32_equals_the_definition(case: Case, padded: bool) -> None:
    more = {"visible": padding(N)} if padded else {}
    assert_near(*both(case, N, torch.float32, **more)[:2], VALUES, GRADIENTS)


@one_of_each
@padded_or_not
def test_bfloat16_errs_little_more_than_the_definition_in_it(case: Case, padded: bool) -> None:
    """Values: at most twice the error of the reference in bfloat16 and one rounding; gradients: 5 % of the largest."""
    more = {"visible": padding(N)} if padded else {}
    fast, exact, there = both(case, N, torch.bfloat16, **more)
    moved = {name: value.to(DEVICE) for name, value in more.items()}
    with torch.no_grad():
        slow = there.reference(tokens(N, d_model=64, dtype=torch.bfloat16).to(DEVICE), **moved).cpu()
    rounding = torch.finfo(torch.bfloat16).eps * exact[0].abs().max()
    for norm in (torch.Tensor.amax, lambda t: t.square().mean().sqrt()):
        assert norm((fast[0] - exact[0]).abs()) <= 2 * norm((slow - exact[0]).abs()) + rounding
    assert_near(fast[1:], exact[1:], 0.05, 0.05)


@one_of_each
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 129])
def test_short_sequences(case: Case, n: int) -> None:
    assert_near(*both(case, n, torch.float32)[:2], VALUES, GRADIENTS)


@one_of_each
@pytest.mark.parametrize("width", [5, 20])
def test_heads_of_odd_width(case: Case, width: int) -> None:
    build = {"d_model": 2 * width, "n_heads": 2}
    assert_near(*both(case, 70, torch.float32, build=build)[:2], VALUES, GRADIENTS)


@pytest.mark.parametrize(
    "case", [case for case in MAIN if case.mechanism in ("bigbird", "longformer")], ids=str
)
@pytest.mark.parametrize("block_size", [1, 16, 128])
def test_global_positions_of_each_sample(case: Case, block_size: int) -> None:
    build = {"n_global": 0} | ({"block_size": block_size} if case.mechanism == "bigbird" else {})
    positions = torch.tensor([[3, 150, -1], [196, -1, -1]])
    fast, slow, _ = both(case, N, torch.float32, build=build, global_positions=positions, visible=padding(N))
    assert_near(fast, slow, VALUES, GRADIENTS)


LONG = [
    Case("bigbird", "blocks", {"block_size": 128, "n_random": 2}),
    Case("bigbird", "causal", {"block_size": 64, "n_random": 2, "causal": True}),
    Case("bigbird", "extra", {"block_size": 64, "n_random": 1, "n_extra_global": 3}),
    Case("bigbird", "tokens", {"block_size": 1, "window_size": 65, "n_random": 2, "global_tokens": "spaced"}),
    Case("local", "dilated", {"window_size": 129}),
    Case("longformer", "spaced", {"window_size": 65, "n_global": 3, "global_tokens": "spaced"}),
]


@pytest.mark.parametrize("case", LONG, ids=str)
@padded_or_not
def test_sequences_that_are_cut_into_pieces(case: Case, padded: bool) -> None:
    """Copies of the blocks that everyone sees: 4,500 tokens are 36 blocks of 128 or 71 of 64, a piece is 32."""
    more = {"visible": padding(4500)} if padded else {}
    assert_near(*both(case, 4500, torch.float32, **more)[:2], VALUES, GRADIENTS)


@pytest.mark.parametrize("block_size", [64, 128])
def test_tiles_chosen_by_measuring(block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the layer is used: heads of 64, bfloat16, the tiles of its kernel measured."""
    monkeypatch.setattr(flex, "MODE", "max-autotune-no-cudagraphs")
    case = Case("bigbird", options={"block_size": block_size})
    fast, exact, _ = both(case, 4608, torch.bfloat16, build={"d_model": 128, "n_heads": 2})
    assert_near(fast, exact, 0.05, 0.05)


@pytest.mark.parametrize("block_size", [16, 64, 128])
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
def test_a_table_of_blocks_in_which_blocks_repeat(block_size: int, causal: bool) -> None:
    n, generator = 5 * block_size - 3, torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, n, 32, generator=generator).to(DEVICE).requires_grad_().unbind()
    own = torch.arange(5)[:, None].expand(2, 5, 1)
    table = torch.randint(-1, 5, (2, 5, 3), generator=generator)
    table = torch.cat([table.masked_fill(table >= own, -1), own], -1)
    counts = torch.nn.functional.one_hot(table + 1, 6).sum(2)[..., 1:].float().to(DEVICE)
    counts[:, 2] = 1.0
    unit = torch.arange(n, device=DEVICE) // block_size
    bias = counts[:, unit][:, :, unit].log()
    if causal:
        bias = bias.masked_fill(~torch.ones(n, n, dtype=torch.bool, device=DEVICE).tril(), float("-inf"))
    y = block_sparse_attention(q, k, v, table, block_size=block_size, dense=(2,), causal=causal)
    expected = (q @ k.mT * 32**-0.5 + bias).softmax(-1) @ v
    gradients = [
        torch.autograd.grad((out * expected.detach()).sum(), (q, k, v), retain_graph=True)
        for out in (y, expected)
    ]
    assert_near([y, *gradients[0]], [expected, *gradients[1]], VALUES, GRADIENTS)


# --- one layer on two devices ---


@one_of_each
def test_a_state_dict_means_the_same_on_both_devices(case: Case) -> None:
    pytest.importorskip("numba")
    here = case.build(N, **WIDTH, seed=3)
    there = case.build(N, **WIDTH, seed=4).to(DEVICE)
    there.load_state_dict(here.state_dict())
    x = tokens(N, d_model=64, dtype=torch.float32)
    with torch.no_grad():
        y, expected = there(x.to(DEVICE)).cpu(), here(x)
    rows = (y - expected).abs().amax(-1) <= 1e-4 * expected.abs().max()
    # in Reformer and ProbSparse rounding decides where scores nearly tie: single tokens may look elsewhere
    assert rows.float().mean() >= (0.97 if case.mechanism in ("reformer", "probsparse") else 1.0)


@one_of_each
def test_weights_are_those_of_the_cpu(case: Case) -> None:
    layer = case.build(N, **WIDTH)
    exact = copy.deepcopy(layer).double()
    there = on_device(layer, exact, torch.float32)
    x, visible = tokens(N, d_model=64), padding(N)
    expected = attention_weights(exact, x, rows=[0, 5, 190], visible=visible)
    found = attention_weights(there, x.float().to(DEVICE), rows=[0, 5, 190], visible=visible.to(DEVICE))
    assert gap(found.cpu(), expected) <= VALUES


@one_of_each
def test_the_hash_and_the_choice_are_nearly_those_of_the_cpu(case: Case) -> None:
    if case.mechanism not in ("reformer", "probsparse"):
        pytest.skip("looks where its rules say")
    layer = case.build(900, **WIDTH)
    q, k, _ = (x.detach() for x in layer.project(tokens(900, d_model=64, dtype=torch.float32)))
    there = copy.deepcopy(layer).to(DEVICE)
    if case.mechanism == "reformer":
        same = layer.hash(q) == there.hash(q.to(DEVICE)).cpu()
    else:
        same = layer.active(q, k) == there.active(q.to(DEVICE), k.to(DEVICE)).cpu()
    assert same.float().mean() >= 0.99


# --- how it runs ---


@pytest.mark.parametrize("block_size", [1, 64, 128])
def test_compiling_a_layer(block_size: int) -> None:
    torch.compiler.reset()
    layer = build_attention("bigbird", **WIDTH, block_size=block_size, n_random=1).to(DEVICE)
    x = tokens(300, d_model=64, dtype=torch.float32).to(DEVICE).requires_grad_()
    compiled = torch.compile(layer)
    outputs = [compiled(x), layer(x)]
    gradients = [torch.autograd.grad((y * outputs[1].detach()).sum(), x)[0] for y in outputs]
    assert gap(*outputs) <= VALUES
    assert gap(*gradients) <= GRADIENTS


def test_one_compilation_serves_all_lengths_and_patterns() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for block_size, seed in ((64, 0), (64, 7)):
            layer = build_attention("bigbird", **WIDTH, block_size=block_size, n_random=2, seed=seed).to(
                DEVICE
            )
            for n in (700, 1000, 1500, 1999):
                layer(tokens(n, d_model=64, dtype=torch.float32).to(DEVICE))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@one_of_each
def test_memory_follows_the_length(case: Case) -> None:
    """Scores of 65,536 × 65,536 would be 8 GiB a head in bfloat16."""
    if case.mechanism == "full":
        pytest.skip("keeps every weight by definition")
    wide = {"bucket_size": 64} if case.mechanism == "reformer" else {}
    layer = case.build(1 << 16, **WIDTH, **wide).to(DEVICE, torch.bfloat16)
    x = torch.randn(1, 1 << 16, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    layer(x).square().mean().backward()
    assert torch.cuda.max_memory_allocated() < 3 << 30
    assert x.grad is not None
    assert x.grad.isfinite().all()


@one_of_each
def test_autocast_stays_near_float32(case: Case) -> None:
    layer = case.build(N, **WIDTH)
    exact = copy.deepcopy(layer).double()
    there, x = on_device(layer, exact, torch.float32), tokens(N, d_model=64)
    expected = exact.reference(x)
    x = x.float().to(DEVICE).requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = there(x)
    y.float().square().sum().backward()
    assert gap(y.cpu(), expected) <= 0.05
    assert x.grad is not None
    assert x.grad.isfinite().all()


@one_of_each
def test_padded_content_never_matters(case: Case) -> None:
    layer, visible = case.build(N, **WIDTH).to(DEVICE), padding(N).to(DEVICE)
    x = tokens(N, d_model=64, dtype=torch.float32).to(DEVICE)
    with torch.no_grad():
        before = layer(x, visible=visible)
        after = layer(x.masked_fill(~visible[..., None], float("nan")), visible=visible)
    assert gap(after, before) <= 1e-6  # ProbSparse adds in any order
    assert gap(before[~visible], layer.out_proj.bias.expand_as(before[~visible])) <= 1e-6


@one_of_each
def test_a_sample_of_nothing_but_padding_gives_no_nan(case: Case) -> None:
    layer, visible = case.build(N, **WIDTH).to(DEVICE), padding(N).to(DEVICE)
    visible[1] = False
    x = tokens(N, d_model=64, dtype=torch.float32).to(DEVICE).requires_grad_()
    y = layer(x, visible=visible)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_what_has_no_form_on_cuda_is_refused() -> None:
    x = tokens(100, d_model=64)
    with pytest.raises(ValueError, match="float64"):
        build_attention("bigbird", **WIDTH).double().to(DEVICE)(x.to(DEVICE))
    layer = build_attention("local", **WIDTH, attention_dropout=0.1).to(DEVICE).train()
    with pytest.raises(ValueError, match="attention_dropout"):
        layer(x.float().to(DEVICE))


def test_full_attention_is_what_a_budget_of_all_tokens_gives() -> None:
    layer = build_attention("bigbird", **WIDTH, block_size=64, n_random=9, n_global=0).to(DEVICE)
    x = tokens(500, d_model=64, dtype=torch.float32).to(DEVICE)
    with torch.no_grad():
        q, k, v = layer.project(x)
        assert gap(layer.attend(q, k, v, None), full_attention(q, k, v)) <= VALUES
