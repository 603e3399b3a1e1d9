"""The gradient of a custom operator: its own gradient operators, wired as PopART wires them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, Optional

from torch import fx

from bert_ipu.simulator.custom_ops import CompiledOp, TensorSpec
from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.autodiff import Backward


def custom_op_rule(
    b: Backward, node: fx.Node, grads: list[Optional[fx.Node]]
) -> Iterator[tuple[fx.Node, fx.Node]]:
    """A gradient rule; an operator without gradient operators stops the gradient.

    Raises CustomOpError where the operator is not registered, or its `setup()` or `getGradOps()` fail.
    """
    options: Any = node.kwargs
    operands: Any = node.args
    specs = [TensorSpec(tuple(x.meta["val"].shape), x.meta["val"].dtype) for x in operands]
    compiled = CompiledOp(
        options["domain"], options["name"], options["version"], specs, options["attributes"]
    )
    live = tuple(index for index, grad in enumerate(grads) if grad is not None)
    for index, gradient in enumerate(compiled.gradient(live)):
        inputs = [_source(b, node, grads, source.kind, source.position) for source in gradient.sources]
        made = b.emit(
            ops.custom_op_grad,
            *inputs,
            name=options["name"],
            domain=options["domain"],
            version=options["version"],
            attributes=options["attributes"],
            outputs=tuple((tuple(spec.shape), spec.dtype) for spec in gradient.output_specs),
            live_outputs=live,
            index=index,
        )
        for position, target in gradient.targets.items():
            if b.needs(operands[target]):
                yield operands[target], b.emit(operator.getitem, made, position, operand=target)


def _source(
    b: Backward, node: fx.Node, grads: list[Optional[fx.Node]], kind: str, position: int
) -> Optional[fx.Node]:
    if kind == "in":
        return node.args[position]  # type: ignore[return-value]
    return grads[position] if kind == "grad_out" else b.item(node, position)
