"""What part of a training step is the simulator itself: neither ATen nor one of its own kernels.

    python bench/simulator_overhead.py [--models tiny base-128] [--rounds 5]

One thread, the wall's clock, the quickest of several steps: the machine should be idle.  ATen's time is what torch's
profiler gives its outermost operators, the kernels' is taken around their calls, both in steps of their own.  Of a
small model that says little, as taking the time takes time.  So there is a bound from above as well: a step of the
same program on next to no numbers, which leaves the simulator, and the fixed cost of each call of ATen and a kernel.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from simulator_workloads import WORKLOADS, Workload, simulator_step

ASKED = {"tiny": 0.25, "base-128": 0.05}


class TimedKernels:
    """Adds up the seconds spent in the kernels while it is entered."""

    def __init__(self) -> None:
        from bert_ipu.simulator.runtime.native import SIGNATURES, load_kernels

        self.kernels, self.names, self.seconds = load_kernels(), list(SIGNATURES), 0.0
        self.plain: dict[str, Any] = {}

    def __enter__(self) -> TimedKernels:
        for name in self.names if self.kernels is not None else ():
            self.plain[name] = getattr(self.kernels, name)
            setattr(self.kernels, name, self._timed(self.plain[name]))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self.plain.items():
            setattr(self.kernels, name, function)

    def _timed(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            started = time.perf_counter()
            function(*args)
            self.seconds += time.perf_counter() - started

        return call


def seconds_of(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def work_inside(step: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one step inside ATen, and inside the kernels."""
    from torch.autograd.profiler_util import EventList
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler, TimedKernels() as kernels:
        step()
    events: EventList = profiler.events()
    aten = sum(e.cpu_time_total for e in events if e.cpu_parent is None and e.name.startswith("aten::"))
    return aten / 1e6, kernels.seconds


def next_to_nothing(work: Workload) -> Workload:
    """The same layers, heads and micro-batches with the fewest numbers in them."""
    return replace(work, hidden=4 * work.heads, length=4, masked=1, vocabulary=16)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(ASKED), choices=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print("| model | asked | outside | at most | seconds per step | in ATen | in kernels | on next to no numbers |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.models:
        step = simulator_step(WORKLOADS[name])
        whole = min(seconds_of(step) for _ in range(args.rounds + 2))
        aten, kernels = min((work_inside(step) for _ in range(args.rounds)), key=sum)
        outside = 1.0 - (aten + kernels) / whole
        idle_step = simulator_step(next_to_nothing(WORKLOADS[name]))
        idle = min(seconds_of(idle_step) for _ in range(args.rounds + 2))
        asked = f"{ASKED[name]:.0%}" if name in ASKED else "-"
        print(
            f"| {name} | {asked} | {outside:.1%} | {idle / whole:.1%} | {whole:.4f} | {aten:.4f} | {kernels:.4f} "
            f"| {idle:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
