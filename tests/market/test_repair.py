"""Gaps and damaged files are fetched again; what the service does not have is named and stays missing."""

import pytest

from longtape.core.errors import LongtapeError, ServiceError, UserError
from longtape.market import quality
from longtape.market.bars import Bars
from longtape.market.fetch import FetchRequest, fetch
from longtape.market.repair import repair
from longtape.market.store import Store
from tests.market.bybit_server import status, synthetic
from tests.market.store_data import BTC, HOUR, START

CANDLES = synthetic(12_001)  # the last one is still open at the server


@pytest.fixture
def server(server):
    server.add("BTCUSDT", CANDLES)
    return server


def stored(folder, *parts) -> Store:
    store = Store(folder)
    for part in parts:
        store.append(Bars.checked(BTC, HOUR, part))
    return store


def mended(store, bybit, **options):
    return repair(store, store.series()[0], bybit, **options)


def test_gaps_are_filled_and_nothing_else_is_asked_for(tmp_path, server, bybit):
    store = stored(tmp_path, CANDLES[:500], CANDLES[510:3000], CANDLES[4500:9000])
    result = mended(store, bybit)
    assert (result.missing_before, result.fetched, result.missing, result.set_aside) == (1510, 1510, 0, 0)
    assert store.read("BTCUSDT", "1h").frame.select(CANDLES.columns).equals(CANDLES[:9000])
    assert mended(store, bybit).fetched == 0
    assert len(server.calls()) <= 4


def test_a_damaged_file_is_set_aside_and_its_period_fetched_again(tmp_path, bybit):
    store = stored(tmp_path, CANDLES[:12_000])
    path = tmp_path / "bybit/linear/BTCUSDT/1h/2024.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    result = mended(store, bybit)
    assert (result.set_aside, result.fetched, result.missing) == (1, 8784, 0)
    assert store.read("BTCUSDT", "1h").frame.select(CANDLES.columns).equals(CANDLES[:12_000])
    assert quality.check_stored(store, store.series()[0]).ok


def test_the_only_file_damaged(tmp_path, bybit):
    store = stored(tmp_path, CANDLES[:500])
    path = tmp_path / "bybit/linear/BTCUSDT/1h/2024.parquet"
    path.write_bytes(b"")
    assert mended(store, bybit).fetched == 8784


def test_what_the_service_has_not_stays_missing_and_is_named(tmp_path, server, bybit):
    server.add("BTCUSDT", CANDLES[[*range(600), *range(650, len(CANDLES))]])
    store = stored(tmp_path, CANDLES[:500], CANDLES[700:1000])
    result = mended(store, bybit)
    assert (result.missing_before, result.fetched, result.missing) == (200, 150, 50)
    assert result.first_missing == "2024-01-26 00:00Z"


def test_a_stored_bar_is_not_changed_but_the_last_one_on_request(tmp_path, bybit, capsys):
    wrong = CANDLES.with_columns(volume=CANDLES["volume"] + 1)
    store = stored(tmp_path, wrong[:100])
    assert mended(store, bybit).replaced == 0
    assert mended(store, bybit, last=True).replaced == 1
    volumes = store.read("BTCUSDT", "1h").column("volume")
    assert (volumes[:99] == wrong["volume"][:99].to_numpy()).all()
    assert volumes[99] == CANDLES["volume"][99]
    assert "1 bars differ" in capsys.readouterr().err


def test_a_repair_that_fails_keeps_what_it_had_and_goes_on(tmp_path, server, bybit):
    store = stored(tmp_path, CANDLES[:500], CANDLES[5000:6000])
    server.fail(*[status(500)] * 50, after=2)
    with pytest.raises(ServiceError):
        mended(store, bybit)
    kept = len(store.read("BTCUSDT", "1h"))
    assert 1500 < kept < 6000
    server._faults.clear()
    assert mended(store, bybit).missing == 0
    assert store.read("BTCUSDT", "1h").frame.select(CANDLES.columns).equals(CANDLES[:6000])


def test_tables_without_a_step_cannot_be_repaired(tmp_path, bybit):
    store = Store(tmp_path)
    store.append_table("funding", BTC, CANDLES[:9].select("timestamp", rate="close"))
    with pytest.raises(UserError, match="no fixed step"):
        mended(store, bybit)


@pytest.mark.parametrize("torn", ["2024", "2025"])
def test_a_fetch_over_a_torn_file_is_stopped_once_and_then_brings_all_back(tmp_path, bybit, torn):
    wanted = FetchRequest("candles", HOUR, since=START)
    store = Store(tmp_path)
    fetch(bybit, store, ["BTCUSDT"], wanted, "linear")
    path = tmp_path / f"bybit/linear/BTCUSDT/1h/{torn}.parquet"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(LongtapeError, match=f"{path}: damaged .* set aside"):
        fetch(bybit, store, ["BTCUSDT"], wanted, "linear")
    fetch(bybit, store, ["BTCUSDT"], wanted, "linear")
    assert store.read("BTCUSDT", "1h").frame.select(CANDLES.columns).equals(CANDLES[:12_000])
