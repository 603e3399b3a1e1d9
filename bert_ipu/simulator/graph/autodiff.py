"""Autodiff: the backward pass of a forward graph, one gradient rule per operator.

A reverse sweep over the (edited) forward.  Rules (`graph/gradients.py`) emit named nodes; an operator
without one is differentiated by tracing torch's autograd over it alone (`graph/traced_gradients.py`).
Backward nodes run where their forward node does.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

import torch
from torch import fx

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import PLACEMENT, Program, Role

aten = torch.ops.aten

GradientRule = Callable[["Backward", fx.Node, Any], Iterator[tuple[fx.Node, fx.Node]]]
"""(builder, forward node, gradient of its result or tuple of them) -> pairs (operand, its gradient)."""

_STOPPING = frozenset(
    {aten.detach.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default}
)
"""Operators that no gradient goes through."""

_INHERITED = (*PLACEMENT, "module", "source", "block", "partials")
"""Keys of `node.meta` that backward nodes take from their forward node."""


def differentiate(
    program: Program,
    loss: fx.Node,
    seed: Callable[[Backward], fx.Node],
    rule_of: Callable[[fx.Node], GradientRule],
    wide_losses: bool = False,
) -> dict[str, fx.Node]:
    """Append the backward pass to a program.

    `seed` emits the gradient of the loss: 1, times the loss scaling. With `wide_losses` it may be float32 where the
    loss is float16, and so may the gradients of the terms that the loss is a sum of (PopART's `EnsureFp32LossScale`).
    Returns the gradient of every parameter that the loss depends on, by the parameter's name.
    """
    needing = _nodes_requiring_grad(program)
    if loss not in needing:
        return {}
    backward = Backward(program, needing, wide_losses)
    with program.before(program.output):
        backward.run(rule_of, loss, seed(backward))
        parameters = {node.meta["variable"]: node for node in program.placeholders() if node in needing}
        gradients = {name: backward.gradient(node) for name, node in parameters.items()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def _nodes_requiring_grad(program: Program) -> set[fx.Node]:
    """The nodes that depend, differentiably, on a variable that requires a gradient."""
    needing: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            variable = program.variables.get(node.meta.get("variable", ""))
            if variable is not None and variable.requires_grad and variable.role is Role.PARAMETER:
                needing.add(node)
        elif (
            node.op == "call_function"
            and any(n in needing for n in node.all_input_nodes)
            and _differentiable(node)
        ):
            needing.add(node)
    return needing


def _differentiable(node: fx.Node) -> bool:
    """Whether a gradient goes from a node's result to its operands."""
    drawn = "random" in node.meta and node.target not in (aten.dropout.default, ops.custom_op)
    no_grad = node.meta.get("no_grad") and node.target is not ops.unrecorded_write
    if no_grad or node.target in _STOPPING or drawn:
        return False
    value = node.meta["val"]
    leaves = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(leaf, torch.Tensor) and leaf.dtype.is_floating_point for leaf in leaves)


