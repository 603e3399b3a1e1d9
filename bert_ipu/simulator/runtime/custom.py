"""Custom operators in C++ as functions on carriers: the user's own, their gradients, and what patterns put in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.custom_ops import CompiledOp, CustomOpError, TensorSpec
from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.runtime.random import Draws, random_words

logger = logging.getLogger("poptorch::python")
"""PopTorch's own, so that its users meet warnings where they look for them."""

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
    compiled.record()
    dtypes = [value.dtype for value in _values(node.args)]
    if node.target is ops.pattern_update:
        return _updater(compiled, dtypes)
    call = _caller(compiled, dtypes)
    return _seeded(call, _number(node)) if compiled.requires_random_seed else call


def _number(node: fx.Node) -> int:
    """The number of the operator's draws; a gradient draws what its forward drew."""
    forward = node.meta.get("forward_node", node)
    return int((forward[0] if isinstance(forward, tuple) else forward).meta.get("random", 0))


def _seeded(call: Callable[..., tuple[Tensor, ...]], number: int) -> Callable[..., tuple[Tensor, ...]]:
    """A call that takes the micro-batch's draws first, and makes the operator's seed of them."""

    def seeded(draws: Draws, *inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
        low, high = random_words(draws, number, 2)[0].tolist()
        return call(*inputs, seed=low | high << 32, **options)

    seeded.takes_draws = True  # type: ignore[attr-defined]
    return seeded


def _compile(node: fx.Node) -> CompiledOp:
    specs = [TensorSpec(tuple(value.shape), value.dtype) for value in _values(node.args)]
    options: Any = node.kwargs
    compiled = CompiledOp(
        options["domain"], options["name"], options["version"], specs, options["attributes"]
    )
    if node.target is ops.custom_op:
        _check_outputs(compiled, node, options["outputs"])
    return compiled


def _check_outputs(compiled: CompiledOp, node: fx.Node, declared: ops.Declared) -> None:
    """Compare example_outputs with setup(): an error where an operator relied on them, else a warning.

    Outputs that are only returned come back as setup() says, as in PopTorch, whose own tests rely on that.
    """
    made = tuple((tuple(spec.shape), spec.dtype) for spec in compiled.output_specs)
    advice = "give example_outputs of the shapes and dtypes that the op has"
    if len(made) != len(declared):
        raise CustomOpError(
            f"{compiled.title}: {len(declared)} example_outputs were given, setup() makes {len(made)} outputs "
            f"({', '.join(map(_shown, made))}); {advice}"
        )
    for index, (example, real) in enumerate(zip(declared, made)):
        if example == real:
            continue
        message = (
            f"{compiled.title}: example_outputs[{index}] is {_shown(example)}, setup() says {_shown(real)}; "
            f"{advice}"
        )
        if _relied_on(node, index):
            raise CustomOpError(message)
        logger.warning("%s. It is returned as setup() says.", message)


def _relied_on(node: fx.Node, index: int) -> bool:
    """Whether an operator, and not only the user, reads an output."""
    items = [item for item in node.users if item.args[1] == index]
    return any(reader.op == "call_function" for item in items for reader in item.users)


def _shown(output: tuple[tuple[int, ...], torch.dtype]) -> str:
    shape, dtype = output
    return f"{str(dtype).split('.')[-1]} {list(shape)}"


def _values(args: Sequence[Any]) -> list[Tensor]:
    return [arg.meta["val"] for arg in args if isinstance(arg, fx.Node)]


def _caller(compiled: CompiledOp, dtypes: Sequence[torch.dtype]) -> Callable[..., tuple[Tensor, ...]]:
    def call(*inputs: Tensor, seed: int = 0, device: Any = "cpu", **_: Any) -> tuple[Tensor, ...]:
        half = next((x.dtype for x, dtype in zip(inputs, dtypes) if dtype == torch.float16), torch.float32)
        results = compiled.run(_admitted(inputs, dtypes), seed=seed)
        return tuple(
            y.to(device=device, dtype=half if y.dtype == torch.float16 else y.dtype) for y in results
        )

    return call


def _updater(compiled: CompiledOp, dtypes: Sequence[torch.dtype]) -> Callable[..., Tensor]:
    """Changes the first carrier: its own memory where it has the device's dtype, else by a copy of it."""

    def change_variable(variable: Tensor, *inputs: Tensor, **_: Any) -> Tensor:
        admitted = _admitted((variable, *inputs), dtypes)
        if admitted[0] is variable and variable.is_contiguous():
            compiled.run_in_place(admitted)
        else:
            variable.copy_(compiled.run(admitted)[0])
        return variable

    return change_variable


def _admitted(carriers: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    return [x.to(device="cpu", dtype=dtype) for x, dtype in zip(carriers, dtypes)]
