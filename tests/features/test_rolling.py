from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from longtape.features.rolling import (
    divide,
    exponential,
    grouped_ratio,
    lagged,
    log_ratio,
    memory,
    rolling_covariance,
    rolling_deviation,
    rolling_max,
    rolling_mean,
    rolling_moments,
    rolling_sum,
    rolling_zscore,
    wilder_rsi,
)

Array = np.ndarray
Kernel = Callable[[Array, int], Array]
WINDOWS = [1, 2, 3, 7, 20, 100]
ROLLING: dict[str, tuple[Kernel, Callable[[pd.Series, int], pd.Series]]] = {
    "sum": (rolling_sum, lambda s, n: s.rolling(n).sum()),
    "mean": (rolling_mean, lambda s, n: s.rolling(n).mean()),
    "max": (rolling_max, lambda s, n: s.rolling(n).max()),
    "moments": (lambda x, n: rolling_moments(x, n)[0], lambda s, n: s.rolling(n).mean()),
}
KERNELS: dict[str, Kernel] = {
    **{name: pair[0] for name, pair in ROLLING.items()},
    "deviation": rolling_deviation,
    "zscore": rolling_zscore,
    "covariance": lambda x, n: rolling_covariance(x, x * x, max(n, 2))[0],
    "lagged": lagged,
    "log_ratio": log_ratio,
    "rsi": wilder_rsi,
    "exponential": lambda x, n: exponential(x, 1 / (n + 1)),
}
prices = arrays(np.float64, st.integers(1, 80), elements=st.floats(0.01, 1e6))


@pytest.fixture
def walk() -> Array:
    return 50_000.0 + np.cumsum(np.random.default_rng(1).standard_normal(2_000))


@pytest.mark.parametrize("n", WINDOWS)
@pytest.mark.parametrize("name", ROLLING)
def test_rolling_statistics_are_those_of_pandas(name: str, n: int, walk: Array) -> None:
    ours, theirs = ROLLING[name]
    np.testing.assert_allclose(ours(walk, n), theirs(pd.Series(walk), n), rtol=1e-12)


@pytest.mark.parametrize("n", WINDOWS[1:])
def test_deviation_and_zscore_are_those_of_each_window(n: int, walk: Array) -> None:
    windows = np.lib.stride_tricks.sliding_window_view(walk, n)
    exact = windows.std(axis=1, ddof=1)
    np.testing.assert_allclose(rolling_deviation(walk, n)[n - 1 :], exact, rtol=1e-9)
    np.testing.assert_allclose(
        rolling_zscore(walk, n)[n - 1 :], (walk[n - 1 :] - windows.mean(axis=1)) / exact, rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("n", [2, 5, 30])
def test_covariance_is_that_of_pandas(n: int, walk: Array) -> None:
    other = np.random.default_rng(2).standard_normal(len(walk)) + walk
    cov, var_x, var_y = rolling_covariance(walk, other, n)
    x, y = pd.Series(walk), pd.Series(other)
    for ours, theirs in (
        (cov, x.rolling(n).cov(y)),
        (var_x, x.rolling(n).var()),
        (var_y, y.rolling(n).var()),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
@settings(deadline=None, max_examples=50)
@given(x=prices, n=st.integers(1, 20), data=st.data())
def test_the_past_keeps_its_bits_whatever_follows(name: str, x: Array, n: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(x)))
    whole, changed = KERNELS[name](x, n), x.copy()
    changed[cut:] = 7.0
    for other in (KERNELS[name](x[:cut].copy(), n), KERNELS[name](changed, n)[:cut]):
        assert other.tobytes() == whole[:cut].tobytes()


def test_logarithms_keep_their_bits_at_every_length_and_place() -> None:
    x = np.exp(np.random.default_rng(3).standard_normal(200))
    whole = log_ratio(x, 1)
    for start in range(0, 30):
        for end in range(start + 2, 120):
            part = log_ratio(x[start:end].copy(), 1)[1:]
            assert part.tobytes() == whole[start + 1 : end].tobytes()


@pytest.mark.parametrize("name", ["sum", "mean", "max", "deviation", "zscore", "moments"])
@pytest.mark.parametrize("n", [2, 5, 20])
def test_a_value_leaves_nothing_behind_once_out_of_the_window(name: str, n: int, walk: Array) -> None:
    spoiled = walk.copy()
    spoiled[100] = 1e18
    clean, after = KERNELS[name](walk, n), KERNELS[name](spoiled, n)
    np.testing.assert_allclose(after[100 + n :], clean[100 + n :], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "deviation", "zscore", "moments"])
