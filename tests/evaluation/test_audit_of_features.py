"""Every feature of the catalogue that candles can give, audited on real hours with holes under every policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from longtape.core.clock import Interval, to_milliseconds
from longtape.core.instrument import Instrument
from longtape.evaluation.audit import audit
from longtape.features.build import FeaturesConfig, build
from longtape.features.panel import Panel
from longtape.market.bars import Bars
from longtape.market.files import read_bars
from tests.evaluation.ridge_pipeline import RidgePipeline
from tests.shared_data import shared

ALONE = [
    *(
        "log_return",
        "momentum(20)",
        "range",
        "body",
        "close_ratio(20)",
        "zscore(close, 100)",
        "ema(close, 20)",
    ),
    *(
        "lag(log_return, 3)",
        "difference(close, 2)",
        "highest(high, 50)",
        "lowest(low, 50)",
        "ratio(volume, 20)",
    ),
    *("rsi(14)", "rsi_simple(14)", "macd", "macd_signal", "macd_histogram", "bollinger(20)"),
    *("volatility(20)", "volatility(50)", "realised_volatility('day')", "realised_volatility('week')"),
    *(
        "parkinson(20)",
        "garman_klass(20)",
        "rogers_satchell(20)",
        "yang_zhang(20)",
        "atr(14)",
        "ewma_volatility",
    ),
    *(
        "log_volume",
        "volume_ratio(20)",
        "vwap(20)",
        "vwap_session",
        "vwap_cumulative('week')",
        "illiquidity(20)",
    ),
    *("hour", "weekday", "month", 'resample("4h").momentum(5)', 'resample("1d").rsi_simple(5)'),
]


@dataclass(frozen=True)
class Built(RidgePipeline):
    """The ridge of the other tests on features that are built by name."""

    config: FeaturesConfig = field(default_factory=FeaturesConfig)

    def panel(self, bars: Sequence[Bars]) -> Panel:
        return build(bars, self.config)


def hours(path: str, symbol: str, since: str, until: str) -> Bars:
    bars = read_bars(shared(path), symbol=symbol, interval="1h")
    return bars.between(to_milliseconds(since), to_milliseconds(until))


@pytest.mark.parametrize("missing", ["forward_fill", "drop", "mask"])
def test_no_feature_sees_the_future_or_the_beginning(missing: str) -> None:
    eth = hours("candles_1h_binance_spot/ETHUSDT.parquet", "ETHUSDT", "2018-01-10", "2018-04-20")
    config = FeaturesConfig(features=ALONE, targets=["return(6)", "volatility(12)"], missing=missing)
    report = audit(Built(lookback=8, config=config), [eth], n_cuts=3, n_feature_cuts=16, n_origins=8)
    assert report.passed, report.table()


def test_several_symbols_on_one_clock() -> None:
    paths = {name: f"candles_1h_bybit_linear/{name}.parquet" for name in ("BTCUSDT", "ETHUSDT")}
    bars = [hours(path, name, "2023-01-01", "2023-03-15") for name, path in paths.items()]
    features = [
        "log_return",
        'of("BTCUSDT").log_return',
        "zscore(volume, 48)",
        'resample("8h").momentum(3)',
        "hour",
    ]
    config = FeaturesConfig(features=features, targets=["return(6)", "direction(1, 0.001)"])
    report = audit(Built(lookback=8, config=config), bars, n_cuts=3, n_feature_cuts=16, n_origins=8)
    assert report.passed, report.table()


def test_daily_candles_of_an_exchange() -> None:
    stock = read_bars(
        shared("fx_stocks_single/GOOG_1d.parquet"), symbol="GOOG", interval="1d", calendar="XNYS"
    )
    google = Bars(Instrument("test", "stock", "GOOG", "XNYS"), Interval.parse("1d"), stock.frame)
    features = [
        "log_return",
        "volatility(20)",
        "rsi(14)",
        "realised_volatility('month')",
        'resample("1w").momentum(4)',
    ]
    config = FeaturesConfig(features=features, targets=["return(5)"])
    report = audit(Built(lookback=8, config=config), [google], n_cuts=3, n_feature_cuts=16, n_origins=8)
    assert report.passed, report.table()
