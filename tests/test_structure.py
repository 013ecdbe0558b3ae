"""The rooms stand on one another without a circle, also where an import hides in a function."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "longtape"
Graph = dict[str, set[str]]


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its name."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(node: ast.AST) -> Iterator[str]:
    """Full names of what the source imports when it runs: at the top, in functions, by `import_module("…")`.

    What stands under `if TYPE_CHECKING` is never imported, and registries import what they name when it is asked for.
    """
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (str(name.value) for name in node.args if isinstance(name, ast.Constant))
    for child in _runs(node):
        yield from imported(child)


def _runs(node: ast.AST) -> list[ast.AST]:
    for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    return list(node.orelse if isinstance(node, ast.If) and for_types else ast.iter_child_nodes(node))


def import_graph(package: Path) -> Graph:
    """Module → the modules of the package that it imports. What a package's `__init__` brings along is not counted."""
    known = modules(package)
    graph: Graph = {name: set() for name in known}
    for name, path in known.items():
        for found in imported(ast.parse(path.read_text(encoding="utf-8"))):
            parts = found.split(".")
            targets = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            nearest = next((target for target in targets if target in known), None)
            graph[name] |= {nearest} - {None, name}
    return graph


def circle(graph: Graph) -> list[str]:
    """One circle of modules, each importing the next; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_module_imports_itself_by_way_of_others():
    graph = import_graph(SOURCE)
    assert "longtape.core.clock" in graph["longtape.market.bars"]  # the graph is drawn
    assert circle(graph) == []


@pytest.mark.parametrize(
    "inside",
    [
        "from toy.b import x",
        "def f():\n    from toy import b",
        "def f():\n    import toy.b",
        "if TYPE_CHECKING:\n    import json\nelse:\n    from toy.b import x",
        "from importlib import import_module\ndef f():\n    import_module('toy.b')",
    ],
)
def test_a_circle_is_found_wherever_it_hides(tmp_path, inside):
    toy = tmp_path / "toy"
    toy.mkdir()
    (toy / "__init__.py").write_text("")
    (toy / "a.py").write_text(inside)
    (toy / "b.py").write_text("from toy.c import y")
    (toy / "c.py").write_text("import json\n")
    assert circle(import_graph(toy)) == []
    (toy / "c.py").write_text("if TYPE_CHECKING:\n    from toy.a import z")
    assert circle(import_graph(toy)) == []
    (toy / "c.py").write_text("from toy.a import z")
    assert sorted(set(circle(import_graph(toy)))) == ["toy.a", "toy.b", "toy.c"]
