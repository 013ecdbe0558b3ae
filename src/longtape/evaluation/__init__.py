"""How good it is, and whether it is honest: skill, statistics, walk forward, audit, ETTh1."""
