"""Many micro-batches as one: which values vary, which are wanted only as sums, and what forbids it.

A value of a chunk of K micro-batches has one of four layouts.  Operators that treat dimension 0 as a batch
run on FOLDED values unchanged; the rules in `batching_rules.py` say so, and an operator without a rule runs K
times. Weight gradients are never held per micro-batch: what only feeds accumulators is computed summed over
the chunk.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import Program, is_outer, mutated
from bert_ipu.simulator.runtime import optimizer_ops
from bert_ipu.simulator.runtime.instructions import RUN, Name
from bert_ipu.simulator.runtime.lowering import DRAWS, Emitter, is_rounded, resolve
from bert_ipu.simulator.runtime.micro import normal_nodes
from bert_ipu.simulator.runtime.numerics import Numerics
from bert_ipu.simulator.runtime.operators import is_drawing, names, operator_name
from bert_ipu.simulator.runtime.replication import Replication


class Layout(enum.Enum):
    """How a value of the graph is held for a chunk of K micro-batches."""

    SAME = "same"
    """One value for all of them, in the graph's shape."""
    FOLDED = "folded"
    """[K * d0, d1, ...]"""
    STACKED = "stacked"
    """[K, d0, d1, ...]"""
    SUMMED = "summed"
    """The sum over the micro-batches, in the graph's shape."""


@dataclass(frozen=True)
class Operand:
    """A value of the graph as the generated code holds it."""

    name: Name
    layout: Layout
    shape: tuple[int, ...]
    """The shape of one micro-batch's value."""
    transposed: Operand | None = None
    """The matrix that this one is the transpose of, where it is one."""


LINEAR = names(
    "add sub neg reshape view t transpose permute unsqueeze squeeze expand _to_copy sum slice select "
    "select_backward slice_backward cat alias clone detach nop"
)
"""Operators that may be applied to a sum instead of to each term."""

ADDING = frozenset({"add", "dampened_add", "mean"})
"""Accumulations of which those of K micro-batches can be made at once, from the sum of what they add."""

SCALING = frozenset({"mul", "div"})
"""Linear in the first operand where the second is the same for all micro-batches."""


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
        for position in mutated(node):
            variable = program.variable_of(node.args[position])  # type: ignore[arg-type]
            if _counts_for_means(node):
                continue
            if node.target is not ops.accumulate or node.kwargs["kind"] not in ADDING:
                return f"{node} writes to a variable at each micro-batch"
            halves = {variable.dtype, node.args[1].meta["val"].dtype}  # type: ignore[union-attr]
            if numerics.rounds and torch.float16 in halves:
                return f"{node} rounds to fp16 at each micro-batch"
            if any(user not in _chain(node) and not is_outer(user) for user in node.users):
                return f"{node} is read inside a micro-batch"
        if node.target is ops.histogram:
            return f"{node} counts the gradients of each micro-batch"
        if getattr(node.target, "effect", False) and node.target is not ops.custom_op:
            return f"{node} has an effect outside the program"
        if (
            not mutated(node)
            and any(is_outer(user) for user in node.users)
            and node not in replication.pooled
        ):
            return f"the update reads {node} of the last micro-batch"
        crosses = node in replication.pooled and not mutated(node)
        if numerics.rounds and crosses and node.meta["val"].dtype == torch.float16:
            return f"{node} is rounded to fp16 at each micro-batch"
    return None


def _counts_for_means(node: fx.Node) -> bool:
    """Whether a node counts micro-batches, and inside of one only running means read what it counted before."""
    if node.target is not ops.increment or not all(is_outer(user) for user in node.users):
        return False
    counter: Any = node.args[0]
    return all(
        user is node or is_outer(user) or (_is_running_mean(user) and user.args[2] is counter)
        for user in counter.users
    )


def _is_running_mean(node: fx.Node) -> bool:
    return node.target is ops.accumulate and node.kwargs["kind"] == "mean"


def _chain(node: fx.Node) -> set[fx.Node]:
    """What accumulates on top of an accumulation, in the same micro-batch."""
    users = {user for user in node.users if user.target is ops.accumulate and user.args[0] is node}
    return set() if any(_is_running_mean(user) for user in users) else users


