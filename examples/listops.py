"""Make a ListOps file for `examples/listops.yaml`: nested lists of digits to be worked out, ten classes.

The task of Long Range Arena (Tay et al. 2020, arXiv:2011.04006, section 2.1; Nangia & Bowman 2018): an expression is
an operator, minimum, maximum, median (rounded down) or sum modulo 10, over two to ten arguments; an argument is another
expression with probability 1/4, down to depth 10, else a digit. Expressions of other lengths than asked for are left
out. Tokens: 0–9 digits, 10–13 the operators with their opening bracket, 14 the closing one.

    python examples/listops.py listops.parquet --train 2000 --shortest 500 --longest 2000
"""

from __future__ import annotations

import argparse
import random
import statistics

import polars as pl

DEPTH, ARGUMENTS, NESTED = 10, 10, 0.25
CLOSE = 14
OPERATORS = {
    10: min,
    11: max,
    12: lambda values: int(statistics.median(values)),
    13: lambda values: sum(values) % 10,
}


def expression(draw: random.Random, depth: int = 1) -> tuple[list[int], int]:
    """Tokens of a random expression and its value."""
    if depth >= DEPTH or draw.random() > NESTED:
        digit = draw.randrange(10)
        return [digit], digit
    operator = draw.choice(list(OPERATORS))
    parts = [expression(draw, depth + 1) for _ in range(draw.randint(2, ARGUMENTS))]
    tokens = [operator, *(token for own, _ in parts for token in own), CLOSE]
    return tokens, OPERATORS[operator]([value for _, value in parts])


def sequences(draw: random.Random, count: int, shortest: int, longest: int) -> list[tuple[list[int], int]]:
    """So many different expressions whose length lies in [shortest, longest]."""
    found: dict[tuple[int, ...], int] = {}
    while len(found) < count:
        tokens, value = expression(draw)
        if shortest <= len(tokens) <= longest:
            found[tuple(tokens)] = value
    return [(list(tokens), value) for tokens, value in found.items()]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="Parquet file to write")
    for name, usual in (
        ("train", 2000),
        ("validation", 200),
        ("test", 500),
        ("shortest", 500),
        ("longest", 2000),
    ):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    parts = {name: getattr(given, name) for name in ("train", "validation", "test")}
    made = sequences(random.Random(given.seed), sum(parts.values()), given.shortest, given.longest)  # noqa: S311
    split = [name for name, count in parts.items() for _ in range(count)]
    ids, labels = zip(*made, strict=True)
    pl.DataFrame({"ids": list(ids), "label": list(labels), "split": split}).write_parquet(given.out)


if __name__ == "__main__":
    main()
