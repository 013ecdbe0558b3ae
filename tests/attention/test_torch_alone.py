"""`longtape.attention` on a machine with torch and nothing else: in a process that cannot import any other package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"
BLOCKED = ("numba", "llvmlite", "numpy", "scipy", "polars", "pyarrow", "pandas", "pydantic", "rich", "yaml")

WITHOUT = f"""
import sys, warnings
sys.modules.update(dict.fromkeys({BLOCKED}))  # None there: not to be found
warnings.simplefilter("ignore")  # torch says that it finds no numpy
import torch
"""

REFERENCES = """
from longtape.attention import MECHANISMS, attention_weights, build_attention
x, visible = torch.randn(2, 33, 16), torch.arange(33) < torch.tensor([[33], [20]])
for name in MECHANISMS:
    layer = build_attention(name, d_model=16, n_heads=2, seq_len=33)
    y = layer.reference(x.clone().requires_grad_(), visible=visible)
    y.sum().backward()
    assert y.isfinite().all(), name
    if layer.capabilities.fixed_pattern:
        assert layer.visible_pairs(33).shape == (33, 33)
"""

OTHER_DEVICES = """
from longtape.attention import build_attention
from longtape.attention.tensors.favor import favor_causal_in_tensors, favor_in_tensors
from longtape.attention.cuda.flex import flex_pattern_attention
from longtape.attention.tensors.lsh import lsh_in_tensors
x = torch.randn(1, 90, 16, dtype=torch.float64)

def joined(layer, y):
    return layer.out_proj(y.transpose(1, 2).flatten(2))

for name, options in (("full", {}), ("flash", {}), ("probsparse", {}), ("linformer", {})):
    layer = build_attention(name, d_model=16, n_heads=2, seq_len=90, **options).double()
    torch.testing.assert_close(layer(x), layer.reference(x))
for causal, run in ((False, favor_in_tensors), (True, favor_causal_in_tensors)):
    layer = build_attention("performer", d_model=16, n_heads=2, causal=causal).double()
    torch.testing.assert_close(joined(layer, run(*layer.project(x), layer.features)), layer.reference(x))
layer = build_attention("reformer", d_model=16, n_heads=2, bucket_size=8).double()
q, _, v = layer.project(x)
y = lsh_in_tensors(q, v, layer.hash(q), None, 8)
torch.testing.assert_close(joined(layer, y), layer.reference(x))
for name, options in (("local", {"window_size": 9}), ("bigbird", {"block_size": 16})):
    layer = build_attention(name, d_model=16, n_heads=2, **options).double()
    layer.requires_grad_(False)  # FlexAttention has no backward on a CPU
    y = flex_pattern_attention(*layer.project(x), layer.pattern, compiled=False)
    torch.testing.assert_close(joined(layer, y), layer.reference(x))
"""

ON_A_CPU = """
from longtape.attention import build_attention
try:
    build_attention("local", d_model=16, n_heads=2)(torch.randn(1, 9, 16))
except ModuleNotFoundError as error:
    assert error.name in ("numba", "numpy"), error
else:
    raise AssertionError("the compiled loops ran without numba")
"""


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def test_all_nine_are_built_and_their_references_run() -> None:
    run(REFERENCES)


def test_what_other_devices_than_a_cpu_run_equals_the_references() -> None:
    run(OTHER_DEVICES)


def test_the_compiled_loops_are_what_needs_numba() -> None:
    run(ON_A_CPU)
