"""The loop, schedules, checkpoints, run folders."""
