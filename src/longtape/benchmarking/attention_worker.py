"""One measurement of one attention layer in a process of its own: a job as JSON on standard input, facts as JSON out.

`python -m longtape.benchmarking.attention_worker < job.json`
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtape.attention import Attention, build_attention
from longtape.attention.cpu.layout import pattern_layout
from longtape.benchmarking.attention_peers import PEERS, Projected, Shape

MIB = 2**20
WARM_UP = 1024  # tokens: enough for every peer's blocks
FORWARD, TRAIN, ATTEND, BUILD, ERROR = "forward", "train", "attend", "build", "error"


@dataclass(frozen=True)
class Job:
    """What to measure: a mechanism of longtape with its options, or a peer by name.

    `parts`: forward, train (forward + backward), attend (without the projections), build (the layer and its pattern),
    error (relative root mean square distance from exact attention with the same weights).
    """

    subject: str
    tokens: int
    options: dict[str, Any] = field(default_factory=dict)
    is_peer: bool = False
    batch: int = 1
    d_model: int = 256
    n_heads: int = 8
    dtype: str = "float32"
    device: str = "cpu"
    parts: tuple[str, ...] = (FORWARD, TRAIN)
    seconds: float = 1.0  # time spent on repeated calls of each part, after one call that is not counted

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "parts": tuple(values["parts"])})

    def to_json(self) -> str:
        """One line for the child process."""
        return json.dumps(asdict(self))


def build_layer(job: Job) -> nn.Module:
    """The layer in eval mode on its device; the same seed for everybody."""
    torch.manual_seed(0)
    if job.is_peer:
        layer = PEERS[job.subject].build(Shape(job.tokens, job.batch, job.d_model, job.n_heads))
    else:
        layer = build_attention(
            job.subject, d_model=job.d_model, n_heads=job.n_heads, seq_len=job.tokens, **job.options
        )
    return layer.to(job.device, getattr(torch, job.dtype)).eval()


class PeakMemory:
    """Extra peak memory in MiB over what the process (or the GPU) held at the start."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.start = self._now()

    def measure(self, run: Callable[[], None]) -> float:
        """Peak while `run` runs, less what was held when this object was made."""
        self._reset()
        run()
        return max(0.0, (self._highest() - self.start) / MIB)

    def _now(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else _status("VmRSS")

    def _highest(self) -> int:
        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        return _status("VmHWM")

    def _reset(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew


def _status(name: str) -> int:
    """Bytes of VmRSS or VmHWM; where there is no /proc, the highest use so far for both."""
    path = Path("/proc/self/status")
    if not path.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    line = next(line for line in path.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def seconds_per_call(run: Callable[[], None], job: Job) -> float:
    """Median over as many calls as fit into `job.seconds`, at least one, at most 200."""
    sync = torch.cuda.synchronize if job.device.startswith("cuda") else (lambda: None)
    times: list[float] = []
    while not times or (sum(times) < job.seconds and len(times) < 200):
        sync()
        start = time.perf_counter()
        run()
        sync()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run_job(job: Job) -> dict[str, float]:
    """Run the job in this process."""
    facts: dict[str, float] = {}
    warm_up(job)
    start = time.perf_counter()
    layer = build_layer(job)
    if BUILD in job.parts and isinstance(layer, Attention):
        facts["build_mib"] = PeakMemory(job.device).measure(lambda: build_layout(layer, job.tokens))
        facts["build_s"] = time.perf_counter() - start
    x = torch.randn(job.batch, job.tokens, job.d_model, dtype=getattr(torch, job.dtype), device=job.device)
    gradient = torch.randn_like(x)
    peak = PeakMemory(job.device)
    for part, run in measured_calls(layer, x, gradient).items():
        if part in job.parts:
            facts[f"{part}_mib"] = peak.measure(run)
            facts[f"{part}_s"] = seconds_per_call(run, job)
    if ERROR in job.parts and isinstance(layer, Attention):
        facts["error"] = error_against_full(layer, x)
    return facts


def warm_up(job: Job) -> None:
    """A short sequence through the layer, so that what its first call loads or compiles is in nobody's figures."""
    small = replace(job, tokens=min(job.tokens, WARM_UP))
    x = torch.randn(job.batch, small.tokens, job.d_model, dtype=getattr(torch, job.dtype), device=job.device)
    x.requires_grad_()
    y = build_layer(small)(x)
    if TRAIN in job.parts:
        y.sum().backward()


def build_layout(layer: Attention, n_tokens: int) -> None:
    """Lay out what each query sees, for a mechanism with a pattern of its own."""
    patterns = getattr(layer, "patterns", None) or [getattr(layer, "pattern", None)]
    for pattern in {pattern for pattern in patterns if pattern is not None}:
        pattern_layout(pattern, n_tokens, None, 0)


def measured_calls(layer: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Callable[[], None]]:
    """What to call for each part."""
    wanted = x.clone().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def train() -> None:
        wanted.grad = None
        layer.zero_grad(set_to_none=True)
        layer(wanted).backward(gradient)

    return {FORWARD: forward, TRAIN: train, ATTEND: attend_alone(layer, x)}


def attend_alone(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """The attention without its projections, on q, k and v as the projections lay them out."""
    held: list[Tensor] = []

    def run() -> None:
        if not isinstance(layer, Attention | Projected):
            raise ValueError("only longtape's layers and SDPA can be measured without their projections")
        with torch.no_grad():
            if not held:
                held.extend(layer.project(x))
            if isinstance(layer, Attention):
                layer.attend(held[0], held[1], held[2], None, **layer.extra_inputs(x))
            else:
                layer.attend(held[0], held[1], held[2])

    return run


@torch.no_grad()
def error_against_full(layer: Attention, x: Tensor) -> float:
    """‖y − exact‖ / ‖exact‖, exact attention having the same four projections."""
    exact = build_attention("flash", d_model=layer.config.d_model, n_heads=layer.config.n_heads)
    weights = layer.state_dict()
    shared = {
        name: weights[name if name in weights else name.replace("k_", "q_")] for name in exact.state_dict()
    }
    exact.load_state_dict(shared)
    truth = exact.to(x.device, x.dtype).eval()(x).double()
    return ((layer(x).double() - truth).norm() / truth.norm()).item()


def main() -> None:
    """Read a job, do it, and print only JSON on standard output, whatever the libraries print."""
    job = Job.from_json(sys.stdin.read())
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        facts = run_job(job)
    print(json.dumps(facts), file=out, flush=True)


if __name__ == "__main__":
    main()
