"""longtape: long-context attention for market data, from the exchange to the tear sheet.

Names are imported when they are first used, so that `import longtape` is quick and needs neither torch nor polars.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "Bars": "longtape.market.bars",
    "Costs": "longtape.backtest",
    "Experiment": "longtape.experiment",
    "Instrument": "longtape.core.instrument",
    "Interval": "longtape.core.clock",
    "Run": "longtape.workflow",
    "Store": "longtape.market.store",
    "build_attention": "longtape.attention",
    "load_experiment": "longtape.experiment",
    "load_run": "longtape.workflow",
    "read_bars": "longtape.market.files",
    "read_files": "longtape.market.files",
    "run": "longtape.workflow",
    "run_backtest": "longtape.backtest",
    "train": "longtape.workflow",
}
__all__ = ["__version__", *_NAMES]

if TYPE_CHECKING:
    from longtape.attention import build_attention as build_attention
    from longtape.backtest import Costs as Costs
    from longtape.backtest import run_backtest as run_backtest
    from longtape.core.clock import Interval as Interval
    from longtape.core.instrument import Instrument as Instrument
    from longtape.experiment import Experiment as Experiment
    from longtape.experiment import load_experiment as load_experiment
    from longtape.market.bars import Bars as Bars
    from longtape.market.files import read_bars as read_bars
    from longtape.market.files import read_files as read_files
    from longtape.market.store import Store as Store
    from longtape.workflow import Run as Run
    from longtape.workflow import load_run as load_run
    from longtape.workflow import run as run
    from longtape.workflow import train as train


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'longtape' has no attribute '{name}'")
    return getattr(import_module(_NAMES[name]), name)
