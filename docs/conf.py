"""The site of `make docs`. Its source is the repository, so that a link works in a clone as it does on the site."""

from __future__ import annotations

import inspect
import re
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

import longtape

project = "longtape"
author = "the longtape authors"
release = longtape.__version__
root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/results/**", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".venv", "build", "demo", "runs", "src", "tests"]
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
default_role = "code"  # in docstrings `x` is code, as it is in Markdown


def as_rst(_app: Any, what: str, _name: str, thing: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code: `x: what it is` of a parameter makes a list, and outside of code the
    characters of formulas (|x|, *, x_) are no markup.
    """
    named = inspect.signature(thing).parameters if what in ("function", "method") else ()
    text = "\n".join(lines)
    for name in named:
        text = re.sub(rf"^{name}: (.+(?:\n +.+)*)$", rf"\n:param {name}: \1\n", text, flags=re.MULTILINE)
    parts = re.split(r"(``?[^`]+``?)", text)
    parts[::2] = [re.sub(r"([*|\\]|_\b)", r"\\\1", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


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
