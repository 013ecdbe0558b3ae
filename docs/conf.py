"""The site of `make docs`. Its source is the repository, so that a link works in a clone as it does on the site."""

from __future__ import annotations

import inspect
import re
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from pydantic import BaseModel

import longtape

project = "longtape"
author = "the longtape authors"
release = longtape.__version__
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "benchmarks/results/**",
    "examples/**",
    "build/examples/*",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
exclude_patterns = [".venv", "build/site", "demo", "runs", "src", "tests"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
nitpicky = False
suppress_warnings = ["toc.empty_glob"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "longtape"
html_static_path = ["static"]
html_extra_path = ["redirect"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_copyright = False
html_math_renderer = "mathml"

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
highlight_language = "none"  # of blocks that name no language: command lines
default_role = "code"  # in docstrings `x` is code, as it is in Markdown


def as_rst(_app: Any, what: str, _name: str, thing: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code: `x: what it is` of a parameter makes a list, and outside of code the
    characters of formulas (|x|, *, x_) are no markup.
    """
    named = inspect.signature(thing).parameters if what in ("function", "method") else ()
    text = "\n".join([*lines, *fields_of(thing)])
    for name in named:
        told = re.compile(rf"^{name}: (.+(?:\n(?!\w+: ).+)*)$", re.MULTILINE)
        text = told.sub(lambda m, name=name: f"\n:param {name}: {' '.join(m[1].split())}\n", text)
    parts = re.split(r"(``?[^`]+``?)", text)
    parts[::2] = [re.sub(r"([*|\\]|_\b)", r"\\\1", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def fields_of(thing: Any) -> list[str]:
    """What a configuration says of its own fields."""
    if not is_document(thing):
        return []
    own = {name: field for name, field in thing.model_fields.items() if field.description}
    return ["", *(f":param {name}: {' '.join(field.description.split())}" for name, field in own.items()), ""]


def without_fields(_app: Any, _what: str, _name: str, thing: Any, *_: Any) -> tuple[str, None] | None:
    """Fields are listed with their meaning, not as a signature."""
    return ("", None) if is_document(thing) else None


def is_document(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)


def inline_math(self: Any, node: Any) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise SkipNode


def block_math(self: Any, node: Any) -> None:
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise SkipNode


def setup(app: Any) -> None:
    # MathML needs neither a script nor a font.
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-process-signature", without_fields)
