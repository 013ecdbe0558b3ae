"""`python -m tests.fuzz SEED` walks one seed; `--runs N --out FILE.md` many, and writes the page of them.

Interrupted runs go on where they ended: outcomes are kept beside the page, in FILE.jsonl, until it is written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.campaign import Outcome, walk_seed
from tests.fuzz.experiments import draw
from tests.fuzz.mistakes import MISTAKES, judge_mistake
from tests.fuzz.summary import Verdicts, aggregate_faults, page


def main() -> int:
    """Entry point; 1 where a fault was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="walk this seed alone, and say what was found")
    parser.add_argument("--folder", type=Path, help="keep the seed's data and run here")
    parser.add_argument("--runs", type=int, default=25, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, help="page to write")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    if given.seed is not None:
        return _one(given.seed, given.folder)
    return _many(range(given.first, given.first + given.runs), given.out, given.processes)


def _one(seed: int, folder: Path | None) -> int:
    print(draw(seed).yaml)
    outcome = walk_seed(seed, folder)
    print(story(outcome))
    return int(bool(outcome.faults))


def story(outcome: Outcome) -> str:
    """What was found in one seed, and how to see it again."""
    lines = [
        f"seed {outcome.seed}: {len(outcome.faults)} faults, {len(outcome.applied)} checks, {outcome.seconds:.1f} s"
    ]
    lines += [f"  {name}: {sentence}" for name, sentence in outcome.faults]
    return "\n".join([*lines, f"again: python -m tests.fuzz {outcome.seed}"])


def _many(seeds: range, out: Path | None, processes: int) -> int:
    kept = out.with_suffix(".jsonl") if out else None
    outcomes = {one.seed: one for one in _kept(kept) if one.seed in seeds}
    left = [seed for seed in seeds if seed not in outcomes]
    for outcome in _walked(left, processes):
        outcomes[outcome.seed] = outcome
        if kept is not None:
            with kept.open("a") as file:
                file.write(json.dumps(outcome.to_dict(), default=str) + "\n")
        print(
            f"{len(outcomes)}/{len(seeds)} {story(outcome).rsplit(chr(10), 1)[0]}",
            file=sys.stderr,
            flush=True,
        )
    ordered = [outcomes[seed] for seed in seeds]
    text = page(ordered, judged_mistakes())
    if out is not None and kept is not None:
        out.write_text(text)
        kept.unlink(missing_ok=True)
    print(text)
    return int(any(one.faults for one in ordered) or bool(aggregate_faults(ordered)))


def _kept(path: Path | None) -> list[Outcome]:
    if path is None or not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]


def _walked(seeds: list[int], processes: int) -> Iterator[Outcome]:
    if processes == 1:
        yield from map(walk_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(walk_seed, seeds)


def judged_mistakes() -> Verdicts:
    """Every mistake of the list, and what is wrong with how it is met."""
    verdicts = []
    for mistake in MISTAKES:
        folder = Path(tempfile.mkdtemp(prefix="longtape-fuzz-"))
        verdicts.append((mistake, judge_mistake(mistake, folder)))
        shutil.rmtree(folder, ignore_errors=True)
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
