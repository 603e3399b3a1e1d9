"""In-place writes and views made functional while the forward is captured.

A tensor of the user is a *view* (a path of view operators) of a *storage*, which has one current
value.  Writing to a view computes the storage's next value; a view read after a write through
another one is derived again.  A write that reaches a variable or an input is finished by the capture.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
from torch import fx

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.recorder import NodeRecorder

aten = torch.ops.aten


@dataclass(frozen=True)
class ViewStep:
    """One view operator applied to a parent of `parent_shape`; `item` picks one of several results."""

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parent_shape: tuple[int, ...]
    item: Optional[int] = None

    def apply(self, recorder: NodeRecorder, parent: fx.Node) -> fx.Node:
        """The view of `parent`; it has a gradient also where gradients are off just now."""
        made = [recorder.record_node(self.target, parent, *self.args, **self.kwargs)]
        if self.item is not None:
            made.append(recorder.record_node(operator.getitem, made[0], self.item))
        for node in made:
            node.meta.pop("no_grad", None)
        return made[-1]


@dataclass(eq=False)
class Storage:
    """A piece of memory: its current value as a whole, and how often it was written."""

    node: fx.Node
    version: int = 0
    written: Optional[tuple[tuple[ViewStep, ...], fx.Node]] = None
    """The last write: where, and the value."""
    owner: Union[str, int, None] = None
    """The variable (by name) or user input (by index) that this memory is."""


@dataclass(eq=False)
class View:
    """What one tensor of the user shows of a storage."""

    storage: Storage
    node: fx.Node
    version: int = 0
    path: tuple[ViewStep, ...] = field(default=())

    @staticmethod
    def whole(node: fx.Node, owner: Union[str, int, None] = None) -> View:
        """A new storage, seen as a whole."""
        return View(Storage(node, owner=owner), node)

    def read(self, recorder: NodeRecorder) -> fx.Node:
        """The node with the current value, derived again where the storage was written since."""
        if self.version != self.storage.version:
            node = self.storage.node
            for step in self.path:
                node = step.apply(recorder, node)
            self.node, self.version = node, self.storage.version
        return self.node

    def derive(self, step: ViewStep, node: fx.Node) -> View:
        """A view of this view, whose value is already at hand."""
        return View(self.storage, node, self.storage.version, (*self.path, step))

    @property
    def detached(self) -> bool:
        """Whether the view shows its storage to torch's autograd as a tensor of its own."""
        return any(step.target is aten.detach.default for step in self.path)

    def write(self, recorder: NodeRecorder, value: fx.Node, unrecorded: bool = False) -> None:
        """Make `value` (of this view's shape and dtype) the new contents of what the view shows.

        `unrecorded`: the storage's gradient is that of what it held before.
        """
        if self.storage.written == (self.path, value):
            return  # Python's `x[i] += y` ends by copying the piece to itself.
        parents = [self.storage.node]
        for step in self.path[:-1]:
            parents.append(step.apply(recorder, parents[-1]))
        whole = value
        for step, parent in zip(reversed(self.path), reversed(parents)):
            whole = _insert(recorder, step, parent, whole)
        if unrecorded:
            whole = recorder.record_node(ops.unrecorded_write, self.storage.node, whole)
        self.storage.node = whole
        self.storage.version += 1
        self.storage.written = (self.path, value)
        if not unrecorded or self.detached:  # else it is read as a part of the whole, and so is its gradient
            self.node, self.version = value, self.storage.version


def _insert(recorder: NodeRecorder, step: ViewStep, parent: fx.Node, value: fx.Node) -> fx.Node:
    """`parent` with the part that `step` shows replaced by `value`."""
    rule = _INSERTIONS.get(step.target)
    if rule is not None:
        return rule(recorder, step, parent, value)
    return _insert_by_index(recorder, step, parent, value)


def _insert_reshaped(recorder: NodeRecorder, step: ViewStep, parent: fx.Node, value: fx.Node) -> fx.Node:
    return recorder.record_node(aten.reshape.default, value, list(step.parent_shape))


def _insert_whole(recorder: NodeRecorder, step: ViewStep, parent: fx.Node, value: fx.Node) -> fx.Node:
    return value


def _insert_transposed(recorder: NodeRecorder, step: ViewStep, parent: fx.Node, value: fx.Node) -> fx.Node:
    return recorder.record_node(step.target, value, *step.args, **step.kwargs)


def _insert_permuted(recorder: NodeRecorder, step: ViewStep, parent: fx.Node, value: fx.Node) -> fx.Node:
    rank = len(step.parent_shape)
    order = [dim % rank for dim in step.args[0]]
    return recorder.record_node(aten.permute.default, value, [order.index(dim) for dim in range(rank)])


def _insert_selected(recorder: NodeRecorder, step: ViewStep, parent: fx.Node, value: fx.Node) -> fx.Node:
    return recorder.record_node(aten.select_scatter.default, parent, value, *step.args, **step.kwargs)


def _insert_sliced(recorder: NodeRecorder, step: ViewStep, parent: fx.Node, value: fx.Node) -> fx.Node:
    if len(step.args) > 3 and step.args[3] != 1:
        raise poptorch_error("In-place modification of slices with step size other than 1 is not supported.")
    return recorder.record_node(aten.slice_scatter.default, parent, value, *step.args, **step.kwargs)


def _insert_diagonal(recorder: NodeRecorder, step: ViewStep, parent: fx.Node, value: fx.Node) -> fx.Node:
    return recorder.record_node(aten.diagonal_scatter.default, parent, value, *step.args, **step.kwargs)


def _insert_by_index(recorder: NodeRecorder, step: ViewStep, parent: fx.Node, value: fx.Node) -> fx.Node:
    """Any view at all: the view of an arange tells which elements it shows."""
    positions = torch.arange(math.prod(step.parent_shape), device="cpu").reshape(step.parent_shape)
    shown = step.target(positions, *step.args, **step.kwargs)
    shown = (shown if step.item is None else shown[step.item]).reshape(-1)
    if shown.unique().numel() != shown.numel():
        raise RuntimeError(
            "more than one element of the written-to tensor refers to a single memory location"
        )
    flat = recorder.record_node(aten.reshape.default, parent, [-1])
    index = recorder.constant(shown)
    values = recorder.record_node(aten.reshape.default, value, [-1])
    written = recorder.record_node(aten.scatter.src, flat, 0, index, values)
    return recorder.record_node(aten.reshape.default, written, list(step.parent_shape))


_INSERTIONS: dict[Any, Callable[[NodeRecorder, ViewStep, fx.Node, fx.Node], fx.Node]] = {
    aten.detach.default: _insert_whole,
    aten.reshape.default: _insert_reshaped,
    aten.unsqueeze.default: _insert_reshaped,
    aten.squeeze.default: _insert_reshaped,
    aten.squeeze.dim: _insert_reshaped,
    aten.squeeze.dims: _insert_reshaped,
    aten.transpose.int: _insert_transposed,
    aten.t.default: _insert_transposed,
    aten.permute.default: _insert_permuted,
    aten.select.int: _insert_selected,
    aten.slice.Tensor: _insert_sliced,
    aten.diagonal.default: _insert_diagonal,
}
