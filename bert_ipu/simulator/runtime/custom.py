"""Custom operators in C++: the graph's `custom_op` and `custom_op_grad` nodes as functions on carriers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.custom_ops import CompiledOp, TensorSpec
from bert_ipu.simulator.graph import ops


def custom_op_function(node: fx.Node) -> Callable[..., tuple[Tensor, ...]]:
    """What computes a custom operator's node; fp16 carriers become fp16 for the operator's own code."""
    if node.target is ops.custom_op:
        compiled = _compile(node)
    else:
        forward = node.meta["forward_node"]
        origin = forward[0] if isinstance(forward, tuple) else forward
        compiled = _compile(origin).gradient(node.kwargs["live_outputs"])[node.kwargs["index"]]  # type: ignore[arg-type, index]
    return _caller(compiled.run, [value.dtype for value in _values(node.args)])


def _compile(node: fx.Node) -> CompiledOp:
    specs = [TensorSpec(tuple(value.shape), value.dtype) for value in _values(node.args)]
    options: Any = node.kwargs
    return CompiledOp(options["domain"], options["name"], options["version"], specs, options["attributes"])


def _values(args: Sequence[Any]) -> list[Tensor]:
    return [arg.meta["val"] for arg in args if isinstance(arg, fx.Node)]


def _caller(
    run: Callable[..., list[Tensor]], dtypes: Sequence[torch.dtype]
) -> Callable[..., tuple[Tensor, ...]]:
    def call(*inputs: Tensor, **_: Any) -> tuple[Tensor, ...]:
        carried = next((x.dtype for x, dtype in zip(inputs, dtypes) if x.dtype != dtype), torch.float32)
        results = run([x.to(device="cpu", dtype=dtype) for x, dtype in zip(inputs, dtypes)])
        device = inputs[0].device if inputs else torch.device("cpu")
        return tuple(
            y.to(device=device, dtype=carried if y.dtype == torch.float16 else y.dtype) for y in results
        )

    return call