@pytest.mark.parametrize("n", [2, 5, 20])
def test_nan_is_seen_by_the_windows_that_hold_it_and_no_other(name: str, n: int, walk: Array) -> None:
    holed = walk.copy()
    holed[[50, 51, 300]] = np.nan
    expected = pd.Series(np.isnan(holed).astype(float)).rolling(n).max().to_numpy() != 0.0
    assert (np.isnan(KERNELS[name](holed, n)) == expected).all()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_and_no_numbers_give_nan(name: str, rows: int) -> None:
    assert np.isnan(KERNELS[name](np.full(rows, np.nan), 3)).all()
    assert np.isnan(KERNELS[name](np.full(rows, 5.0), 3)).all()
    assert len(KERNELS[name](np.full(rows, 5.0), 3)) == rows


@pytest.mark.parametrize("level", [0.1, 1e-9, 1e12])
def test_a_constant_has_no_deviation_at_all(level: float) -> None:
    x = np.full(300, level)
    assert (rolling_deviation(x, 20)[19:] == 0.0).all()
    assert (rolling_zscore(x, 20)[19:] == 0.0).all()
    assert (rolling_moments(x, 20)[0][19:] == level).all()


def test_deviation_keeps_its_digits_at_a_high_level() -> None:
    noise = np.random.default_rng(4).standard_normal(5_000)
    high = rolling_deviation(1e9 + noise, 50)[49:]
    np.testing.assert_allclose(high, rolling_deviation((1e9 + noise) - 1e9, 50)[49:], rtol=1e-12)


def test_division_by_zero_has_a_stated_value_and_nan_stays() -> None:
    found = divide(np.array([1.0, 0.0, np.nan, 1.0]), np.array([0.0, 0.0, 0.0, np.nan]), 0.5)
    np.testing.assert_array_equal(found, [0.5, 0.5, np.nan, np.nan])


def test_grouped_ratio_starts_again_with_each_group() -> None:
    found = grouped_ratio(
        np.array([1.0, 2.0, 3.0, 4.0]),
        np.array([1.0, 1.0, 0.0, 2.0]),
        np.array([0, 0, 1, 1]),
        np.full(4, 9.0),
    )
    np.testing.assert_array_equal(found, [1.0, 1.5, 9.0, 3.5])


@pytest.mark.parametrize("alpha", [0.01, 1 / 14, 2 / 27, 0.5, 1.0])
def test_an_average_has_forgotten_its_start_after_its_memory(alpha: float) -> None:
    assert (1 - alpha) ** memory(alpha) <= 1e-12
    assert alpha == 1.0 or (1 - alpha) ** (memory(alpha) - 1) > 1e-12


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("n", [2, 3, 7, 20, 64])
def test_a_row_has_the_same_bits_wherever_the_data_begin(name: str, n: int) -> None:
    x = 50_000.0 + np.cumsum(np.random.default_rng(5).standard_normal(7_000))
    whole = KERNELS[name](x, n)
    first = int(np.isnan(whole).sum())
    assert first < 3_000
    for cut in (1, 19, 2_047, 3_001):
        part = KERNELS[name](x[cut:].copy(), n)
        assert part[first:].tobytes() == whole[cut + first :].tobytes()
