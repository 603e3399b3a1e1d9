"""Automatic loss scaling: the device doubles its loss scale after a weight update, or halves it where gradients
came near the end of float16's range.

PopART's rule (`willow/src/transforms/automaticlossscaling.cpp`, `willow/src/popx/op/lossscaleupdatex.cpp`):
the tracked gradients of all micro-batches and replicas are counted into a lower and an upper bin; the upper
one starts at `bin_edge` x 65504. More than `proportion` of them in it halves the update factor, which the next
weight update is the first to use. The loss scale in effect is the optimizer's times that factor.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import torch
from torch import fx

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import Program, Role, Variable

aten = torch.ops.aten

LOSS_SCALING = "lossScaling_FLOAT"
"""The loss scale that the host gives, where it is not constant."""
FACTOR = "lossScaleUpdateFactor"
STATISTICS = "Accum___autoLossScaleStats"
COUNTER = "LossScaleUpdate_counter"
FINAL_LOSS_SCALE = "finalLossScale"

SCALED_INVERSELY = frozenset(
    {"gradientScaling", "scaledLearningRate0", "dampeningScaleFactor1", "dampeningScaleFactor2"}
)
"""Formulas of `optimizer_spec.py` that divide a gradient by the loss scale."""

_MATMULS = frozenset(
    {
        aten.matmul.default,
        aten.mm.default,
        aten.bmm.default,
        aten.linear.default,
        aten.convolution.default,
        aten.convolution_backward.default,
    }
)
_VIEWS = frozenset(
    {
        aten.alias.default,
        aten.expand.default,
        aten.permute.default,
        aten.reshape.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.t.default,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.view.default,
    }
)


@dataclass(frozen=True)
class AutomaticLossScaling:
    """PopART's `AutomaticLossScalingSettings`. Raises Error for settings out of range."""

    bin_edge: float = 0.125
    proportion: float = 1e-7
    period: int = 1
    """Weight updates from one change of the factor to the next."""
    matmuls_only: bool = False
    """Track the gradients that matrix multiplications and convolutions make, not all but views."""

    def __post_init__(self) -> None:
        for name, value in (
            ("binEdgeLocation", self.bin_edge),
            ("thresholdUpperCountProportion", self.proportion),
        ):
            if not 0 <= value <= 1:
                raise poptorch_error(
                    f"automaticLossScalingSettings.{name} is {value}, but it must be between 0 and 1."
                )
        if self.period < 1:
            raise poptorch_error(
                f"automaticLossScalingSettings.updatePeriod is {self.period}, but it must be at least 1."
            )

    @property
    def edge(self) -> float:
        """Where the upper bin starts."""
        return self.bin_edge * torch.finfo(torch.float16).max


_NORMAL = {"pass": "backward", "context": "normal"}
_OUTER = {"pass": "optimizer", "context": "outer"}


def adapt_scale(program: Program, scale: fx.Node) -> fx.Node:
    """The loss scale in effect: the optimizer's times the update factor, whose variable is entered."""
    factor = program.add_variable(Variable(FACTOR, Role.STATE, (), torch.float32, fill=1.0))
    final = program.emit(aten.mul.Tensor, scale, factor, meta=_NORMAL)
    program.tensor_names[FINAL_LOSS_SCALE] = final
    return final


def add_loss_scale_update(program: Program, settings: AutomaticLossScaling) -> None:
    """Append the counting of gradients and, after the weight update, that of the factor.

    Raises Error where no float16 gradient is computed.
    """
    program.prune()
    total = _count(program, settings)
    if total is None:
        raise poptorch_error(
            "Automatic loss scaling watches float16 gradients, and this model computes none: convert it with "
            "model.half(), or leave Options.Training.setAutomaticLossScaling out."
        )
    with program.before(program.output):
        _update_factor(program, settings, total)


def _count(program: Program, settings: AutomaticLossScaling) -> Optional[fx.Node]:
    """Sums the histograms of the tracked gradients, each taken as soon as the gradient is there."""
    total: Optional[fx.Node] = None
    for node in list(_tracked(program, settings)):
        with program.after(node):
            found = program.emit(ops.histogram, node, origin=node, edge=settings.edge)
            total = found if total is None else program.emit(aten.add.Tensor, total, found, origin=node)
    return total


def _tracked(program: Program, settings: AutomaticLossScaling) -> Iterator[fx.Node]:
    for node in program.operators():
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float16 or not node.users:
            continue
        producer: fx.Node = node.args[0] if node.target is operator.getitem else node  # type: ignore[assignment]
        if producer.meta.get("pass") != "backward" or not _all_half(producer.meta["val"]):
            continue
        if producer.target in _MATMULS or (not settings.matmuls_only and _is_statistic(producer)):
            yield node


def _is_statistic(producer: fx.Node) -> bool:
    """Whether a gradient says more than the tensors it is made of.

    PopART leaves out views, what reads the loss scale and what reads a weight directly. (It multiplies by
    transposes of weights, so matrix products of gradients do count.)
    """
    read = producer.all_input_nodes
    reads_weight = any("variable" in node.meta for node in read)
    reads_scale = any(_is_seed(node) for node in read)
    is_view = producer.target in _VIEWS
    return not (is_view or reads_weight or reads_scale or _is_seed(producer))


def _is_seed(node: fx.Node) -> bool:
    """Whether a node belongs to the gradient that the backward pass starts from: the loss scale itself."""
    return node.meta.get("pass") == "backward" and "forward_node" not in node.meta


def _all_half(value: object) -> bool:
    leaves = value if isinstance(value, (tuple, list)) else (value,)
    return all(leaf.dtype == torch.float16 for leaf in leaves if isinstance(leaf, torch.Tensor))


def _update_factor(program: Program, settings: AutomaticLossScaling, total: fx.Node) -> None:
    """Let the next weight update use another factor, by the counts of all micro-batches and replicas."""
    reduction = program.reduction
    statistics = program.emit(aten._to_copy.default, total, meta=_NORMAL, dtype=torch.float32)
    accumulated = None
    if reduction.accumulation > 1:
        accumulator = program.add_variable(Variable(STATISTICS, Role.STATE, (2,), torch.float32))
        statistics = accumulated = program.emit(
            ops.accumulate, accumulator, statistics, 1.0, meta=_NORMAL, kind="add"
        )
    if reduction.replicas > 1:
        statistics = program.emit(ops.replica_reduce, statistics, meta=_OUTER, reduction="sum", groups=None)
    factor = program.placeholder_of(FACTOR)
    assert factor is not None, "the factor was entered with the loss scale"
    counter = None
    if settings.period > 1:
        entered = program.add_variable(Variable(COUNTER, Role.STATE, (), torch.float32, fill=-1.0))
        counter = program.emit(ops.increment, entered, meta=_OUTER)
    program.emit(
        ops.loss_scale_update,
        factor,
        statistics,
        counter,
        meta=_OUTER,
        proportion=settings.proportion,
        period=settings.period,
    )
    if accumulated is not None:
        program.emit(ops.accumulator_zero, accumulated, meta=_OUTER)
