"""What the forward wrote to variables, assigned at the end of a micro-batch.

Everything that a micro-batch computes from an old value comes before the assignment.  What only *shows* the old
value, such as a transpose of it, would show the new one afterwards, so it is copied where it is still wanted.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import Program, is_outer

aten = torch.ops.aten

_PASSING_ON = frozenset({operator.getitem, ops.nop, ops.identity_loss, aten._to_copy.default})
"""Operators besides views that may hand on the memory they are given."""


def assign_at_end(
    program: Program, writes: Iterable[tuple[str, fx.Node]], gradients: Mapping[str, fx.Node]
) -> dict[str, fx.Node]:
    """Assign each new value to its variable; returns the gradients, which the update reads afterwards."""
    assigned = {program.placeholder_of(name): value for name, value in writes}
    copies: dict[fx.Node, fx.Node] = {}

    def kept(node: fx.Node) -> fx.Node:
        """A value as it was before the assignments."""
        if _memory_of(node) not in assigned:
            return node
        if node not in copies:
            copies[node] = program.emit(
                aten.clone.default, node, meta={"pass": "forward", "context": "normal"}
            )
        return copies[node]

    with program.before(program.output):
        results = [kept(node) for node in program.results()]
        gradients = {name: kept(node) for name, node in gradients.items()}
        values = {variable: kept(value) for variable, value in assigned.items()}
        for variable, value in values.items():
            assert variable is not None, "what was written is a variable of the program"
            program.emit(ops.assign, variable, value, origin=value)
    program.set_results(results)
    return gradients


def let_update_read_assigned(program: Program) -> None:
    """Update the weights that a forward assigned to from their new values."""
    for node in program.operators():
        if node.target is ops.assign and node.meta.get("pass") != "optimizer":
            old: Any = node.args[0]
            old.replace_all_uses_with(node, delete_user_cb=lambda user: user.meta.get("pass") == "optimizer")


def run_updates_last(program: Program) -> None:
    """Move what patterns gave to the weight update behind what the micro-batches compute."""
    for node in program.operators():
        if is_outer(node):
            program.move_to_end(node)


def _memory_of(node: fx.Node) -> fx.Node:
    """The node in whose memory a value may lie: itself, unless it is a view or handed on."""
    while node.op == "call_function" and (node.target in _PASSING_ON or _is_view(node.target)):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _is_view(target: Any) -> bool:
    if not isinstance(target, OpOverload):
        return False
    lent = target._schema.arguments[0].alias_info if target._schema.arguments else None
    return lent is not None and not lent.is_write
