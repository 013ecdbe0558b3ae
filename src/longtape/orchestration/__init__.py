"""Many runs at once: jobs, the engines that carry them, walk-forward and search over them, lists of runs."""
