"""Dropout without a mask in memory: nn.Dropout's distribution, one mask forward and backward, torch's generator."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longtape.attention.cpu.elementwise import CHUNK
from longtape.attention.dropout import Dropout, GeluDropout

SHAPE = (7, 3 * CHUNK // 100, 33)  # several chunks, the last one partly filled


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), requires_grad=True)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_numbers_are_dropped_independently_at_the_rate(rate):
    kept = (Dropout(rate)(torch.ones(1 << 20)) > 0).double()
    tolerance = 6 * np.sqrt(rate * (1 - rate) / len(kept))
    assert float(kept.mean()) == pytest.approx(1 - rate, abs=tolerance)
    other = (Dropout(rate)(torch.ones(1 << 20)) > 0).double()
    pairs = [(kept[:-lag], kept[lag:]) for lag in (1, 2, 16, 64, CHUNK, 3 * CHUNK)]
    for a, b in [*pairs, (kept, other)]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 6 / np.sqrt(len(a))


@pytest.mark.parametrize("layer", [Dropout(0.3), GeluDropout(0.3)])
def test_the_backward_drops_what_the_forward_dropped(x, layer):
    y = layer(x)
    plain = x if type(layer) is Dropout else F.gelu(x.double()).float()
    factor = (y != 0).float() / 0.7
    expected = plain * factor
    grad = torch.randn(SHAPE).transpose(0, 2).contiguous().transpose(0, 2)  # not in memory as x is
    (ours,) = torch.autograd.grad(y, x, grad)
    (theirs,) = torch.autograd.grad(expected, x, grad)
    assert torch.allclose(y, expected, atol=1e-6)
    assert torch.allclose(ours, theirs, atol=3e-6)


def test_gelu_is_as_exact_as_torchs():
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, -0.0, 1e-30, 50.0, -50.0])])
    x.requires_grad_()
    y = GeluDropout(0.0)(x)
    wide = x.detach().double().requires_grad_()
    reference = F.gelu(wide)
    assert float((y - reference).detach().abs().max()) < 1e-6
    (ours,), (exact,) = (torch.autograd.grad(a.sum(), b) for a, b in ((y, x), (reference, wide)))
    assert float((ours - exact).abs().max()) < 1e-6


def test_the_seed_comes_from_torchs_generator_and_only_in_training(x):
    layer = GeluDropout(0.3)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    layer.eval()
    assert torch.allclose(layer(x), F.gelu(x), atol=1e-6)
    assert torch.equal(Dropout(0.3).eval()(x), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_bits_do_not_hang_on_the_number_of_threads(x):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(2)
            found.append(GeluDropout(0.3)(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_through_torch(dtype):
    x = torch.randn(1000, dtype=dtype)
    torch.manual_seed(3)
    y = Dropout(0.3)(x)
    torch.manual_seed(3)
    assert torch.equal(y, F.dropout(x, 0.3))
    assert torch.equal(GeluDropout(0.3).eval()(x), F.gelu(x))


def test_nan_stays_nan():
    x = torch.full((100,), float("nan"))
    assert GeluDropout(0.0)(x).isnan().all()
