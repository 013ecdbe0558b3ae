"""What the compiled CPU kernels are made of: products that stay in registers, exp2 in lanes, work shared by threads.

A product adds k outer products to a block of C that never leaves the registers, 8 rows by 2 vectors where the processor
has AVX-512 (Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication"). numba has no vector type,
so `_gemm_block` is written in LLVM's language; everything else is plain loops that LLVM turns into vectors itself.
Operands are one-dimensional arrays over a tensor's memory with offsets and strides in elements: no views, no copies.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic, overload
from torch import Tensor

_FEATURES: str = config.CPU_FEATURES or binding.get_host_cpu_features().flatten()  # what numba compiles for
_WIDE = "+avx512f" in _FEATURES.split(",")
ROWS = 8 if _WIDE else 4  # of a register block; it has two vectors of columns
BYTES = 64 if _WIDE else 32  # of a vector

# "contract" lets a·b + c be one instruction; sums keep their order, NaN and infinity their meaning.
compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
# The same, and a sum over one array may be taken in lanes: in a fixed order, but not that of the array.
compiled_sum = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})


def lanes(dtype: torch.dtype) -> int:
    """Numbers in a vector: widths handed to `gemm` are multiples of it."""
    return BYTES // dtype.itemsize


def padded(width: int, dtype: torch.dtype) -> int:
    """`width` rounded up to whole vectors."""
    return -(-width // lanes(dtype)) * lanes(dtype)


Array = npt.NDArray[Any]


class Operand(NamedTuple):
    """A tensor [B, H, N, D] in memory: element (b, h, n, d) is data[b·sample + h·head + n·token + d]."""

    data: Array  # [elements]
    sample: int
    head: int
    token: int

    @classmethod
    def of(cls, x: Tensor) -> Operand:
        """Shares memory with x, whose last stride is 1 and which is float32 or float64 on CPU."""
        sample, head, token, last = x.stride()
        if last != 1 and x.shape[-1] != 1:
            raise ValueError(f"the last dimension must be contiguous, its stride is {last}")
        reach = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
        flat = x.detach().as_strided((reach + 1 if x.numel() else 0,), (1,))
        return cls(flat.numpy(), sample, head, token)


def _gemm_block_of(rows: int, vectors: int) -> Any:
    """An intrinsic: C[rows, vectors·lanes] (+)= Σ_k A[·, k] B[k, ·] with C in registers while k runs."""

    @intrinsic
    def gemm_block(
        context: Any,
        a: Any, a0: Any, a_row: Any, a_step: Any, b: Any, b0: Any, b_step: Any,
        c: Any, c0: Any, c_row: Any, depth: Any, add: Any,
    ) -> Any:  # fmt: skip
        n = types.intp
        signature = types.void(a, n, n, n, b, n, n, c, n, n, n, types.boolean)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit_gemm_block(context, builder, signature, arguments, rows, vectors)
            return context.get_dummy_value()

        return signature, generate

    return gemm_block


def _emit_gemm_block(
    context: Any, builder: Any, signature: Any, arguments: Any, rows: int, vectors: int
) -> None:
    """The instructions: load or clear C, one fused multiply-add for each row and vector at every k, store C."""
    _, a0, a_row, a_step, _, b0, b_step, _, c0, c_row, depth, add = arguments
    a, b, c = (context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 4, 7))
    number = context.get_value_type(signature.args[7].dtype)
    size = context.get_abi_sizeof(number)
    width = BYTES // size
    vector = ir.VectorType(number, width)
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{width}f{8 * size}"
    )

    def constant(value: int) -> Any:
        return ir.Constant(a0.type, value)

    def at(base: Any, offset: Any, v: int = 0) -> Any:
        place = builder.gep(base, [builder.add(offset, constant(v * width))])
        return builder.bitcast(place, vector.as_pointer())

    def c_at(i: int, v: int) -> Any:
        return at(c, builder.add(c0, builder.mul(constant(i), c_row)), v)

    def load(place: Any) -> Any:
        value = builder.load(place)
        value.align = size
        return value

    def broadcast(base: Any, offset: Any) -> Any:
        one = builder.insert_element(
            ir.Constant(vector, ir.Undefined),
            builder.load(builder.gep(base, [offset])),
            ir.Constant(ir.IntType(32), 0),
        )
        first = ir.Constant(ir.VectorType(ir.IntType(32), width), None)
        return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), first)

    cells = [(i, v) for i in range(rows) for v in range(vectors)]
    sums = {cell: cgutils.alloca_once(builder, vector) for cell in cells}
    with builder.if_else(add) as (adding, clearing):
        with adding:
            for cell in cells:
                builder.store(load(c_at(*cell)), sums[cell])
        with clearing:
            for cell in cells:
                builder.store(ir.Constant(vector, None), sums[cell])
    with cgutils.for_range(builder, depth) as loop:
        b_row = builder.add(b0, builder.mul(loop.index, b_step))
        a_column = builder.add(a0, builder.mul(loop.index, a_step))
        bs = [load(at(b, b_row, v)) for v in range(vectors)]
        for i in range(rows):
            x = broadcast(a, builder.add(a_column, builder.mul(constant(i), a_row)))
            for v in range(vectors):
                builder.store(builder.call(fma, [x, bs[v], builder.load(sums[i, v])]), sums[i, v])
    for cell in cells:
        store = builder.store(builder.load(sums[cell]), c_at(*cell))
        store.align = size


_rows_by_2, _rows_by_1 = _gemm_block_of(ROWS, 2), _gemm_block_of(ROWS, 1)
_one_by_2, _one_by_1 = _gemm_block_of(1, 2), _gemm_block_of(1, 1)


@compiled
def gemm(
    a: Array, a0: int, a_row: int, a_step: int,
    b: Array, b0: int, b_step: int,
    c: Array, c0: int, c_row: int,
    rows: int, columns: int, depth: int, add: bool,
) -> None:  # fmt: skip
    """C[rows, columns] = Σ_k A[·, k] B[k, ·] over k < depth, added to C where `add`.

    A's element (i, k) is a[a0 + i·a_row + k·a_step], B's rows are b[b0 + k·b_step:], C's are c[c0 + i·c_row:].
    columns is a multiple of `lanes`; rows and depth are any number.
    """
    width = BYTES // c.itemsize
    pairs = columns // (2 * width)
    for pair in range(pairs):
        j, i = 2 * width * pair, 0
        while i + ROWS <= rows:
            _rows_by_2(
                a, a0 + i * a_row, a_row, a_step, b, b0 + j, b_step, c, c0 + i * c_row + j, c_row, depth, add
            )
            i += ROWS
        while i < rows:
            _one_by_2(
                a, a0 + i * a_row, a_row, a_step, b, b0 + j, b_step, c, c0 + i * c_row + j, c_row, depth, add
            )
            i += 1
    if columns > 2 * width * pairs:
        j, i = 2 * width * pairs, 0
        while i + ROWS <= rows:
            _rows_by_1(
                a, a0 + i * a_row, a_row, a_step, b, b0 + j, b_step, c, c0 + i * c_row + j, c_row, depth, add
            )
            i += ROWS
        while i < rows:
            _one_by_1(
                a, a0 + i * a_row, a_row, a_step, b, b0 + j, b_step, c, c0 + i * c_row + j, c_row, depth, add
            )
            i += 1


@intrinsic
def prefetch(context: Any, x: Any, offset: Any) -> Any:
    """Bring the cache line of x[offset] near, in the background; no effect on any value."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(start, [arguments[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        fetch_type = ir.FunctionType(ir.VoidType(), [place.type, flag, flag, flag])
        fetch = cgutils.get_or_insert_function(builder.module, fetch_type, "llvm.prefetch.p0i8")
        builder.call(fetch, [place, flag(0), flag(3), flag(1)])  # to read, for the nearest cache, data
        return context.get_dummy_value()

    return types.void(x, types.intp), generate