class Backward:
    """Emits the backward of one program; what gradient rules build with."""

    def __init__(self, program: Program, needing: set[fx.Node], wide_losses: bool) -> None:
        self.program = program
        self._wide_losses = wide_losses
        self._needing = needing
        self._forward: Optional[fx.Node] = None
        """The node whose gradient is being emitted."""
        self._gradients: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        """What readers of each node have contributed to its gradient, which is the sum."""

    # -- the sweep -------------------------------------------------------------------------------

    def run(self, rule_of: Callable[[fx.Node], GradientRule], loss: fx.Node, seed: fx.Node) -> None:
        """Sweep backwards from `loss`, whose gradient is `seed`."""
        self._gradients[loss].append(seed)
        order = [node for node in self.program.operators() if node.meta.get("pass") == "forward"]
        for node in reversed(order):
            if node in self._needing and self._reached(node):
                self._differentiate(node, rule_of(node))

    def _reached(self, node: fx.Node) -> bool:
        return bool(self._gradients.get(node)) or any(self._gradients.get(item) for item in _items(node))

    def _differentiate(self, node: fx.Node, rule: GradientRule) -> None:
        if node.target is operator.getitem:
            return  # Its gradient is read by the rule of the node that has the tuple.
        gradient = self._of_result(node)
        self._forward = node
        for operand, found in rule(self, node, gradient):
            self._gradients[operand].append(self.fit(found, operand))
        self._forward = None

    def _of_result(self, node: fx.Node) -> Any:
        """The gradient of a node's result; of a tuple a list, with None for entries that the loss does not need."""
        value = node.meta["val"]
        if not isinstance(value, (tuple, list)):
            return self.gradient(node)
        gradients: list[Optional[fx.Node]] = [None] * len(value)
        for item in _items(node):
            found = self.gradient(item)
            if found is not None:
                index: Any = item.args[1]
                earlier = gradients[index]
                gradients[index] = found if earlier is None else self.emit(aten.add.Tensor, earlier, found)
        return gradients

    def gradient(self, node: fx.Node) -> Optional[fx.Node]:
        """The sum of the gradients of a node; None where the loss does not depend on it."""
        parts = self._gradients.get(node)
        if not parts:
            return None
        self._forward, outer = node, self._forward
        while len(parts) > 1:
            parts[:2] = [self.emit(aten.add.Tensor, parts[0], parts[1])]
        self._forward = outer
        return parts[0]

    # -- what rules are made of ------------------------------------------------------------------

    def needs(self, operand: Any) -> bool:
        """Whether an operand of the current node wants a gradient."""
        return isinstance(operand, fx.Node) and operand in self._needing

    def emit(self, target: Any, *args: Any, operand: Optional[int] = None, **kwargs: Any) -> fx.Node:
        """Append a node of the current forward node's gradient, for its `operand`-th argument."""
        meta: dict[str, Any] = {"pass": "backward", "context": "normal"}
        forward = self._forward
        if forward is not None:
            meta.update({key: forward.meta[key] for key in _INHERITED if key in forward.meta})
            meta["forward_node"] = (forward, operand)
        return self.program.emit(target, *args, meta=meta, **kwargs)

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """One entry of a node's tuple."""
        found = next((user for user in _items(node) if user.args[1] == index), None)
        return found if found is not None else self.emit(operator.getitem, node, index)

    def fit(self, node: fx.Node, operand: fx.Node) -> fx.Node:
        """A gradient in the shape and dtype of its operand; that of a loss may stay float32."""
        value = operand.meta["val"]
        node = self.sum_to(node, tuple(value.shape))
        if self._wide_losses and operand.op == "call_function" and not value.shape:
            return node
        return self.cast(node, value.dtype)

    def sum_to(self, node: fx.Node, shape: Sequence[int]) -> fx.Node:
        """Undo broadcasting: sum over the dimensions that `shape` lacks or has as 1."""
        have = tuple(node.meta["val"].shape)
        if have == tuple(shape):
            return node
        lead = len(have) - len(shape)
        dims = [
            *range(lead),
            *(d + lead for d, size in enumerate(shape) if size == 1 and have[d + lead] != 1),
        ]
        if dims:
            node = self.emit(aten.sum.dim_IntList, node, dims, True)
        return self.reshape(node, shape)

    def reshape(self, node: fx.Node, shape: Sequence[int]) -> fx.Node:
        if tuple(node.meta["val"].shape) == tuple(shape):
            return node
        return self.emit(aten.reshape.default, node, list(shape))

    def transpose(self, node: fx.Node) -> fx.Node:
        """The last two dimensions exchanged."""
        return self.emit(aten.transpose.int, node, -2, -1)

    def cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        return (
            node if node.meta["val"].dtype == dtype else self.emit(aten._to_copy.default, node, dtype=dtype)
        )


def _items(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if user.target is operator.getitem]
