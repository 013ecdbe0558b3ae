"""`python -m longtape.orchestration.worker FOLDER`: does the job of a folder and ends."""

from __future__ import annotations

import sys
from pathlib import Path

from longtape.orchestration.jobs import perform

if __name__ == "__main__":
    perform(Path(sys.argv[1]))
