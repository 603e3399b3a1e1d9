"""Loops and branches: their bodies are captured once, as subgraphs.

What a body reads of the graph around it becomes an input of the operator.  PopTorch has both in
inference only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.capture import Capture
from bert_ipu.simulator.graph.captured_tensor import CapturedTensor
from bert_ipu.simulator.graph.ir import IpuOp, Subgraph
from bert_ipu.simulator.graph.recorder import GraphBeingBuilt

Body = Callable[..., Sequence[torch.Tensor]]


def for_loop(
    capture: Capture, count: int, body: Body, inputs: Sequence[torch.Tensor]
) -> list[CapturedTensor]:
    """Record `body` run `count` times, each time on its last results, the first time on `inputs`."""
    _check_inference(capture, "for_loop")
    given = _nodes(capture, inputs)
    built = GraphBeingBuilt(fx.Graph())
    placeholders = [built.placeholder(node) for node in given]
    results = _capture_body(capture, built, body, placeholders, inputs)
    shapes = [(tuple(r.shape), r.dtype) for r in results]
    if shapes != [(tuple(i.shape), i.dtype) for i in inputs]:
        raise poptorch_error(
            f"The body of poptorch.for_loop must return tensors like its inputs, but returns {shapes} "
            f"of inputs {[(tuple(i.shape), i.dtype) for i in inputs]}."
        )
    outer = [*given, *built.imports]
    return _emit(capture, results, ops.for_loop, _subgraph(built, "body"), count, *outer, carried=len(given))


def cond(
    capture: Capture,
    condition: torch.Tensor,
    then: Body,
    then_inputs: Sequence[torch.Tensor],
    other: Body,
    other_inputs: Sequence[torch.Tensor],
) -> list[CapturedTensor]:
    """Record a choice, by the value of `condition`, between the results of `then` and those of `other`."""
    _check_inference(capture, "cond")
    branches = [GraphBeingBuilt(fx.Graph()), GraphBeingBuilt(fx.Graph())]
    results = []
    for built, body, inputs in zip(branches, (then, other), (then_inputs, other_inputs)):
        placeholders = [built.imported(node) for node in _nodes(capture, inputs)]
        results.append(_capture_body(capture, built, body, placeholders, inputs))
    shapes = [[tuple(r.shape) for r in branch] for branch in results]
    if shapes[0] != shapes[1]:
        raise poptorch_error(
            f"The branches of poptorch.cond return different shapes: {shapes[0]} and {shapes[1]}."
        )
    outer = list(dict.fromkeys(node for built in branches for node in built.imports))
    for built in branches:
        _order_placeholders(built, outer)
    (predicate,) = _nodes(capture, [condition])
    graphs = (_subgraph(branches[0], "then"), _subgraph(branches[1], "else"))
    return _emit(capture, results[0], ops.cond, predicate, *graphs, *outer)


def _check_inference(capture: Capture, name: str) -> None:
    if capture.program.training:
        raise poptorch_error(f"poptorch.{name}() is only supported in inference.")


def _nodes(capture: Capture, tensors: Sequence[torch.Tensor]) -> list[fx.Node]:
    found = []
    for tensor in tensors:
        node = capture.node_of(tensor)
        found.append(capture.recorder.visible(capture.recorder.constant(tensor) if node is None else node))
    return found


def _capture_body(
    capture: Capture,
    built: GraphBeingBuilt,
    body: Body,
    placeholders: Sequence[fx.Node],
    inputs: Sequence[torch.Tensor],
) -> list[CapturedTensor]:
    """Call a body on copies of its inputs, recording into its own graph."""
    given = [capture.new_tensor(node, tensor.dtype) for node, tensor in zip(placeholders, inputs)]
    capture.recorder.graphs.append(built)
    try:
        results = list(body(*given))
        nodes = _nodes(capture, results)
    finally:
        capture.recorder.graphs.pop()
    built.graph.output(tuple(nodes))
    return [r if isinstance(r, CapturedTensor) else capture.lift(r) for r in results]


def _order_placeholders(built: GraphBeingBuilt, outer: Sequence[fx.Node]) -> None:
    """Give a branch one placeholder for each input of the operator, in the inputs' order."""
    wanted = [built.imported(node) for node in outer]
    for placeholder in reversed(wanted):
        built.graph._root.append(placeholder)


def _subgraph(built: GraphBeingBuilt, name: str) -> Subgraph:
    built.graph.lint()
    return Subgraph(name, built.graph)


def _emit(
    capture: Capture, like: Sequence[CapturedTensor], op: IpuOp, *args: object, **options: object
) -> list[CapturedTensor]:
    results = capture.emit(op, *args, host_dtypes=tuple(tensor.dtype for tensor in like), **options)
    return list(results)
