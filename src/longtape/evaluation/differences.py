"""Where two arrays or two frames that should hold the same bits do not, in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Mask = npt.NDArray[np.bool_]


def other_bits(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Mask:
    """True where the bits differ, two NaN counting as the same; arrays of one shape and type."""
    if a.dtype.kind != "f":
        return np.asarray(a != b)
    bits = np.dtype(f"u{a.dtype.itemsize}")
    differ = np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)
    return np.asarray(differ & ~(np.isnan(a) & np.isnan(b)))


def array_difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[tuple[int, ...], str] | None:
    """(first place, "1 → 2") where `b` leaves `a`, or None."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return (0,), f"{a.dtype}{list(a.shape)} → {b.dtype}{list(b.shape)}"
    differ = other_bits(a, b)
    if not differ.any():
        return None
    place = tuple(int(i) for i in np.unravel_index(int(differ.argmax()), differ.shape))
    return place, f"{a[place]:.9g} → {b[place]:.9g}"


def frame_difference(a: pl.DataFrame, b: pl.DataFrame) -> tuple[int, str] | None:
    """(first row, "column 'x': 1 → 2") where `b` leaves `a`, or None; same columns and order of rows expected."""
    if a.columns != b.columns or a.height != b.height:
        return 0, f"{a.height} rows of {', '.join(a.columns)} → {b.height} rows of {', '.join(b.columns)}"
    for name in a.columns:
        one, two = a[name], b[name]
        if one.dtype.is_float() and two.dtype == one.dtype:
            differ = other_bits(one.to_numpy(), two.to_numpy())
        else:
            differ = one.ne_missing(two).to_numpy()
        if differ.any():
            row = int(differ.argmax())
            return row, f"column '{name}': {one[row]} → {two[row]}"
    return None
