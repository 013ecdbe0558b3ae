"""Many outcomes in one page: what was drawn, what was refused, which check found what, and what only many runs show."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.markdown import markdown_table
from tests.fuzz.campaign import Outcome
from tests.fuzz.mistakes import MISTAKES, Mistake, options_out_of_reach

EDGE_LEVEL = 0.05  # one-sided test behind the verdict
BETTER_LEVEL = 0.05  # two-sided test behind "ahead of the best baseline"
ERROR = 1e-4  # chance that all is right and a count over all runs is still called a fault
Verdicts = Sequence[tuple[Mistake, str | None]]
Pairs = list[tuple[str, str]]


def aggregate_faults(outcomes: Iterable[Outcome]) -> Pairs:
    """What is wrong over all runs together, as (check, sentence)."""
    figures = [outcome.figures for outcome in outcomes if outcome.figures]
    return [*_edges(figures), *_better(figures), *_variances(figures), *_coverages(figures)]


def _edges(figures: list[dict[str, Any]]) -> Pairs:
    claims = [one["claims"] for one in figures if one["no edge"] and one["claims"] is not None]
    most = int(stats.binom.ppf(1 - ERROR, len(claims), EDGE_LEVEL))
    if sum(claims) <= most:
        return []
    return [("edges claimed where there are none", f"{sum(claims)} of {len(claims)} runs; {most} at most")]


def _better(figures: list[dict[str, Any]]) -> Pairs:
    blind = [one for one in figures if one["no edge"]]
    tested, sure = sum(one["compared"] for one in blind), sum(one["better"] for one in blind)
    most = int(stats.binom.ppf(1 - ERROR, tested, BETTER_LEVEL))
    if sure <= most:
        return []
    return [
        ("better than the best baseline where nothing can be known", f"{sure} of {tested}; {most} at most")
    ]


def _variances(figures: list[dict[str, Any]]) -> Pairs:
    """Middle of the runs' mean f²/σ² by horizon, where returns are alike at all times."""
    found = []
    for horizon, logs in sorted(variance_ratios(figures).items()):
        level = float(np.median(logs))
        error = 1.86 * float(np.median(np.abs(np.array(logs) - level))) / np.sqrt(len(logs))
        if len(logs) >= 8 and abs(level) > 0.1 + 3 * error:
            sentence = (
                f"{np.exp(level):.3g}× too large in the middle of {len(logs)} forecasts of {horizon} bars"
            )
            found.append(("variances right on average", sentence))
    return found


def variance_ratios(figures: list[dict[str, Any]]) -> dict[int, list[float]]:
    """Logarithms of mean f²/σ² by horizon."""
    by_horizon: dict[int, list[float]] = defaultdict(list)
    for one in figures:
        if one["exchangeable"]:
            for horizon, ratio in one["variance"]:
                by_horizon[int(horizon)].append(ratio)
    return by_horizon


def _coverages(figures: list[dict[str, Any]]) -> Pairs:
    found = []
    for kind, misses in sorted(coverage_misses(figures).items()):
        miss, error = float(np.mean(misses)), float(np.std(misses) / np.sqrt(len(misses)))
        if len(misses) >= 10 and abs(miss) > 0.02 + 4 * error:
            found.append(("coverage right on average", f"{kind}: {miss:+.3f} over {len(misses)} intervals"))
    return found