def peak_bytes(program: Program, numerics: Numerics) -> int:
    """Bytes of the values alive at once inside one micro-batch, at most."""
    nodes = normal_nodes(program)
    position = {node: index for index, node in enumerate(nodes)}
    released: dict[int, int] = {}
    alive = peak = 0
    for index, node in enumerate(nodes):
        size = _size(node.meta["val"], numerics)
        if operator_name(node.target) in (
            "reshape",
            "view",
            "t",
            "transpose",
            "permute",
            "select",
            "slice",
            "getitem",
        ):
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


Rule = Callable[["Batcher", fx.Node, list[Any], dict[str, Any]], Any]
"""(batcher, node, args, kwargs), args with operands in place of nodes, to an operand, a tuple of them, or
None."""


@dataclass
class Batcher:
    """Lowers nodes for a chunk of K micro-batches; rules build with its methods."""

    emitter: Emitter
    chunk: int
    analysis: Analysis
    rules: dict[str, Rule]
    sum_rules: dict[str, Rule]
    views: dict[tuple[Name, Layout], Name] = field(default_factory=dict)
    """Values already brought to another layout."""

    # -- layouts ---------------------------------------------------------------------------------

    def stacked(self, operand: Operand) -> Name:
        """As [K, d0, ...]."""
        if operand.layout is Layout.STACKED:
            return operand.name
        assert operand.layout is not Layout.SUMMED, "a sum over micro-batches cannot be taken apart"
        return self._view(operand, Layout.STACKED, [self.chunk, *operand.shape])

    def folded(self, operand: Operand) -> Name:
        """As [K * d0, ...]."""
        if operand.layout is Layout.FOLDED:
            return operand.name
        stacked = Operand(self.stacked(operand), Layout.STACKED, operand.shape)
        return self._view(stacked, Layout.FOLDED, [self.chunk * operand.shape[0], *operand.shape[1:]])

    def _view(self, operand: Operand, layout: Layout, shape: list[int]) -> Name:
        key = (operand.name, layout)
        if key not in self.views:
            name = operand.name
            if operand.layout is Layout.SAME:
                name = self.emit(torch.reshape, name, [1, *operand.shape])
            function = Tensor.expand if operand.layout is Layout.SAME else torch.reshape
            self.views[key] = self.emit(function, name, shape)
        return self.views[key]

    def summed(self, operand: Operand) -> Name:
        """The sum over the chunk, in the graph's shape."""
        if operand.layout is Layout.SUMMED:
            return operand.name
        if operand.layout is Layout.SAME:
            return self.emit(torch.mul, operand.name, self.chunk)
        return self.emit(torch.sum, self.stacked(operand), 0)

    def emit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Name:
        return self.emitter.code.emit(function, *args, **kwargs)

    # -- lowering --------------------------------------------------------------------------------

    def lower_all(
        self,
        emitter: Emitter,
        program: Program,
        nodes: list[fx.Node],
        env: dict[fx.Node, Any],
        outputs: list[fx.Node],
        crossing: list[fx.Node],
    ) -> list[Name]:
        """Lower the nodes; the names of outputs as [K, ...], and of crossing values summed."""
        for node, name in env.items():
            env[node] = self._placeholder(program, node, name)
        for node in nodes:
            if mutated(node) and node in crossing:
                env[node] = env[node.args[1]]  # type: ignore[index]
            else:
                env[node] = self.lower(node, env)
        return [self.stacked(env[node]) for node in outputs] + [self.summed(env[node]) for node in crossing]

    def _placeholder(self, program: Program, node: fx.Node, name: Name) -> Operand:
        shape = tuple(node.meta["val"].shape)
        batched = "input" in node.meta and program.inputs[node.meta["input"]].batched
        return Operand(name, Layout.FOLDED if batched else Layout.SAME, shape)

    def lower(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        """The operand (or tuple of them) that a node computes."""
        args, kwargs = resolve(node, env)
        operands = operands_in([args, kwargs])
        name = operator_name(node.target)
        if mutated(node):
            return self._write(node, args, kwargs)
        if name == "getitem":
            return args[0][args[1]]
        if all(operand.layout is Layout.SAME for operand in operands):
            if node not in self.analysis.varies:
                return self._wrap(node, self._plain(node, args, kwargs), Layout.SAME)
            if not is_drawing(node.target):
                return self.one_by_one(node, args, kwargs)
        if any(operand.layout is Layout.SUMMED for operand in operands):
            flat = [
                self.summed(x) if isinstance(x, Operand) and x.layout is not Layout.SAME else x for x in args
            ]
            return self._wrap(node, self._plain(node, flat, kwargs), Layout.SUMMED)
        if node in self.analysis.summed and name in self.sum_rules:
            made = self.sum_rules[name](self, node, args, kwargs)
            if made is not None:
                return made
        made = self.rules[name](self, node, args, kwargs) if name in self.rules else None
        return made if made is not None else self.one_by_one(node, args, kwargs)

    def call(self, node: fx.Node, layout: Layout, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Emit a node's own operator on operands already brought to a layout."""
        return self._wrap(node, self._plain(node, args, kwargs), layout)

    def _plain(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return self.emitter.operator(node, _names(args), _names(kwargs))

    def _wrap(self, node: fx.Node, result: Any, layout: Layout) -> Any:
        value = node.meta["val"]
        if isinstance(result, tuple):
            return tuple(
                Operand(name, layout, tuple(item.shape)) if isinstance(item, Tensor) else name
                for name, item in zip(result, value)
            )
        return Operand(result, layout, tuple(value.shape)) if isinstance(value, Tensor) else result

    def _write(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Operand:
        """An accumulation, or a count, of the whole chunk at once."""
        if node.target is ops.increment:
            made = self.emit(optimizer_ops.increment, args[0].name, self.chunk, pure=False)
            return Operand(made, Layout.SAME, args[0].shape)
        total = self.summed(args[1])
        if _is_running_mean(node):
            made = self.emit(
                optimizer_ops.mean_of_more, args[0].name, total, args[2].name, self.chunk, pure=False
            )
            return Operand(made, Layout.SAME, args[0].shape)
        summed = [args[0], Operand(total, Layout.SAME, args[1].shape), *args[2:]]
        return self._wrap(node, self._plain(node, summed, kwargs), Layout.SAME)  # type: ignore[no-any-return]

    def one_by_one(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operator K times: the way of operators no rule covers."""
        code = self.emitter.code
        value = node.meta["val"]
        parts: list[Any] = []
        for index in range(self.chunk):
            taken = [self._take(arg, index) for arg in args]
            options = {key: self._take(arg, index) for key, arg in kwargs.items()}
            before = len(code.instructions)
            parts.append(self.emitter.operator(node, taken, options))
            for instruction in code.instructions[before:]:
                instruction.args = tuple(_of_part(arg, index) for arg in instruction.args)
        if isinstance(value, Tensor):
            return Operand(self.emit(torch.stack, parts), Layout.STACKED, tuple(value.shape))
        return tuple(
            Operand(self.emit(torch.stack, [part[i] for part in parts]), Layout.STACKED, tuple(item.shape))
            if isinstance(item, Tensor)
            else None
            for i, item in enumerate(value)
        )

    def _take(self, value: Any, index: int) -> Any:
        if isinstance(value, Operand):
            if value.layout is Layout.SAME:
                return value.name
            return self.emit(torch.select, self.stacked(value), 0, index)
        if isinstance(value, (list, tuple)):
            return type(value)(self._take(item, index) for item in value)
        return value


def _of_part(value: Any, index: int) -> Any:
    """The argument of one micro-batch where an instruction takes the whole chunk's run."""
    if value == RUN:
        return Name(f"{RUN.text}.parts[{index}]")
    return Name(f"{RUN.text}.parts[{index}].draws") if value == DRAWS else value


def _names(value: Any) -> Any:
    if isinstance(value, Operand):
        return value.name
    if isinstance(value, dict):
        return {key: _names(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(_names(item) for item in value)
    return value


def operands_in(value: Any) -> list[Operand]:
    """Every operand inside nested tuples, lists and dicts."""
    if isinstance(value, Operand):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [operand for item in items for operand in operands_in(item)]
