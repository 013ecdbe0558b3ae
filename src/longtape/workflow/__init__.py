"""The way of the data, walked end to end: what an experiment describes, done."""

from longtape.workflow.run import Run, load_run, run, train

__all__ = ["Run", "load_run", "run", "train"]