def coverage_misses(figures: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Coverage less its level, by kind of target."""
    misses: dict[str, list[float]] = defaultdict(list)
    for one in figures:
        for kind, level, share in one["coverage"]:
            misses[kind].append(share - level)
    return misses


# --- the page ---


def page(outcomes: Sequence[Outcome], mistakes: Verdicts = ()) -> str:
    """The whole page in Markdown."""
    ended = Counter("walked" if outcome.refusal is None else outcome.refusal[0] for outcome in outcomes)
    faulty = sum(bool(outcome.faults) for outcome in outcomes)
    parts = [
        "# Fuzz of whole experiments\n",
        "Written by `python -m tests.fuzz --runs N --out benchmarks/results/fuzz.md`. Every run is a function of its"
        " seed; `python -m tests.fuzz SEED` walks one again.\n",
        machine_line(describe_machine()) + "\n",
        f"{len(outcomes)} runs, seeds {min(o.seed for o in outcomes)} to {max(o.seed for o in outcomes)}:"
        f" {', '.join(f'{count} {name}' for name, count in ended.most_common())}; {faulty} with a fault;"
        f" {np.median([o.seconds for o in outcomes]):.1f} s a run in the middle.\n",
        "## Over all runs\n",
        _over_all(outcomes),
        "## Checks\n",
        _checks(outcomes),
        "## Mistakes of a user\n",
        _mistakes(mistakes),
        "## Refused\n",
        _refusals(outcomes),
        "## What was drawn\n",
        _drawn(outcomes),
    ]
    return "\n".join(part for part in parts if part)


def _over_all(outcomes: Sequence[Outcome]) -> str:
    figures = [outcome.figures for outcome in outcomes if outcome.figures]
    claims = {
        edge: [f["claims"] for f in figures if f[edge] and f["claims"] is not None]
        for edge in ("no edge", "planted")
    }
    rows = [
        ["edge claimed, nothing to know", f"{sum(claims['no edge'])} of {len(claims['no edge'])}"],
        ["edge claimed, one planted", f"{sum(claims['planted'])} of {len(claims['planted'])}"],
    ]
    for horizon, logs in sorted(variance_ratios(figures).items()):
        rows.append(
            [f"mean f²/σ², {horizon} bars", f"{np.exp(np.median(logs)):.3f} in the middle of {len(logs)}"]
        )
    for kind, misses in sorted(coverage_misses(figures).items()):
        rows.append([f"coverage less its level, {kind}", f"{np.mean(misses):+.4f} ({len(misses)})"])
    unknown = sorted({name for one in figures for name in one["not recomputed"]})
    rows.append(["scores that nothing here recomputes", ", ".join(unknown) or "none"])
    rows += [[f"FAULT: {name}", sentence] for name, sentence in aggregate_faults(outcomes)]
    return _table(["figure", "found"], rows)


def _checks(outcomes: Sequence[Outcome]) -> str:
    applied, found = Counter(), Counter()
    example: dict[str, str] = {}
    for outcome in outcomes:
        applied.update(outcome.applied)
        found.update({name for name, _ in outcome.faults})
        for name, sentence in outcome.faults:
            example.setdefault(name, f"seed {outcome.seed}: {sentence}")
    names = sorted({*applied, *found}, key=lambda name: (-found[name], name))
    rows = [
        [name, str(applied[name] or "–"), str(found[name]), _short(example.get(name, ""))] for name in names
    ]
    return _table(["check", "runs", "with a fault", "the first"], rows)


def _mistakes(verdicts: Verdicts) -> str:
    wrong = [(mistake, said) for mistake, said in verdicts if said is not None]
    head = f"{len(verdicts)} of {len(MISTAKES)} tried, {len(wrong)} not met as they should be."
    head += (
        f" Options of the account that the document lacks: {', '.join(options_out_of_reach()) or 'none'}.\n\n"
    )
    return head + _table(
        ["mistake", "known from", "met by"], [[m.name, m.latest, _short(said)] for m, said in wrong]
    )


def _refusals(outcomes: Sequence[Outcome]) -> str:
    refused = Counter(
        (outcome.refusal[0], _general(outcome.refusal[1]))
        for outcome in outcomes
        if outcome.refusal is not None
    )
    rows = [[str(count), stage, _short(message)] for (stage, message), count in refused.most_common()]
    options = Counter(_general(said) for outcome in outcomes for said in outcome.options_refused)
    rows += [[str(count), "option", _short(said)] for said, count in options.most_common()]
    return _table(["runs", "stage", "said"], rows)


def _general(message: str) -> str:
    """A message without its numbers, times and paths."""
    return re.sub(r"\d+", "#", re.sub(r"/\S*/", "", message))


def _drawn(outcomes: Sequence[Outcome]) -> str:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        for key, value in outcome.said.items():
            counts[key].update([str(part) for part in (value if isinstance(value, list) else [value])])
    rows = [
        [key, ", ".join(f"{name} {count}" for name, count in c.most_common())] for key, c in counts.items()
    ]
    return _table(["what", "how often"], rows)


def _short(text: str | None) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= 200 else text[:199] + "…"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return markdown_table(head, rows, numbers=False) + "\n"
