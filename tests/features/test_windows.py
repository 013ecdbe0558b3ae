"""Windows are the rows they say they are, cost nothing before a batch, and come in an order that resumes."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.core.errors import UserError
from longtape.features.windows import Sampler, Windows, first_origin, permuted, prefetch
from tests.features.panels import counting_panel


def test_a_window_ends_at_its_origin() -> None:
    panel = counting_panel(50)
    windows = Windows(panel, 5, np.array([6, 20, 46]))
    x, y = windows.batch([1, 2])
    assert x.dtype == np.float32
    assert y.dtype == np.float64
    np.testing.assert_array_equal(x[:, :, 0], [np.arange(16, 21), np.arange(42, 47)])
    np.testing.assert_allclose(x[:, :, 1], x[:, :, 0] + 0.1, rtol=1e-6)
    np.testing.assert_array_equal(y, [[-20], [-46]])


def test_a_batch_is_a_copy_and_the_windows_are_not() -> None:
    panel = counting_panel(50)
    windows = Windows(panel, 5, range(6, 40))
    x, _ = windows.batch([0])
    x[:] = 0
    np.testing.assert_array_equal(windows.batch([0])[0][0, :, 0], np.arange(2, 7))


def test_ranges_lists_and_arrays_of_origins_are_the_same() -> None:
    panel = counting_panel(50)
    kinds = [range(6, 30), np.arange(6, 30), np.arange(6, 30)[::-1][::-1], list(range(6, 30))]
    batches = [Windows(panel, 5, kind).batch([0, 23])[0] for kind in kinds]
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch, batches[0])
    every_second = Windows(panel, 5, range(6, 30, 2))
    assert every_second.rows([0, 1, 11]).tolist() == [6, 8, 28]


@pytest.mark.parametrize("origins", [[5, 10], [10, 50], [-1, 10]])
def test_refuses_windows_that_are_not_whole(origins: list[int]) -> None:
    with pytest.raises(UserError, match="windows end at rows 6 to 49"):
        Windows(counting_panel(50), 5, np.array(origins))


@pytest.mark.parametrize("index", [-1, 24])
def test_refuses_a_window_that_does_not_exist(index: int) -> None:
    with pytest.raises(IndexError, match="24 windows"):
        Windows(counting_panel(50), 5, range(6, 30)).batch([index])


def test_a_lookback_longer_than_the_data_is_one_line() -> None:
    with pytest.raises(
        UserError, match="lookback 60 after a warm-up of 2 bars needs 62 bars, and there are 50"
    ):
        first_origin(counting_panel(50), 60)
    assert first_origin(counting_panel(50), 48) == 49


def test_windows_take_no_memory() -> None:
    panel = counting_panel(200_000, columns=8)
    tracemalloc.start()
    windows = Windows(panel, 8_192, range(8_193, 199_997))
    windows.batch([100])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_batch = 8_192 * 8 * 4
    assert peak - one_batch < 0.02 * panel.values.nbytes


def test_memory_mapped_data(tmp_path) -> None:
    held = counting_panel(5_000, columns=3)
    np.save(tmp_path / "matrix.npy", held.values)
    panel = counting_panel(5_000, values=np.load(tmp_path / "matrix.npy", mmap_mode="r"))
    chosen = [np.array([0, 4_000]), np.array([17, 900])]
    windows = Windows(panel, 500, range(501, 4_990))
    for (x, y), indices in zip(prefetch(windows.batch, chosen), chosen, strict=True):
        expected_x, expected_y = Windows(held, 500, range(501, 4_990)).batch(indices)
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)


def test_advice_reaches_the_pages_of_the_windows(tmp_path, monkeypatch) -> None:
    """Pages start at the page that holds the window's first byte and go on to its last."""
    matrix = counting_panel(5_000, columns=3, warm_up=0).values
    np.save(tmp_path / "matrix.npy", matrix)
    panel = counting_panel(5_000, values=np.load(tmp_path / "matrix.npy", mmap_mode="r"), warm_up=0)
    windows = Windows(panel, 500, range(499, 4_990))
    asked: list[tuple[int, int]] = []

    class Spy:
        def madvise(self, option: int, start: int, length: int) -> None:
            asked.append((start, length))

    monkeypatch.setattr("longtape.features.windows._mapped", lambda values: (Spy(), 128))
    windows.advise([1000])
    (start, length), first = asked[0], 128 + 1000 * 12
    assert start % 4096 == 0
    assert start <= first
    assert start + length == first + 500 * 12


def test_prefetch_keeps_the_order_and_hands_on_errors() -> None:
    windows = Windows(counting_panel(500), 5, range(6, 490))
    order = [np.array([i]) for i in range(100)]
    assert [y[0, 0] for _, y in prefetch(windows.batch, order)] == [-(6 + i) for i in range(100)]
    with pytest.raises(IndexError):
        list(prefetch(windows.batch, [np.array([0]), np.array([10_000])]))


def test_prefetch_leaves_no_thread_behind() -> None:
    windows = Windows(counting_panel(500), 5, range(6, 490))
    before = threading.active_count()
    batches = prefetch(windows.batch, (np.array([i]) for i in range(100)))
    next(batches)
    batches.close()
    assert threading.active_count() == before


@given(st.integers(1, 3_000), st.integers(0, 2**63), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_permuted_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permuted(np.arange(n), n, seed, epoch)), np.arange(n))


def test_the_order_is_pinned() -> None:
    """A run that is resumed by a later version must go on in the same order."""
    assert permuted(np.arange(10), 10, 0, 0).tolist() == [9, 5, 8, 7, 6, 4, 0, 2, 3, 1]


def test_the_order_looks_random() -> None:
    n = 100_000
    order = permuted(np.arange(n), n, 7, 0)
    positions = np.arange(n)
    assert abs(np.corrcoef(positions, order)[0, 1]) < 0.015
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.015
    quarters = np.bincount(order[: n // 4] // (n // 4), minlength=4)
    assert np.abs(quarters - n / 16).max() < 5 * np.sqrt(n / 16)
    assert (order != permuted(positions, n, 7, 1)).mean() > 0.999


def test_an_epoch_visits_every_window_once_and_resumes_anywhere() -> None:
    sampler = Sampler(1_003, 32, seed=5)
    whole = list(sampler.epoch(2))
    assert len(whole) == len(sampler) == 32
    assert sorted(np.concatenate(whole).tolist()) == list(range(1_003))
    for again, first in zip(sampler.epoch(2, start=17), whole[17:], strict=True):
        np.testing.assert_array_equal(again, first)
    assert np.concatenate(list(Sampler(10, 4, shuffle=False).epoch(0))).tolist() == list(range(10))
    with pytest.raises(IndexError):
        sampler.batch(0, 32)
