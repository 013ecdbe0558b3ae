"""The main job as a user runs it: wall-clock time and peak memory of `longtape demo` and of the hourly example.

    python benchmarks/main_job.py [CANDLES.parquet]

Each command runs in a process of its own. Without a candle file only the demo is measured.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.files import write_text

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "btc_hourly.yaml"


def measured(command: list[str], log: Path) -> tuple[float, float, int]:
    """Seconds, peak MiB and exit code of one command; what it prints goes to `log`."""
    started = time.perf_counter()
    with open(log, "wb") as out:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), n) for n in (1, 2)],
        )
        _, status, usage = os.wait4(pid, 0)
    return time.perf_counter() - started, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)


def main() -> None:
    python = [sys.executable, "-m", "longtape"]
    with tempfile.TemporaryDirectory() as folder:
        jobs = {"longtape demo (lookback 512 days)": [*python, "demo", "--out", f"{folder}/demo"]}
        if len(sys.argv) > 1:
            candles = str(Path(sys.argv[1]).resolve())
            run = ["run", str(EXAMPLE), "--out", f"{folder}/btc", "-o", f"data.path={candles}"]
            jobs["longtape run examples/btc_hourly.yaml (lookback 1,024 hours)"] = [*python, *run]
        lines = [
            "# The main job",
            "",
            machine_line(describe_machine()),
            "",
            "A whole run over a million minutes, step by step: [million.md](million.md).",
            "",
            "| command | seconds | peak MiB | exit code |",
            "|---|---:|---:|---:|",
        ]
        texts = []
        for name, command in jobs.items():
            log = Path(folder) / "log"
            seconds, memory, code = measured(command, log)
            lines.append(f"| {name} | {seconds:.0f} | {memory:,.0f} | {code} |")
            text = log.read_text("utf-8", errors="replace")
            printed = text[max(text.find("Backtest of the test period"), 0) :].split("report: ")[0]
            texts += ["", f"## {name}", "", "```", printed.strip(), "```"]
    write_text(HERE / "results" / "main_job.md", "\n".join([*lines, *texts]) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
