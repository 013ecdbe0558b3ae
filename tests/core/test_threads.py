"""Threads that wait sleep, unless the user said otherwise."""

import os
import subprocess
import sys

import pytest

from longtape.core.threads import worker_environment

SAY = "import os, atexit; atexit.register(lambda: print(os.environ.get('OMP_WAIT_POLICY')))"


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_the_command_line_lets_threads_sleep_before_torch_is_loaded(given, kept):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    code = f"{SAY}; import sys; sys.argv = ['longtape', '--help']; import longtape.__main__"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.splitlines()[-1] == kept
    assert "torch" not in ended.stderr


def test_a_worker_takes_the_threads_that_it_is_given(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = "import torch, polars; print(torch.get_num_threads(), polars.thread_pool_size())"
    environment = os.environ | worker_environment(1)
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.split() == ["1", "1"]
    assert worker_environment(3)["OMP_WAIT_POLICY"] == "PASSIVE"
