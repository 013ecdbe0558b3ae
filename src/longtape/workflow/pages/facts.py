"""The part of a page on the data and on what it takes to repeat the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longtape.core.clock import iso
from longtape.market.bars import Bars
from longtape.market.quality import check
from longtape.market.rows import Rows as MarketRows
from longtape.report.numbers import duration, fixed
from longtape.report.page import Block, Facts, Folded, Section, Table
from longtape.workflow.pages.subject import Subject


def data_and_run(subject: Subject) -> Section:
    """Quality of the data, the run's facts, the whole experiment."""
    blocks: list[Block] = [quality(subject.bars)]
    if subject.facts:
        blocks.append(Facts("The run", "Enough to repeat it to the bit on this machine.", _facts(subject)))
    blocks.append(Folded("The whole experiment, every default written out", subject.experiment.to_yaml()))
    return Section("Data and run", blocks)


def quality(bars: Sequence[MarketRows]) -> Table:
    """What a check of each symbol finds; of books and tapes how many rows there are."""
    rows = [_checked(one) if isinstance(one, Bars) else _counted(one) for one in bars]
    return Table(
        "Data quality", "As longtape data check sees it: errors, warnings and notes of each symbol.", rows
    )


def _checked(bars: Bars) -> dict[str, Any]:
    found = check(bars)
    said = [f"{one.count:,} × {one.name.replace('_', ' ')} ({one.severity})" for one in found.findings]
    tone = "good" if not found.findings else "bad" if not found.ok else "neutral"
    return {"symbol": bars.symbol, "rows": found.rows, "missing": found.missing,
            "found": ", ".join(said) or "nothing", "tone": tone}  # fmt: skip


def _counted(rows: MarketRows) -> dict[str, Any]:
    times = rows.timestamps
    alike = int((times[1:] == times[:-1]).sum())
    return {"symbol": rows.symbol, "rows": len(rows), "at the time of the row before": alike,
            "from": iso(int(times[0])), "to": iso(int(times[-1]))}  # fmt: skip


def _facts(subject: Subject) -> dict[str, Any]:
    facts, experiment = subject.facts, subject.experiment
    windows = ", ".join(f"{count:,} {name}" for name, count in facts["windows"].items())
    seconds = sum(history[-1].get("seconds", 0.0) for history in subject.histories if history)
    told: dict[str, Any] = {"command to repeat it": subject.command, "seed": str(facts["seed"])}
    told |= ({"training took": duration(seconds)} if seconds else {}) | _memory(facts)
    told |= {f"fingerprint of {key}": value for key, value in facts["fingerprints"].items()}
    told |= {
        "windows": windows,
        "features": ", ".join(experiment.features),
        "model": experiment.model.summary,
    }
    if experiment.has_account:
        costs = experiment.backtest.costs.model_dump()
        told["costs"] = ", ".join(f"{name} {value}" for name, value in costs.items() if value is not None)
    told["versions"] = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return told


def _memory(facts: Mapping[str, Any]) -> dict[str, str]:
    peak = facts.get("peak_memory_mb")
    return {} if peak is None else {"memory of training, at its peak": f"{fixed(peak, 0)} MB"}
