"""The scaler knows the training rows, all of them, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from longtape.core.errors import UserError
from longtape.features.scaling import Standardizer


def test_population_statistics_of_the_rows_given() -> None:
    values = np.random.default_rng(0).normal(5, 3, (200_000, 3)).astype(np.float32)
    rows = np.arange(100, 150_000)
    scaler = Standardizer.fit(values, rows)
    np.testing.assert_allclose(scaler.mean, values[rows].astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaler.std, values[rows].astype(np.float64).std(axis=0), rtol=1e-12)
    sliced = Standardizer.fit(values, slice(100, 150_000))
    np.testing.assert_array_equal(sliced.mean, scaler.mean)
    np.testing.assert_array_equal(sliced.std, scaler.std)


def test_other_rows_do_not_matter() -> None:
    values = np.random.default_rng(0).normal(size=(1_000, 2)).astype(np.float32)
    changed = values.copy()
    changed[500:] = 1e30
    before, after = (Standardizer.fit(v, np.arange(500)) for v in (values, changed))
    assert before.to_dict() == after.to_dict()


def test_large_values_keep_their_digits() -> None:
    values = (1e6 + np.random.default_rng(0).integers(0, 2, (100_000, 1))).astype(np.float32)
    assert Standardizer.fit(values, slice(None)).std[0] == pytest.approx(
        values.astype(np.float64).std(), rel=1e-9
    )


@pytest.mark.parametrize("value", [0.0, 0.1, -12345.678])
def test_a_constant_column_becomes_zero_and_keeps_its_unit(value: float) -> None:
    values = np.full((1_000, 1), value, np.float32)
    scaler = Standardizer.fit(values, slice(None))
    assert scaler.std.tolist() == [1.0]
    assert (scaler.transform(values) == 0).all()
    assert scaler.transform(values + 2).ravel()[0] == pytest.approx(2, abs=1e-2)


def test_nan_is_left_out() -> None:
    values = np.array([[1, np.nan], [3, 4], [np.nan, 8]], np.float32)
    scaler = Standardizer.fit(values, np.arange(3))
    assert scaler.mean.tolist() == [2, 6]
    assert scaler.std.tolist() == [1, 2]


def test_mistakes_are_one_line() -> None:
    values = np.array([[1, np.nan], [3, np.nan]], np.float32)
    with pytest.raises(UserError, match="column 'slow' is NaN in every training row"):
        Standardizer.fit(values, np.arange(2), ["fast", "slow"])
    with pytest.raises(UserError, match="no training rows"):
        Standardizer.fit(values, np.arange(0))


def test_round_trip_through_json_and_back_to_units() -> None:
    values = np.random.default_rng(0).normal(5, 3, (100, 3)).astype(np.float32)
    scaler = Standardizer.fit(values, slice(None))
    again = Standardizer.from_dict(json.loads(json.dumps(scaler.to_dict())))
    np.testing.assert_array_equal(again.mean, scaler.mean)
    np.testing.assert_array_equal(again.std, scaler.std)
    np.testing.assert_allclose(scaler.inverse(scaler.transform(values)), values, rtol=1e-5)
