"""A stand-in for one of ccxt's exchanges that pages, limits and fails as they do; no network."""

import ccxt as library

from tests.market.bybit_server import START

NAMES = ["timestamp", "open", "high", "low", "close", "volume"]


class Exchange:
    id = "pretend"
    precisionMode = library.TICK_SIZE

    def __init__(self, candles, cap=300, heeds_until=True):
        times = candles["timestamp"].dt.timestamp("ms").to_numpy()
        self.rows = [[int(t), *row] for t, row in zip(times, candles.select(NAMES[1:]).rows(), strict=True)]
        self.timeframes, self.has = {"1h": "60", "1d": "D"}, {"fetchTime": True}
        self.features = {"spot": {"fetchOHLCV": {"limit": 300}}}
        self.cap, self.heeds_until = cap, heeds_until
        self.now = int(times[-1]) + 60_000
        self.urls = {
            "api": {"public": "https://api.pretend.example/v1", "private": "https://api.pretend.example"}
        }
        self.markets, self.calls, self.faults = None, 0, []

    def load_markets(self):
        common = {"precision": {"amount": 0.001, "price": 0.1}, "quote": "USDT"}
        self.markets = {
            "BTC/USDT": common | {"id": "BTCUSDT", "symbol": "BTC/USDT", "spot": True},
            "BTC/USDT:USDT": common | {"id": "BTCUSDT", "symbol": "BTC/USDT:USDT", "linear": True, "settle": "USDT",
                                       "contractSize": 0.01},
        }  # fmt: skip

    def fetch_time(self):
        return self.now

    def fetch_ohlcv(self, symbol, timeframe, since, limit, params):
        self.calls += 1
        if self.faults:
            raise self.faults.pop(0)
        until = params.get("until") if self.heeds_until else None
        fit = [row for row in self.rows if row[0] >= since and (until is None or row[0] <= until)]
        return fit[: min(limit, self.cap)]

    def fetch_trades(self, symbol):
        return [
            {"timestamp": START + i, "price": 1.0 + i, "amount": 2.0, "id": str(i), "side": "buy"}
            for i in range(9)
        ]
