"""A plain interpreter of compiled programs, for tests of the compiler that must not lean on the runtime."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from bert_ipu.simulator.compiler import compile_program
from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.dtypes import INT64_INDEX
from bert_ipu.simulator.graph.ir import Program, widen
from bert_ipu.simulator.graph.request import Anchor, CompileRequest


def _identity_loss(x: Tensor, *, reduction: str) -> Tensor:
    return {"none": lambda: x, "sum": x.sum, "mean": x.mean}[reduction]()


def _cross_entropy_grad(
    grad: Tensor, logits: Tensor, target: Tensor, *, reduction: int, ignore_index: int
) -> Tensor:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        name = ("none", "mean", "sum")[reduction]
        loss = F.cross_entropy(leaf, target.long(), reduction=name, ignore_index=ignore_index)
        return torch.autograd.grad(loss, leaf, grad)[0]


IPU_OPS: dict[str, Callable[..., Any]] = {
    ops.identity_loss.name: _identity_loss,
    ops.cross_entropy_grad.name: _cross_entropy_grad,
    ops.nop.name: lambda x: x,
    ops.assign.name: lambda variable, value: variable.copy_(value),
}


def run(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The program's outputs for one micro-batch; variables that it assigns are changed in place."""
    values: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = _placeholder(program, node, inputs)
        elif node.op == "call_function":
            values[node] = _call(node, *fx.map_arg((node.args, node.kwargs), lambda n: values[n]))
    return [values[node] for node in program.results()]


def _placeholder(program: Program, node: fx.Node, inputs: Sequence[Tensor]) -> Tensor:
    if "input" in node.meta:
        return inputs[node.meta["input"]].to(node.meta["val"].dtype)
    tensor = program.variables[node.meta["variable"]].tensor
    assert tensor is not None
    return tensor.detach().to(node.meta["val"].dtype)


def _call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if node.target is operator.getitem:
        return args[0][args[1]]
    if node.target in INT64_INDEX:
        args = tuple(widen(argument) for argument in args)
    target = IPU_OPS[node.target.name] if isinstance(node.target, ops.IpuOp) else node.target
    result = target(*args, **kwargs)
    value = node.meta["val"]
    if isinstance(result, Tensor):
        assert result.shape == value.shape, f"{node} is inferred as {value.shape}, computed as {result.shape}"
        return result.to(value.dtype)
    return result


def gradients(module: torch.nn.Module, *args: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Results and parameter gradients of a training module, by compiling and interpreting it."""
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    anchors = tuple(Anchor(name, f"Gradient___{name}") for name in names)
    program = compile_program(CompileRequest(module.forward, module, args, training=True, anchors=anchors))
    outputs = run(program, [a for a in args if isinstance(a, Tensor)])
    results = len(outputs) - len(names)
    return outputs[:results], dict(zip(names, outputs[results:]))
