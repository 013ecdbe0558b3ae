"""The machine a measurement was made on, so that a number can be read later."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

_INTERESTING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system, Python, torch, threads, GPU and the allocator's environment."""
    import torch

    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": _instructions(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "allocator": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def machine_line(facts: dict[str, Any]) -> str:
    """`describe_machine` as one line for the head of a table."""
    parts = [
        f"{facts['processor']}, {facts['cores']} cores ({facts['instructions']}), {facts['memory_gib']} GiB",
        f"{facts['system']}, Python {facts['python']}, torch {facts['torch']}, {facts['threads']} threads",
    ]
    if "gpu" in facts:
        parts.append(str(facts["gpu"]))
    return "; ".join(parts)


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _processor() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _instructions() -> str:
    flags = _cpuinfo().get("flags", "").split()
    return ", ".join(flag for flag in _INTERESTING if flag in flags) or "no vector extensions named"
