"""What the compiled kernels are made of."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from longtape.attention.cpu.simd import Operand, compiled, exp2, gemm, lanes, padded, parallel_for


@compiled
def _exp2_all(x, y):
    for i in range(len(x)):
        y[i] = exp2(x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "vectors", "depth"), [(1, 1, 1), (7, 2, 5), (8, 1, 0), (20, 3, 33), (64, 4, 64)]
)
@pytest.mark.parametrize("add", [False, True])
def test_a_product_of_any_shape(dtype, rows: int, vectors: int, depth: int, add: bool) -> None:
    """A turned or not, B and C as parts of wider arrays; nothing beside C is touched."""
    columns = vectors * lanes(torch.from_numpy(np.empty(0, dtype)).dtype)
    random = np.random.default_rng(0)
    a, b = (
        random.standard_normal((rows, depth)).astype(dtype),
        random.standard_normal((depth, columns + 3)).astype(dtype),
    )
    c = random.standard_normal((rows, columns + 5)).astype(dtype)
    expected = c.copy()
    expected[:, 2 : columns + 2] = a @ b[:, :columns] + (c[:, 2 : columns + 2] if add else 0)
    for turned in (False, True):
        flat, steps = (a.T.copy().ravel(), (1, rows)) if turned else (a.ravel(), (depth, 1))
        found = c.copy().ravel()
        gemm(flat, 0, *steps, b.ravel(), 0, columns + 3, found, 2, columns + 5, rows, columns, depth, add)
        np.testing.assert_allclose(
            found.reshape(c.shape), expected, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-12
        )


def test_exp2_is_exact_to_rounding_and_keeps_nan() -> None:
    x = np.linspace(-126, 127, 100_001).astype(np.float32)
    y = np.empty_like(x)
    _exp2_all(x, y)
    assert np.abs(y / np.exp2(x.astype(np.float64)) - 1).max() < 2e-7
    odd = np.array([0.0, -127.0, -1e30, -np.inf, np.nan], np.float32)
    y = np.empty_like(odd)
    _exp2_all(odd, y)
    np.testing.assert_array_equal(y, np.array([1.0, 0.0, 0.0, 0.0, np.nan], np.float32))


def test_an_operand_shares_the_memory_of_any_view() -> None:
    x = torch.arange(2 * 5 * 3 * 4.0).view(2, 5, 3, 4)[:, 1:].transpose(1, 2)
    operand = Operand.of(x)
    for b, h, n in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        at = b * operand.sample + h * operand.head + n * operand.token
        np.testing.assert_array_equal(operand.data[at : at + 4], x[b, h, n].numpy())
    assert len(Operand.of(x[:, :, :0]).data) == 0
    with pytest.raises(ValueError, match="contiguous"):
        Operand.of(x.transpose(2, 3))


def test_widths_are_filled_up_to_whole_vectors() -> None:
    for dtype in (torch.float32, torch.float64):
        assert [padded(n * lanes(dtype) - 1, dtype) for n in (1, 2)] == [lanes(dtype), 2 * lanes(dtype)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_is_done_once_whatever_the_threads(threads: int) -> None:
    before, done, lock = torch.get_num_threads(), [], threading.Lock()

    def work(start: int, stop: int) -> None:
        with lock:
            done.extend(range(start, stop))

    torch.set_num_threads(threads)
    try:
        parallel_for(work, 103, 7)
    finally:
        torch.set_num_threads(before)
    assert sorted(done) == list(range(103))


def test_what_a_thread_raises_is_raised() -> None:
    def work(start: int, stop: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parallel_for(work, 10)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the processor named is an x86 one")
def test_a_processor_without_avx512_computes_the_same() -> None:
    """In a process that compiles for one: vectors of 32 bytes, half as many rows in registers."""
    code = """
import torch
from longtape.attention import build_attention
from longtape.attention.cpu import simd
assert (simd.BYTES, simd.ROWS) == (32, 4)
torch.manual_seed(0)
layer = build_attention("local", d_model=24, n_heads=2, window_size=9)
x = torch.randn(2, 203, 24, requires_grad=True)
y, r = layer(x), layer.reference(x)
g = torch.randn_like(y)
a, b = torch.autograd.grad(y, x, g)[0], torch.autograd.grad(r, x, g)[0]
assert (y - r).abs().max() < 1e-5 * r.abs().max()
assert (a - b).abs().max() < 1e-5 * b.abs().max()
"""
    plain = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **plain}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_threads_work_again_after_a_fork() -> None:
    """As in the workers of a DataLoader."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        parallel_for(lambda start, stop: None, 4)
        child = os.fork()
        if child == 0:
            parallel_for(lambda start, stop: None, 4)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)
