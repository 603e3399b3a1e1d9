"""What the compiler is asked for: a forward, the module whose tensors it reads, and what the options say of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import torch

from bert_ipu.simulator.graph.ir import Pass, Program, Reduction, ReplicaGroups
from bert_ipu.simulator.graph.loss_scaling import AutomaticLossScaling
from bert_ipu.simulator.graph.optimizer_spec import OptimizerSpec

Patterns = Callable[[Program, Pass], None]
"""Rewrites a program to a fixed point; run at the three places of PopART, after the pass it is told."""


@dataclass(frozen=True)
class Anchor:
    """A tensor the user wants returned besides the model's results."""

    short_name: str
    tensor_name: str
    mode: Optional[str] = None
    period: int = 1


@dataclass(frozen=True)
class CompileRequest:
    """Everything a compile depends on."""

    forward: Callable[..., Any]
    """Called once, with tensors that record what is done to them."""
    module: torch.nn.Module
    """Names the parameters, buffers and modules."""
    args: tuple[Any, ...]
    """Example inputs of one micro-batch: any nesting; tensors may be fake. Only shapes and dtypes count."""
    training: bool = False
    optimizer: Optional[OptimizerSpec] = None
    loss_scaling: Optional[AutomaticLossScaling] = None
    """Where the device adapts the loss scale; the optimizer's must not be constant then."""
    reduction: Reduction = field(default_factory=Reduction)
    groups: Mapping[str, ReplicaGroups] = field(default_factory=dict)
    """Parameters and buffers that differ between replicas, by name."""
    shared_buffers: bool = False
    """Replicas with inputs of their own have one copy of the buffers: a forward that writes them is refused."""
    strided_channel_groups: bool = False
    """PopART's `groupNormStridedChannelGrouping`."""
    module_scopes: bool = True
    """Whether tensors have the modules that made them in their names."""
    anchors: tuple[Anchor, ...] = ()
    patterns: Optional[Patterns] = None


def parameters_and_buffers(model: Any) -> dict[str, torch.Tensor]:
    """A module's parameters and buffers by name, shared ones once, under their first; none for a function."""
    if not isinstance(model, torch.nn.Module):
        return {}
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
