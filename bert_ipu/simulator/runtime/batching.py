"""Lowers many micro-batches as one.

A value of a chunk of K micro-batches has one of four layouts.  Operators that treat dimension 0 as a batch
run on FOLDED values unchanged; the rules in `batching_rules.py` say so, and an operator without a rule runs K
times.  What varies between micro-batches, and what is wanted only as a sum, `chunking.py` finds before.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import mutated
from bert_ipu.simulator.runtime import optimizer_ops
from bert_ipu.simulator.runtime.chunking import Analysis, is_running_mean
from bert_ipu.simulator.runtime.instructions import RUN, Name
from bert_ipu.simulator.runtime.lowering import Emitter, resolve
from bert_ipu.simulator.runtime.operators import is_drawing, operator_name
from bert_ipu.simulator.runtime.selection import DRAWS


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

    def enter(self, node: fx.Node, name: Name) -> Operand:
        """The operand of a placeholder."""
        layout = Layout.FOLDED if node in self.analysis.varies else Layout.SAME
        return Operand(name, layout, tuple(node.meta["val"].shape))

    def lower(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        """The operand (or tuple of them) that a node computes."""
        args, kwargs = resolve(node, env)
        name = operator_name(node.target)
        if mutated(node):
            return self._write(node, args, kwargs)
        if name == "getitem":
            return args[0][args[1]]
        layouts = {operand.layout for operand in operands_in([args, kwargs])}
        if layouts <= {Layout.SAME} and not is_drawing(node.target):
            if node in self.analysis.varies:
                return self.one_by_one(node, args, kwargs)
            return self.call(node, Layout.SAME, args, kwargs)
        if Layout.SUMMED in layouts:
            sums = [self._of_sum(value) for value in args]
            return self.call(node, Layout.SUMMED, sums, kwargs)
        return self._by_rule(node, name, args, kwargs)

    def _of_sum(self, value: Any) -> Any:
        varies = isinstance(value, Operand) and value.layout is not Layout.SAME
        return self.summed(value) if varies else value

    def _by_rule(self, node: fx.Node, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The first that applies: a rule for the sum where only that is wanted, the operator's rule; else K runs."""
        rules = [self.sum_rules.get(name) if node in self.analysis.summed else None, self.rules.get(name)]
        for rule in filter(None, rules):
            made = rule(self, node, args, kwargs)
            if made is not None:
                return made
        return self.one_by_one(node, args, kwargs)

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
        if is_running_mean(node):
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
