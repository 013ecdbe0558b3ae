"""ETTh1: windows, scaling and the published figures, to the digits given."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from longtape.core.errors import UserError
from longtape.evaluation.ett import Ett, load_ett, ols, repeat, score, seasonal_naive
from tests.shared_data import shared


@pytest.fixture(scope="module")
def etth1() -> Ett:
    return load_ett(shared("ett/ETTh1.csv"))


@pytest.fixture(scope="module")
def oil() -> Ett:
    return load_ett(shared("ett/ETTh1.csv"), ("OT",))


def test_counts_every_window(etth1: Ett) -> None:
    assert [len(etth1.windows("test", 96, h)) for h in (96, 192, 336, 720)] == [2785, 2689, 2545, 2161]
    assert len(etth1.windows("train", 336, 96)) == 8640 - 336 - 96 + 1


def test_windows_hold_the_rows_of_the_file(etth1: Ett) -> None:
    raw = pl.read_csv(shared("ett/ETTh1.csv")).drop("date").to_numpy()
    mean, std = raw[:8640].mean(axis=0), raw[:8640].std(axis=0)
    x, y = etth1.windows("test", 96, 192).batch([0, 2688])
    np.testing.assert_allclose(x[0] * std + mean, raw[11_520 - 96 : 11_520], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(y[0] * std + mean, raw[11_520 : 11_520 + 192], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(y[1] * std + mean, raw[14_400 - 192 : 14_400], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("horizon", "mse", "mae"),
    [(96, 1.2944, 0.7132), (192, 1.3249, 0.7331), (336, 1.3299, 0.7460), (720, 1.3351, 0.7550)],
)
def test_repeat(etth1: Ett, horizon: int, mse: float, mae: float) -> None:
    got = score(repeat(horizon), etth1.windows("test", 96, horizon))
    assert (round(got.mse, 4), round(got.mae, 4)) == (mse, mae)


@pytest.mark.parametrize(
    ("horizon", "mse", "mae"),
    [(24, 0.424, 0.389), (48, 0.465, 0.407), (168, 0.571, 0.462), (336, 0.650, 0.501), (720, 0.655, 0.514)],
)
def test_daily_seasonal_naive(etth1: Ett, horizon: int, mse: float, mae: float) -> None:
    got = score(seasonal_naive(horizon), etth1.windows("test", 96, horizon))
    assert (round(got.mse, 3), round(got.mae, 3)) == (mse, mae)


OLS = {
    96: {96: 0.383, 192: 0.434, 336: 0.476, 720: 0.470},
    336: {24: 0.318, 48: 0.343, 96: 0.370, 168: 0.397, 192: 0.403, 336: 0.428, 720: 0.434},
}


@pytest.mark.parametrize(("lookback", "horizon"), [(n, h) for n, table in OLS.items() for h in table])
def test_ols(etth1: Ett, lookback: int, horizon: int) -> None:
    forecaster = ols(etth1.windows("train", lookback, horizon))
    got = score(forecaster, etth1.windows("test", lookback, horizon))
    assert round(got.mse, 3) == OLS[lookback][horizon]


@pytest.mark.parametrize(
    ("horizon", "repeated", "least_squares"),
    [(24, 0.034, 0.026), (48, 0.050, 0.038), (168, 0.087, 0.066), (336, 0.113, 0.081), (720, 0.129, 0.080)],
)
def test_oil_temperature_alone(oil: Ett, horizon: int, repeated: float, least_squares: float) -> None:
    assert round(score(repeat(horizon), oil.windows("test", 336, horizon)).mse, 3) == repeated
    forecaster = ols(oil.windows("train", 336, horizon))
    assert round(score(forecaster, oil.windows("test", 336, horizon)).mse, 3) == least_squares


def test_the_batch_size_does_not_change_the_score(oil: Ett) -> None:
    windows = oil.windows("test", 96, 720)
    scores = [score(repeat(720), windows, batch_size=size) for size in (1, 32, 5000)]
    assert max(s.mse for s in scores) - min(s.mse for s in scores) < 1e-12


def test_mistakes_are_one_line(tmp_path, etth1: Ett) -> None:
    with pytest.raises(UserError, match="did you mean 'OT'"):
        load_ett(shared("ett/ETTh1.csv"), ("OTT",))
    with pytest.raises(UserError, match="no test window of lookback 96 and horizon 3000"):
        etth1.windows("test", 96, 3000)
    short = ",".join(["date", *etth1.columns]) + "\n2016-07-01 00:00:00" + 7 * ",1" + "\n"
    for text, complaint in (
        (short, "1 rows tell no interval"),
        ("a,b\n1,2\n", "cannot be read"),
    ):
        (tmp_path / "other.csv").write_text(text)
        with pytest.raises(UserError, match=complaint):
            load_ett(tmp_path / "other.csv")