@intrinsic
def _bits(context: Any, x: Any) -> Any:
    """The bits of a float32 as int32."""
    return types.int32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


@intrinsic
def _float(context: Any, bits: Any) -> Any:
    """The float32 with these bits."""
    return types.float32(types.int32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


def _interpolate_exp2(terms: int) -> tuple[np.float32, ...]:
    """Coefficients of the polynomial through 2^f at the Chebyshev nodes of [−½, ½]; 7 terms: within 3e-9 of 2^f."""
    nodes = 0.5 * np.cos((2 * np.arange(terms) + 1) * np.pi / (2 * terms))
    return tuple(np.float32(c) for c in np.polynomial.polynomial.polyfit(nodes, np.exp2(nodes), terms - 1))


_C = _interpolate_exp2(7)
# x plus this minus this is x rounded to a whole number, which then stands in the last bits of the sum.
_ROUND = np.float32(1.5 * 2**23)


def exp2(x: Any) -> Any:
    """2^x. In float32 2^-127 and below are 0; NaN stays NaN."""
    return np.exp2(x)


@overload(exp2, jit_options={"fastmath": {"contract"}})
def _exp2(x: Any) -> Any:
    return _exp2_in_lanes if x == types.float32 else _exp2_of_library


def _exp2_of_library(x: Any) -> Any:
    return np.exp2(x)


def _exp2_in_lanes(x: Any) -> Any:
    x = np.float32(-127.0) if x < np.float32(-127.0) else x
    shifted = x + _ROUND
    f = x - (shifted - _ROUND)
    p = _C[6] * f + _C[5]
    p = p * f + _C[4]
    p = p * f + _C[3]
    p = p * f + _C[2]
    p = p * f + _C[1]
    p = p * f + _C[0]
    return p * _float((_bits(shifted) << np.int32(23)) + np.int32(127 << 23))


def parallel_for(body: Callable[[int, int], Any], tasks: int, grain: int = 1) -> None:
    """Call body(start, stop) for runs of up to `grain` tasks until all are done, in as many threads as torch uses.

    `body` lets go of the interpreter while it runs, as `compiled` functions do, and writes only what is its tasks' own.
    """
    starts = iter(range(0, tasks, grain))

    def run_chunks() -> None:
        for start in starts:  # `next` on a range is one step of the interpreter: no two threads get the same
            body(start, min(start + grain, tasks))

    others = min(torch.get_num_threads(), -(-tasks // grain)) - 1
    pending = [_pool(torch.get_num_threads()).submit(run_chunks) for _ in range(others)]
    run_chunks()
    for one in pending:
        one.result()


@lru_cache(maxsize=1)
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="longtape-attention")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
