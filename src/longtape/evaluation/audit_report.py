"""What an audit found: one check per question, in words, as a table and as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from longtape.core.clock import iso

_SHOWN = 5
OF_TRADING = ("signals", "fills", "start: signals")  # left out where nothing is traded
OF_A_REACH = (
    "start: forecasts",
    "start: signals",
)  # left out where a forecast may depend on every row there is
QUESTIONS = {
    "split": "Are all training labels known before the first origin that is validated or tested?",
    "features": "Do features up to t keep their bits when the data after t are cut off or changed?",
    "targets": "Do labels known by t keep their bits, and are labels not known by t unknown?",
    "inputs": "Do training origins, scaler, windows and model inputs up to t keep their bits?",
    "forecasts": "Do forecasts made up to t keep their bits?",
    "signals": "Do weights decided up to t keep their bits?",
    "fills": "Do trades up to t keep their bits, and does no trade come before the decision it follows?",
    "start: features": "Beyond the warm-up, do features stay within 1e-6 deviations when the first bars change?",
    "start: forecasts": "Do forecasts stay within 1e-5 of their deviation when the first bars change?",
    "start: signals": "Do weights change only where a forecast lies that close to a threshold?",
}


@dataclass(frozen=True)
class Finding:
    """One thing that moved: what, at which time, and how."""

    what: str
    time: int
    detail: str

    def __str__(self) -> str:
        return f"{self.what} at {iso(self.time)}: {self.detail}"


@dataclass
class Check:
    """One question, how many numbers were compared to answer it, and what was found."""

    name: str
    compared: int = 0
    findings: list[Finding] = field(default_factory=list)
    note: str = ""

    @property
    def passed(self) -> bool:
        """Nothing found, and something looked at: a check that could not run has not passed."""
        return self.compared > 0 and not self.findings

    def found(self, what: str, time: int, detail: str) -> None:
        """Note a finding; of each thing the first is kept."""
        if all(finding.what != what for finding in self.findings):
            self.findings.append(Finding(what, int(time), detail))


@dataclass(frozen=True)
class AuditReport:
    """All checks and the times at which the data were cut. `passed` is for the report, `table()` for people."""

    checks: tuple[Check, ...]
    cuts: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Every check passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON and the HTML report."""
        return {
            "passed": self.passed,
            "cuts": [iso(time) for time in self.cuts],
            "checks": [
                {
                    "name": check.name,
                    "question": QUESTIONS[check.name],
                    "passed": check.passed,
                    "compared": check.compared,
                    "findings": [str(finding) for finding in check.findings],
                    "note": check.note,
                }
                for check in self.checks
            ],
        }

    def table(self) -> str:
        """One line a check, its first findings below it."""
        lines = []
        for check in self.checks:
            verdict = "passed" if check.passed else ("FOUND " if check.findings else "NOT RUN")
            lines.append(
                f"{verdict:<8} {check.name:<17} {check.compared:>12,} compared  {QUESTIONS[check.name]}"
            )
            lines += [f"           {finding}" for finding in check.findings[:_SHOWN]]
            if len(check.findings) > _SHOWN:
                lines.append(f"           and {len(check.findings) - _SHOWN} more")
            if check.note:
                lines.append(f"           {check.note}")
        lines.append("audit passed" if self.passed else "audit FAILED")
        return "\n".join(lines)
