"""The pages that people read: of a run, a walk forward, several runs. Which blocks stand on them, in which order."""
