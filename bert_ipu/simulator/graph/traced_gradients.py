"""The gradient of an operator that has no rule: torch's autograd over that operator alone, traced.

The trace computes the operator again; where the graph already has a value (the operator's own result,
or that of an equal node), the gradient reads it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph.autodiff import Backward
from bert_ipu.simulator.graph.ir import IpuOp, widen
from bert_ipu.simulator.graph.normalise import is_random

aten = torch.ops.aten

_HOST_OPTIONS = ("device", "pin_memory", "layout")
_RESHAPES = (aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)


def traced_rule(b: Backward, node: fx.Node, grad: Any) -> Iterator[tuple[fx.Node, fx.Node]]:
    """A gradient rule for any differentiable, deterministic ATen operator."""
    if isinstance(node.target, IpuOp) or is_random(node.target):  # type: ignore[arg-type]
        raise poptorch_error(f"{node.target} has no gradient ({node.meta.get('source')}).")
    operands = list(dict.fromkeys(node.all_input_nodes))
    wanted = [
        operand for operand in operands if b.needs(operand) and operand.meta["val"].dtype.is_floating_point
    ]
    grads = grad if isinstance(grad, list) else [grad]
    upstream = {index: found for index, found in enumerate(grads) if found is not None}
    try:
        traced = _trace(b, node, operands, wanted, upstream)
    except RuntimeError as error:
        raise poptorch_error(
            f"The gradient of {node.target} ({node.meta.get('source')}) cannot be compiled, as torch's autograd cannot "
            f"be traced over it: {error}. Write it in terms of other operators, or in C++ for `poptorch.custom_op`."
        ) from error
    found = _graft(b, node, traced, [*operands, *upstream.values()])
    for operand, gradient in zip(wanted, found):
        if gradient is not None:
            yield operand, gradient


def _trace(
    b: Backward,
    node: fx.Node,
    operands: list[fx.Node],
    wanted: list[fx.Node],
    upstream: dict[int, fx.Node],
) -> fx.GraphModule:
    """The wanted operands' gradients, as a graph of all operands and of the gradients `upstream` of the results."""

    def gradients(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = dict(zip(operands, values))

        def results(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = {**inputs, **dict(zip(wanted, leaves))}
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: given[n])
            made = node.target(*args, **kwargs)  # type: ignore[operator]
            return (made,) if isinstance(made, torch.Tensor) else tuple(made[i] for i in upstream)

        pull_back = torch.func.vjp(results, *(inputs[operand] for operand in wanted))[1]
        return pull_back(tuple(values[len(operands) :]))  # type: ignore[no-any-return]

    with b.program.fake_mode:
        values = [widen(n.meta["val"]).clone() for n in operands]
        values += [n.meta["val"].clone() for n in upstream.values()]
        with torch.enable_grad():
            return make_fx(
                torch.func.functionalize(gradients), tracing_mode="real", _allow_non_fake_inputs=True
            )(*values)


def _graft(
    b: Backward, node: fx.Node, traced: fx.GraphModule, inputs: list[fx.Node]
) -> list[Optional[fx.Node]]:
    """Copy the traced nodes into the program; equal nodes of the forward are read instead."""
    placed: dict[fx.Node, Any] = {}
    given = iter(inputs)
    traced.graph.eliminate_dead_code()
    for inner in traced.graph.nodes:
        if inner.op == "placeholder":
            placed[inner] = next(given)
        elif inner.op == "output":
            return [None if out is None else placed[out] for out in inner.args[0]]
        elif inner.op == "get_attr":
            raise poptorch_error(
                f"{node.target} has a gradient with a constant in it ({node.meta.get('source')})."
            )
        else:
            placed[inner] = _copy(b, node, inner, placed)
    raise AssertionError("a traced graph ends in an output")


def _copy(b: Backward, node: fx.Node, inner: fx.Node, placed: dict[fx.Node, Any]) -> fx.Node:
    copied: Any = fx.map_arg((inner.args, inner.kwargs), lambda n: placed[n])
    args, kwargs = copied[0], {key: value for key, value in copied[1].items() if key not in _HOST_OPTIONS}
    if inner.target in (aten.detach.default, aten.alias.default, aten.lift_fresh.default):
        return args[0]  # type: ignore[no-any-return]
    if inner.target in _RESHAPES:
        return b.reshape(args[0], list(args[1]))
    if inner.target is aten._efficientzerotensor.default:  # torch's zeros without memory
        return b.emit(aten.zeros.default, *args, dtype=inner.meta["val"].dtype)
    existing = _existing(node, inner.target, args, kwargs)
    if existing is not None:
        return existing
    if inner.target is operator.getitem:
        return b.emit(operator.getitem, *args)
    return b.emit(inner.target, *args, **kwargs)


def _existing(node: fx.Node, target: Any, args: Any, kwargs: dict[str, Any]) -> Optional[fx.Node]:
    """The forward node, or an item of it, that already has this value."""
    if target == node.target and tuple(args) == tuple(node.args) and not kwargs:
        return node
    if target is operator.getitem and args[0] is node:
        return next((u for u in node.users if u.target is target and u.args == tuple(args)), None)
    return None
