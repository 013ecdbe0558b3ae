"""The simulator's truth is in its data: lag, regimes, GARCH; the same seed gives the same market."""

import numpy as np
import polars as pl
import pytest

from longtape.core.clock import HOUR, Interval
from longtape.core.errors import UserError
from longtape.market.fetch import FetchRequest, fetch
from longtape.market.sources.simulate import ORIGIN, Regime, Simulate, Simulation, simulate
from longtape.market.store import Store


def log_returns(made):
    return np.log(made.bars.column("close") / made.bars.column("open"))


def test_the_truth_adds_up():
    made = simulate(5_000, Simulation(seed=3))
    assert np.allclose(log_returns(made), made.truth["log_return"], atol=1e-12)
    surprise = (made.truth["log_return"] - made.truth["mean"]) / made.truth["volatility"]
    assert abs(surprise.mean()) < 4 / np.sqrt(5_000)
    assert abs(surprise.std() - 1) < 4 / np.sqrt(2 * 5_000)


@pytest.mark.parametrize("lag", [1, 7, 48])
def test_the_planted_lag_is_where_it_was_planted(lag):
    made = simulate(20_000, Simulation(lag=lag, strength=0.5, alpha=0.0, beta=0.0, seed=1))
    r = log_returns(made)
    correlation = [np.corrcoef(r[k:], r[:-k])[0, 1] for k in range(1, 60)]
    assert int(np.argmax(correlation)) + 1 == lag
    assert correlation[lag - 1] == pytest.approx(0.5, abs=0.03)
    known = np.var(made.truth["mean"].to_numpy()[lag:]) / np.var(r)
    assert known == pytest.approx(0.25, abs=0.02)  # ρ² of the variance


def test_without_strength_nothing_can_be_known():
    made = simulate(2_000, Simulation(strength=0.0))
    assert (made.truth["mean"] == 0).all()


def test_volatility_clusters_as_garch_says():
    quiet = log_returns(simulate(30_000, Simulation(strength=0.0, alpha=0.0, beta=0.0, seed=2)))
    clustered = log_returns(simulate(30_000, Simulation(strength=0.0, alpha=0.15, beta=0.8, seed=2)))
    for r, low, high in [(quiet, -0.02, 0.02), (clustered, 0.1, 0.6)]:
        assert low < np.corrcoef(r[1:] ** 2, r[:-1] ** 2)[0, 1] < high
    assert clustered.std() == pytest.approx(0.005, rel=0.15)


def test_regimes_switch_and_show_in_the_volatility():
    regimes = (Regime(0.0, 1.0), Regime(0.0, 3.0), Regime(0.01, 0.5))
    made = simulate(
        30_000, Simulation(regimes=regimes, persistence=0.98, strength=0.0, alpha=0, beta=0, seed=4)
    )
    frame = made.truth.with_columns(stay=pl.col("regime") == pl.col("regime").shift())
    assert frame["stay"].mean() == pytest.approx(0.98, abs=0.005)
    for state, regime in enumerate(regimes):
        r = frame.filter(pl.col("regime") == state)["log_return"]
        assert len(r) > 5_000
        assert r.std() == pytest.approx(0.005 * regime.volatility, rel=0.05)
        assert r.mean() == pytest.approx(regime.drift, abs=5 * r.std() / np.sqrt(len(r)))


def test_candles_are_whole():
    frame = simulate(10_000).bars.frame
    assert (frame["high"] >= frame.select(pl.max_horizontal("open", "close")).to_series()).all()
    assert (frame["low"] <= frame.select(pl.min_horizontal("open", "close")).to_series()).all()
    assert frame["open"][1:].equals(frame["close"][:-1], check_names=False)


def test_the_same_seed_gives_the_same_market_and_a_longer_one_begins_with_it():
    short, long = simulate(1_000, Simulation(seed=5)), simulate(3_000, Simulation(seed=5))
    assert long.bars.frame[:1_000].equals(short.bars.frame)
    assert long.truth[:1_000].equals(short.truth)
    assert not simulate(1_000, Simulation(seed=6)).bars.frame.equals(short.bars.frame)


@pytest.mark.parametrize("interval", ["1m", "1h", "1d", "1w", "1M"])
def test_every_interval(interval):
    assert len(simulate(200, interval=interval).bars) == 200


def test_as_a_source(tmp_path):
    source, store = Simulate(), Store(tmp_path / "store")
    wanted = FetchRequest("candles", Interval.parse("1h"), ORIGIN + 100 * HOUR, ORIGIN + 300 * HOUR)
    fetch(source, store, ["SIM1", "SIM2"], wanted, "synthetic")
    later = FetchRequest("candles", Interval.parse("1h"), ORIGIN + 100 * HOUR, ORIGIN + 900 * HOUR)
    result = fetch(source, store, ["SIM1"], later, "synthetic")[0]
    assert (result.stored.added, result.stored.conflicts) == (600, 0)
    assert store.read("SIM1", "1h").frame.equals(simulate(900, Simulation(seed=1)).bars.frame[100:])
    for call, words in [
        (lambda: source.instrument("BTC"), "SIM and a seed"),
        (lambda: list(source.candles("SIM1", "1h", 0, None)), "--until"),
        (lambda: list(source.candles("SIM1", "1h", 0, 1, kind="mark")), "not mark"),
    ]:
        with pytest.raises(UserError, match=words):
            call()


@pytest.mark.parametrize(
    "wrong",
    [
        {"lag": 0},
        {"strength": 1.0},
        {"regimes": ()},
        {"persistence": 1.1},
        {"volatility": 0.0},
        {"alpha": 0.5, "beta": 0.5},
    ],
)
def test_what_cannot_be_simulated(wrong):
    with pytest.raises(UserError, match=f"simulate: {next(iter(wrong))} = "):
        Simulation(**wrong)
    with pytest.raises(UserError, match="bars"):
        simulate(0)
