"""Dropout and GELU on CPU in one pass each: what is dropped follows from a hash of the place, so no mask is kept.

PyTorch draws a mask from one Mersenne twister, number by number: that takes as long as the feed-forward's products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from longtape.attention.cpu.simd import Array, compiled, exp2, parallel_for

CHUNK = 1 << 14  # numbers that share a key; fixed, so that the bits do not hang on the number of threads
_LOG2_E = np.float32(1.4426950408889634)
_HALF, _ONE = np.float32(0.5), np.float32(1.0)
_DENSITY = np.float32(0.3989422804014327)  # 1/√(2π)
# erfc(z) = (a₁t + … + a₅t⁵)·e^(−z²) with t = 1/(1 + pz), within 1.5e-7 (Abramowitz & Stegun, 7.1.26); z = |x|/√2.
_P = np.float32(0.3275911 / np.sqrt(2.0))
_A = tuple(np.float32(a) for a in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))


class Mask(NamedTuple):
    """Numbers are dropped where a hash of (seed, place) is below the threshold, and scaled elsewhere."""

    seed: int
    threshold: int  # of 2³²
    scale: Any  # float32

    @classmethod
    def of(cls, seed: int, rate: float) -> Mask:
        """Each number is dropped with probability `rate`."""
        return cls(seed, int(rate * 2**32), np.float32(1 / (1 - rate)))


def dropout(x: Tensor, out: Tensor, mask: Mask) -> None:
    """out = x where kept, scaled, and 0 elsewhere; both contiguous float32 of one size."""
    _by_chunks(_dropout_chunk, (x, out), mask)


def gelu_dropout(x: Tensor, out: Tensor, mask: Mask) -> None:
    """out = dropout(GELU(x)), GELU(x) = x·Φ(x) (Hendrycks & Gimpel 2016)."""
    _by_chunks(_gelu_dropout_chunk, (x, out), mask)


def gelu_dropout_backward(x: Tensor, grad: Tensor, out: Tensor, mask: Mask) -> None:
    """out = grad·(Φ(x) + x·φ(x)) where kept, scaled."""
    _by_chunks(_gelu_dropout_backward_chunk, (x, grad, out), mask)


def _by_chunks(chunk: Callable[..., None], tensors: tuple[Tensor, ...], mask: Mask) -> None:
    flat = [tensor.detach().view(-1).numpy() for tensor in tensors]
    tasks = -(-len(flat[0]) // CHUNK)

    def run(start: int, stop: int) -> None:
        for number in range(start, stop):
            chunk(*(one[number * CHUNK : (number + 1) * CHUNK] for one in flat), mask, number)

    parallel_for(run, tasks, 16)


@compiled
def _dropout_chunk(x: Array, out: Array, mask: Mask, number: int) -> None:
    first, second, threshold, scale = _keys(mask, number)
    for i in range(len(x)):
        out[i] = x[i] * scale if _hash(i, first, second) >= threshold else np.float32(0.0)


@compiled
def _gelu_dropout_chunk(x: Array, out: Array, mask: Mask, number: int) -> None:
    first, second, threshold, scale = _keys(mask, number)
    for i in range(len(x)):
        factor = scale if _hash(i, first, second) >= threshold else np.float32(0.0)
        out[i] = x[i] * _normal_cdf(x[i], _bell(x[i])) * factor


@compiled
def _gelu_dropout_backward_chunk(x: Array, grad: Array, out: Array, mask: Mask, number: int) -> None:
    first, second, threshold, scale = _keys(mask, number)
    for i in range(len(x)):
        factor = scale if _hash(i, first, second) >= threshold else np.float32(0.0)
        bell = _bell(x[i])
        out[i] = grad[i] * (_normal_cdf(x[i], bell) + x[i] * bell * _DENSITY) * factor


@compiled
def _bell(x: Any) -> Any:
    """e^(−x²/2)."""
    return exp2(-_HALF * _LOG2_E * x * x)


@compiled
def _normal_cdf(x: Any, bell: Any) -> Any:
    """Φ(x); `bell` is e^(−x²/2)."""
    t = _ONE / (_ONE + _P * abs(x))
    p = _A[4] * t + _A[3]
    p = p * t + _A[2]
    p = p * t + _A[1]
    p = p * t + _A[0]
    tail = _HALF * p * t * bell
    return tail if x < np.float32(0.0) else _ONE - tail


@compiled
def _keys(mask: Mask, number: int) -> Any:
    """Two words for a chunk; the second is odd, so that multiplying by it loses nothing."""
    word = np.uint64(mask.seed) + np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return (
        np.uint32(word & np.uint64(0xFFFFFFFF)),
        np.uint32(word >> np.uint64(32)) | np.uint32(1),
        np.uint32(mask.threshold),
        mask.scale,
    )


@compiled
def _hash(i: int, first: Any, second: Any) -> Any:
    """A word from the place in the chunk: two rounds of multiply and fold."""
    h = np.uint32(np.uint32(i) + first)
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
    h = np.uint32((h ^ (h >> np.uint32(15))) * second)
    return np.uint32(h ^ (h >> np.uint32(16)))
