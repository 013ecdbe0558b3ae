"""What `make release` installs as the oldest dependencies are the lower bounds that the package names."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_oldest_versions_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    bounds = dict(
        re.match(r"([\w-]+)>=([\d.]+)", one).groups() for one in project["dependencies"] if ">=" in one
    )
    lines = [
        line for line in (ROOT / "constraints-oldest.txt").read_text("utf-8").splitlines() if "==" in line
    ]
    oldest = dict(line.split("==") for line in lines)
    assert oldest.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert oldest[name].startswith(bound), name
