"""What an executable needs to know apart from its program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

OutputMode = Literal["all", "final", "sum", "every_n"]
Reduction = Literal["sum", "mean"]
Products = Literal["matmul", "convolution"]

AllReduce = Callable[[Sequence[Tensor]], None]
"""Sums contiguous tensors over the instances, in place."""


@dataclass(frozen=True)
class ExecutionSettings:
    """How often a program runs per call, over which replicas, and what it returns."""

    device_iterations: int = 1
    replication_factor: int = 1
    """Replicas of this instance."""
    gradient_accumulation: int = 1
    output_mode: OutputMode = "all"
    output_period: int = 1
    """N of the mode "every_n"."""
    seed: int = 0
    instance: int = 0
    instances: int = 1
    all_reduce: AllReduce | None = field(default=None, compare=False)
    """Required where `instances` is more than 1."""
    stochastic_rounding: bool = False
    half_partials: frozenset[Products] = frozenset()
    """Which products of fp16 values are summed in fp16, where an operator says nothing of its own."""
    float_exceptions: bool = False
    """Stop the run at the first overflow, division by zero or invalid operation."""

    def __post_init__(self) -> None:
        for name in (
            "device_iterations",
            "replication_factor",
            "gradient_accumulation",
            "output_period",
            "instances",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.instances > 1 and self.all_reduce is None:
            raise ValueError(f"{self.instances} instances need an all_reduce that sums over them")

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one run, over all replicas of this instance."""
        return self.device_iterations * self.gradient_accumulation * self.replication_factor

    @property
    def global_replicas(self) -> int:
        """Replicas over all instances."""
        return self.replication_factor * self.instances
