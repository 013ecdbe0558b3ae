"""Tables in Markdown, for pages of results and documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """A table of texts, no newline behind it; with `numbers`, all columns but the first stand to the right."""
    rule = ["---", *(["---:" if numbers else "---"] * (len(header) - 1))]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *cells])
