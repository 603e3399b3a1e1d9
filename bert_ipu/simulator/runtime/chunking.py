"""How many micro-batches can run as one: what forbids it, what varies between them, what memory one of them takes.

Weight gradients are never held per micro-batch: what only feeds accumulators is wanted summed over the chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import Program, is_outer, mutated
from bert_ipu.simulator.runtime.contexts import normal_nodes
from bert_ipu.simulator.runtime.lowering import is_rounded
from bert_ipu.simulator.runtime.numerics import Numerics
from bert_ipu.simulator.runtime.operators import is_drawing, names, operator_name
from bert_ipu.simulator.runtime.replication import Replication

LINEAR = names(
    "add sub neg reshape view t transpose permute unsqueeze squeeze expand _to_copy sum slice select "
    "select_backward slice_backward cat alias clone detach nop"
)
"""Operators that may be applied to a sum instead of to each term."""

ADDING = frozenset({"add", "dampened_add", "mean"})
"""Accumulations of which those of K micro-batches can be made at once, from the sum of what they add."""

SCALING = frozenset({"mul", "div"})
"""Linear in the first operand where the second is the same for all micro-batches."""

_SHARING = names("reshape view t transpose permute select slice getitem")
"""Operators whose results take no memory of their own."""


@dataclass
class Analysis:
    """What batching knows of a program before it lowers a node."""

    varies: set[fx.Node] = field(default_factory=set)
    """Values that differ between micro-batches."""
    summed: set[fx.Node] = field(default_factory=set)
    """Values of which only the sum over micro-batches is read."""


def analyse(program: Program, replication: Replication, numerics: Numerics) -> Analysis:
    """Find which values vary between micro-batches, and which are wanted only as sums."""
    analysis = Analysis()
    for node in program.graph.nodes:
        varying_input = (
            node.op == "placeholder" and "input" in node.meta and program.inputs[node.meta["input"]].batched
        )
        if varying_input or (node.op == "call_function" and _varies(node, analysis.varies, numerics)):
            analysis.varies.add(node)
    for node in reversed(normal_nodes(program)):
        read = node in analysis.varies and node.users and not mutated(node)
        if read and all(_wants_sum(node, user, analysis, replication) for user in node.users):
            analysis.summed.add(node)
    return analysis


def _varies(node: fx.Node, varies: set[fx.Node], numerics: Numerics) -> bool:
    if is_outer(node):
        return False
    if is_drawing(node.target) or any(read in varies for read in node.all_input_nodes):
        return True
    return numerics.stochastic and is_rounded(node)


def _wants_sum(node: fx.Node, user: fx.Node, analysis: Analysis, replication: Replication) -> bool:
    if is_outer(user):
        return node in replication.pooled
    if user.target is ops.accumulate:
        return user.args[0] is not node and user.kwargs["kind"] in ADDING
    if user not in analysis.summed:
        return False
    name = operator_name(user.target)
    if name in SCALING:
        return user.args[0] is node and user.args[1] not in analysis.varies
    if name in ("add", "sub") and not all(read in analysis.varies for read in user.all_input_nodes):
        return False  # a term that is the same for all micro-batches would have to be counted K times
    return name in LINEAR


def why_not(program: Program, replication: Replication, numerics: Numerics) -> str | None:
    """What forbids running micro-batches together; None where nothing does."""
    if numerics.traps:
        return "each operator is checked for floating-point exceptions"
    for node in normal_nodes(program):
        if mutated(node):
            reason = _why_not_write(program, node, numerics)
        else:
            reason = _why_not_compute(node, replication, numerics)
        if reason is not None:
            return f"{node} {reason}"
    return None


def _why_not_write(program: Program, node: fx.Node, numerics: Numerics) -> str | None:
    """What forbids doing all writes of a chunk to a variable at once."""
    if _counts_for_means(node):
        return None
    if node.target is not ops.accumulate or node.kwargs["kind"] not in ADDING:
        return "writes to a variable at each micro-batch"
    variable: Any = program.variable_of(node)
    term: Any = node.args[1]
    if numerics.rounds and torch.float16 in (variable.dtype, term.meta["val"].dtype):
        return "rounds to fp16 at each micro-batch"
    if any(user not in _chain(node) and not is_outer(user) for user in node.users):
        return "is read inside a micro-batch"
    return None


def _why_not_compute(node: fx.Node, replication: Replication, numerics: Numerics) -> str | None:
    if node.target is ops.histogram:
        return "counts the gradients of each micro-batch"
    if getattr(node.target, "effect", False) and node.target is not ops.custom_op:
        return "has an effect outside the program"
    if node not in replication.pooled:
        return "is read by the update, of the last micro-batch" if any(map(is_outer, node.users)) else None
    is_rounded_sum = numerics.rounds and node.meta["val"].dtype == torch.float16
    return "is rounded to fp16 at each micro-batch" if is_rounded_sum else None


def _counts_for_means(node: fx.Node) -> bool:
    """Whether a node counts micro-batches, and inside of one only running means read what it counted before."""
    if node.target is not ops.increment or not all(is_outer(user) for user in node.users):
        return False
    counter: Any = node.args[0]
    return all(
        user is node or is_outer(user) or (is_running_mean(user) and user.args[2] is counter)
        for user in counter.users
    )


def is_running_mean(node: fx.Node) -> bool:
    return node.target is ops.accumulate and node.kwargs["kind"] == "mean"


def _chain(node: fx.Node) -> set[fx.Node]:
    """What accumulates on top of an accumulation, in the same micro-batch."""
    users = {user for user in node.users if user.target is ops.accumulate and user.args[0] is node}
    return set() if any(is_running_mean(user) for user in users) else users


def peak_bytes(program: Program, numerics: Numerics) -> int:
    """Bytes of the values alive at once inside one micro-batch, at most."""
    nodes = normal_nodes(program)
    position = {node: index for index, node in enumerate(nodes)}
    released: dict[int, int] = {}
    alive = peak = 0
    for index, node in enumerate(nodes):
        size = _size(node.meta["val"], numerics)
        if operator_name(node.target) in _SHARING:
            size = 0
        alive += size
        peak = max(peak, alive)
        last = max((position.get(user, len(nodes)) for user in node.users), default=index)
        released[last] = released.get(last, 0) + size
        alive -= released.get(index, 0)
    return max(peak, 1)


def _size(value: Any, numerics: Numerics) -> int:
    leaves = value if isinstance(value, (tuple, list)) else (value,)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return sum(leaf.numel() * numerics.activation(leaf.dtype).itemsize for leaf in tensors)


def chunk_size(pool: int, bytes_each: int, limit: int) -> int:
    """The most micro-batches that fit the limit and divide the pool evenly."""
    most = max(1, min(pool, limit // bytes_each))
    return next(size for size in range(most, 0, -1) if pool % size == 0)
