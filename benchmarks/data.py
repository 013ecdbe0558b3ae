"""The store and bars from trades with 10⁷ rows: `python benchmarks/data.py`."""

from pathlib import Path

from longtape.benchmarking.data import bench

if __name__ == "__main__":
    print(bench(out=Path(__file__).parent / "results"))
