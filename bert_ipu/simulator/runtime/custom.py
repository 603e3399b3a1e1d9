"""Custom operators in C++ as functions on carriers: the user's own, their gradients, and what patterns put in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.custom_ops import CompiledOp, TensorSpec
from bert_ipu.simulator.graph import ops

CUSTOM = frozenset({ops.custom_op, ops.custom_op_grad, ops.pattern_op, ops.pattern_update})


def custom_op_function(node: fx.Node) -> Callable[..., Any]:
    """What computes a custom operator's node; fp16 carriers become fp16 for the operator's own code."""
    compiled: CompiledOp
    if node.target is ops.custom_op:
        compiled = _compile(node)
    elif node.target is ops.custom_op_grad:
        forward = node.meta["forward_node"]
        origin = forward[0] if isinstance(forward, tuple) else forward
        compiled = _compile(origin).gradient(node.kwargs["live_outputs"])[node.kwargs["index"]]  # type: ignore[arg-type, index]
    else:
        compiled = node.kwargs["compiled"]  # type: ignore[assignment]
    dtypes = [value.dtype for value in _values(node.args)]
    return (_updater if node.target is ops.pattern_update else _caller)(compiled, dtypes)


def _compile(node: fx.Node) -> CompiledOp:
    specs = [TensorSpec(tuple(value.shape), value.dtype) for value in _values(node.args)]
    options: Any = node.kwargs
    return CompiledOp(options["domain"], options["name"], options["version"], specs, options["attributes"])


def _values(args: Sequence[Any]) -> list[Tensor]:
    return [arg.meta["val"] for arg in args if isinstance(arg, fx.Node)]


def _caller(compiled: CompiledOp, dtypes: Sequence[torch.dtype]) -> Callable[..., tuple[Tensor, ...]]:
    def call(*inputs: Tensor, **_: Any) -> tuple[Tensor, ...]:
        half = next((x.dtype for x, dtype in zip(inputs, dtypes) if dtype == torch.float16), torch.float32)
        results = compiled.run(_admitted(inputs, dtypes))
        device = inputs[0].device if inputs else torch.device("cpu")
        return tuple(
            y.to(device=device, dtype=half if y.dtype == torch.float16 else y.dtype) for y in results
        )

    return call


def _updater(compiled: CompiledOp, dtypes: Sequence[torch.dtype]) -> Callable[..., Tensor]:
    """Changes the first carrier: its own memory where it has the device's dtype, else by a copy of it."""

    def update(variable: Tensor, *inputs: Tensor, **_: Any) -> Tensor:
        admitted = _admitted((variable, *inputs), dtypes)
        own = admitted[0].data_ptr() == variable.data_ptr() and admitted[0].is_contiguous()
        if own:
            compiled.run_in_place(admitted)
        else:
            variable.copy_(compiled.run(admitted)[0])
        return variable

    return update


def _admitted(carriers: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    return [x.to(device="cpu", dtype=dtype) for x, dtype in zip(carriers, dtypes)]
