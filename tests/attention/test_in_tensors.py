"""`to_tensors`: the same layer in PyTorch's own operations alone, which is what exported graphs hold."""

from __future__ import annotations

import pytest
import torch

from tests.contracts.attention_cases import CASES, Case, gap, tokens

LENGTHS = (48, 150)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layer_in_tensors_gives_what_the_layer_gives(case: Case, n: int) -> None:
    x = tokens(n, dtype=torch.float32)
    with torch.no_grad():
        expected = case.build(n)(x)
        layer = case.build(n)
        layer.to_tensors(n)
        assert gap(layer(x), expected) <= 1e-5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_its_graph_holds_no_operator_of_longtape(case: Case) -> None:
    x = tokens(48, dtype=torch.float32)
    layer = case.build(48)
    layer.to_tensors(48)
    with torch.no_grad():
        program = torch.export.export(layer, (x,), strict=False)
        assert gap(program.module()(x), layer(x)) <= 1e-5
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if name.startswith("longtape")]
