"""torch.compile(fullgraph=True) and torch.export, held to the table in docs/attention.md in both directions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from longtape.attention import MECHANISMS
from tests.contracts.attention_cases import MAIN, Case, gap, tokens

DOCS = Path(__file__).parents[2] / "docs" / "attention.md"
N = 48


def table() -> dict[str, list[str]]:
    """Rows `| mechanism | compile | export | export for any length | remark |` of the section on compiling."""
    section = DOCS.read_text(encoding="utf-8").split("## Compiling and exporting")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", section, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def promised(case: Case, column: int) -> bool:
    cell = table()[case.mechanism][column]
    assert cell in ("yes", "no")
    return cell == "yes"


def test_the_table_names_every_mechanism_and_a_reason_for_every_no() -> None:
    rows = table()
    assert list(rows) == list(MECHANISMS)
    assert all(len(cells[-1]) > 20 for cells in rows.values() if "no" in cells)


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_compile_fullgraph(case: Case) -> None:
    torch.compiler.reset()
    layer, x = case.build(N), tokens(N, dtype=torch.float32).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    if not promised(case, 0):
        with pytest.raises(Exception, match=r"(?s).+"):
            compiled(x)
        return
    y, expected = compiled(x), layer(x)
    assert gap(y, expected) <= 1e-5
    weighting = tokens(N, seed=7, dtype=torch.float32)
    gradients = [torch.autograd.grad((out * weighting).sum(), x)[0] for out in (y, expected)]
    assert gap(*gradients) <= 1e-4


@pytest.mark.parametrize("case", [case for case in MAIN if case.mechanism in ("flash", "bigbird")], ids=str)
def test_compile_through_inductor(case: Case) -> None:
    """Code generation takes tens of seconds a layer: one exact and one sparse mechanism stand for all."""
    torch.compiler.reset()
    layer, x = case.build(N), tokens(N, dtype=torch.float32)
    with torch.no_grad():
        assert gap(torch.compile(layer, fullgraph=True)(x), layer(x)) <= 1e-5


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_export(case: Case) -> None:
    layer, x = case.build(N), tokens(N, dtype=torch.float32)
    if not promised(case, 1):
        with pytest.raises(Exception, match=r"(?s).+"):
            torch.export.export(layer, (x,))
        return
    program = torch.export.export(layer, (x,))
    other = tokens(N, seed=8, dtype=torch.float32)
    assert gap(program.module()(other), layer(other)) <= 1e-5


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_export_for_any_length(case: Case) -> None:
    layer, x = case.build(N), tokens(N, dtype=torch.float32)
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", min=2, max=4096)},)
    if not promised(case, 2):
        with pytest.raises(Exception, match=r"(?s).+"):
            torch.export.export(layer, (x,), dynamic_shapes=sizes)
        return
    program = torch.export.export(layer, (x,), dynamic_shapes=sizes)
    other = tokens(N + 29, batch=3, dtype=torch.float32)
    assert gap(program.module()(other), layer(other)) <= 1e-5
