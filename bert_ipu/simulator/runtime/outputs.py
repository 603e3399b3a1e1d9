"""What a run returns: results of all micro-batches, the last ones, every N-th, or their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bert_ipu.simulator.graph.ir import OutputSpec
from bert_ipu.simulator.runtime.settings import ExecutionSettings


@dataclass
class Collector:
    """Gathers one output of a run, fetch by fetch; a fetch is one micro-batch of every replica, in replica
    order."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    mode: str
    period: int
    fetches: int
    replicas: int
    kept: list[Tensor] = field(default_factory=list)
    seen: int = 0

    def add(self, values: Sequence[Tensor]) -> None:
        """Take the next micro-batches' values."""
        for value in values:
            fetch, replica = divmod(self.seen, self.replicas)
            self.seen += 1
            if self.mode == "sum" and fetch > 0:
                self.kept[replica] = self.kept[replica] + value
            elif self._keeps(fetch):
                self.kept.append(value.clone())

    def _keeps(self, fetch: int) -> bool:
        if self.mode == "final":
            return fetch == self.fetches - 1
        return self.mode != "every_n" or (fetch + 1) % self.period == 0

    def result(self) -> Tensor:
        """What the user gets: micro-batches along dimension 0, 0-dimensional values stacked where there are
        several."""
        if not self.kept:  # every n-th of fewer than n
            whole = torch.empty(0, *self.shape[1:], dtype=self.dtype)
        elif len(self.kept) == 1:
            whole = self.kept[0]
        else:
            whole = torch.cat(self.kept) if self.shape else torch.stack(self.kept)
        return whole.to(device="cpu", dtype=self.dtype)


def make_collector(spec: OutputSpec, value: Tensor, settings: ExecutionSettings) -> Collector:
    """A collector for one output of one run; an updated input comes back whole."""
    mode, period = settings.output_mode, settings.output_period
    if spec.kind == "input_update":
        mode = "all"
    elif spec.mode is not None:
        mode, period = spec.mode, spec.period  # type: ignore[assignment]
    fetches = settings.device_iterations * settings.gradient_accumulation
    return Collector(value.dtype, tuple(value.shape), mode, period, fetches, settings.replication_factor)
