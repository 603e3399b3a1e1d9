"""From an operator of the graph to instructions on carriers: dtypes, rounding, subgraphs.

One micro-batch at a time; `batching.py` adds the leading dimension on top, `update.py` the replicas.  Which function
computes an operator is chosen in `selection.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import torch
from torch import Tensor, fx

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import Subgraph, mutated
from bert_ipu.simulator.runtime import exceptions, losses, operators
from bert_ipu.simulator.runtime.custom import CUSTOM
from bert_ipu.simulator.runtime.instructions import RUN, Code, Instruction, Name, generate, remove_unused
from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.numerics import Numerics
from bert_ipu.simulator.runtime.rounding import round_half, round_half_stochastic
from bert_ipu.simulator.runtime.selection import DRAWS, Call, Selector, all_half

aten = torch.ops.aten

Result = Union[Name, tuple[Name, ...]]


@dataclass
class Emitter:
    """Appends the instructions that compute operators; `carrier` maps a device dtype to the one that holds
    it."""

    code: Code
    numerics: Numerics
    device: torch.device
    kernels: Kernels | None
    carrier: Callable[[torch.dtype], torch.dtype]
    saved: dict[tuple[Any, Any], Name] = field(default_factory=dict)
    """The log-sum-exp of each (scores, labels), which the gradient of their cross-entropy reads again."""

    def __post_init__(self) -> None:
        self._selector = Selector(self.numerics, self.kernels)

    def operator(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Result:
        """Emit `node` with its operands replaced by names; the results have carriers' dtypes and are rounded."""
        if not self.numerics.traps or node.target in operators.UNINITIALISED:
            return self._operator(node, args, kwargs)
        seen = self.code.emit(exceptions.look, *args, *kwargs.values())
        results = self._operator(node, args, kwargs)
        self.code.emit(exceptions.check, seen, node.target, _label(node), results, pure=False)
        return results

    def _operator(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Result:
        fused = self._loss(node, args)
        if fused is not None:
            return fused
        function, args = self._call(node, [self.constant(value) for value in args])
        kwargs = {key: self.constant(value) for key, value in kwargs.items()}
        if self.device.type != "cpu" and (_makes_from_nothing(node) or _runs_on_host(node)):
            kwargs["device"] = self.device
        value = node.meta["val"]
        label = _label(node)
        pure = not (mutated(node) or getattr(node.target, "effect", False))
        if isinstance(value, Tensor):
            name = self.code.emit(function, *args, pure=pure, label=label, **kwargs)
            return self.settle(node, name, value, 0)
        names = self.code.emit_tuple(len(value), function, *args, pure=pure, label=label, **kwargs)
        # What nobody reads may be None when it runs, such as a norm's gradient of an input that wants none.
        read = {user.args[1] for user in node.users if user.target is operator.getitem}
        return tuple(
            self.settle(node, name, item, index) if isinstance(item, Tensor) and index in read else name
            for index, (name, item) in enumerate(zip(names, value))
        )

    def _loss(self, node: fx.Node, args: Sequence[Any]) -> Name | None:
        """Cross-entropy over rows, its gradient, and argmax over rows, by kernels where there are some."""
        if self.kernels is None:
            return None
        value: Any = node.meta["val"]
        if node.target is aten.cross_entropy_loss.default and _is_row_loss(node):
            loss, saved = self.code.emit_tuple(
                2, losses.cross_entropy_rows, *args[:2], self.kernels, _ignored(node), label=_label(node)
            )
            self.saved[args[0], args[1]] = saved
            return self.settle(node, loss, value, 0)
        if node.target is ops.cross_entropy_grad and (args[1], args[2]) in self.saved:
            saved = self.saved[args[1], args[2]]
            name = self.code.emit(
                losses.cross_entropy_rows_grad, *args[:3], saved, self.kernels, node.kwargs["ignore_index"]
            )
            return self.settle(node, name, value, 0)
        if node.target is aten.argmax.default and _is_last_dimension(node):
            return self.code.emit(losses.argmax_rows, args[0], self.kernels)
        return None

    def _call(self, node: fx.Node, args: list[Any]) -> Call:
        """What computes a node; loops and branches get their bodies, indices are as ATen wants them."""
        if node.target is ops.for_loop:
            return _loop(self.subroutine(args[0])), [RUN, *args[1:]]
        if node.target is ops.cond:
            return _branch(self.subroutine(args[1]), self.subroutine(args[2])), [RUN, args[0], *args[3:]]
        special = self._selector.special(node, args)
        if special is not None:
            return special
        for position in operators.LONG_ARGUMENTS.get(operators.operator_name(node.target), ()):
            if position < len(args) and args[position] is not None:
                args[position] = self.code.emit(operators.as_long, args[position])
        return operators.implementation(node.target), args

    def matmul(self, node: fx.Node, left: Name, right: Name) -> Name:
        """Emit a product of matrices, or of batches of them."""
        function, args = self._selector.matmul(node, [left, right])
        return self.code.emit(function, *args, label=_label(node))

    def constant(self, value: Any) -> Any:
        """A constant argument as the carriers have it: dtypes and devices replaced, also inside lists."""
        if isinstance(value, torch.dtype):
            return self.carrier(value)
        if isinstance(value, torch.device):
            return self.device
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            return type(value)(self.constant(item) for item in value)
        return list(value) if isinstance(value, torch.Size) else value

    def settle(self, node: fx.Node, name: Name, value: Tensor, index: int) -> Name:
        """Bring a result to its carrier's dtype and its rounding."""
        plain_name = operators.operator_name(node.target)
        if mutated(node) or (plain_name in operators.VIEWS):
            return name if not mutated(node) else self._round_variable(node, name, value)
        if not value.dtype.is_floating_point:
            widened = value.dtype == torch.int32 and plain_name not in operators.KEEPS_INT32
            return self.code.emit(Tensor.to, name, torch.int32) if widened else name
        if value.dtype != torch.float16:
            return name
        if self.carrier(torch.float16) == torch.bfloat16 and not all_half(node):
            return self.code.emit(Tensor.to, name, torch.bfloat16)
        if not self.numerics.rounds or plain_name in operators.EXACT:
            return name
        return self.round(name, node.meta.get("number", 0) + index, fresh=plain_name not in operators.CASTS)

    def _round_variable(self, node: fx.Node, name: Name, value: Tensor) -> Name:
        if (
            not self.numerics.rounds
            or value.dtype != torch.float16
            or node.target in (ops.assign, ops.accumulator_zero)
        ):
            return name
        return self.round(name, node.meta.get("number", 0), fresh=True, pure=False)

    def round(self, name: Name, number: int, fresh: bool, pure: bool = True) -> Name:
        """Round to fp16, in place where the value is nobody else's."""
        if not fresh:
            name = self.code.emit(torch.clone, name)
        if self.numerics.stochastic:
            self._producer(name).hoistable = False  # rounding writes into it again at each micro-batch
            return self.code.emit(
                round_half_stochastic, name, DRAWS, number, self.numerics.overflow, pure=pure
            )
        return self.code.emit(round_half, name, self.kernels, self.numerics.overflow, pure=pure)

    def _producer(self, name: Name) -> Instruction:
        return next(i for i in reversed(self.code.instructions) if name in i.results)

    def subroutine(self, body: Subgraph) -> Callable[..., tuple[Any, ...]]:
        """A function (run, *inputs) that runs the body of a loop or branch."""
        code = Code(f"b{body.name}" if body.name.isidentifier() else "body")
        inner = Emitter(code, self.numerics, self.device, self.kernels, self.carrier)
        parameters = {node: Name(f"a{index}") for index, node in enumerate(body.placeholders)}
        env: dict[fx.Node, Any] = dict(parameters)
        for node in body.graph.nodes:
            if node.op == "call_function":
                env[node] = inner.operator(node, *resolve(node, env))
        results = [env[node] for node in body.results]
        instructions = remove_unused(code.instructions, results)
        function, _ = generate("body", list(parameters.values()), instructions, results)
        return lambda run, *inputs: function(run, inputs)


def resolve(node: fx.Node, env: dict[fx.Node, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A node's arguments with nodes replaced by what `env` holds for them."""
    args = [_resolve(value, env) for value in node.args]
    if node.target is operator.getitem and isinstance(args[0], tuple):
        return args, {}
    return args, {key: _resolve(value, env) for key, value in node.kwargs.items()}


def _resolve(value: Any, env: dict[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        return env[value]
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return (
            type(value)(_resolve(item, env) for item in value)
            if type(value) in (list, tuple)
            else tuple(_resolve(item, env) for item in value)
        )
    if isinstance(value, dict):
        return {key: _resolve(item, env) for key, item in value.items()}
    return value


def _loop(body: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    def run_loop(run: Any, count: int, *inputs: Tensor, carried: int) -> tuple[Any, ...]:
        values = inputs
        for _ in range(count):
            values = (*body(run, *values)[:carried], *values[carried:])
        return values[:carried]

    return run_loop


def _branch(then: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    def run_branch(run: Any, predicate: Tensor, *inputs: Tensor) -> tuple[Any, ...]:
        return tuple((then if bool(predicate) else other)(run, *inputs))

    return run_branch


def is_rounded(node: fx.Node) -> bool:
    """Whether an operator has results that numerics "ipu" round to fp16."""
    value = node.meta["val"]
    leaves = value if isinstance(value, (tuple, list)) else (value,)
    halves = any(isinstance(leaf, Tensor) and leaf.dtype == torch.float16 for leaf in leaves)
    return halves and operators.operator_name(node.target) not in operators.EXACT


def _is_row_loss(node: fx.Node) -> bool:
    """cross_entropy_loss of [rows, classes] without class weights, reduction and smoothing."""
    args = dict(zip(("x", "target", "weight", "reduction", "ignored", "smooth"), node.args))
    args |= {"weight": None, "smooth": 0.0, "reduction": 1} | args | dict(node.kwargs)
    logits: Any = node.args[0]
    rows = logits.meta["val"].dim() == 2
    return bool(rows and args["reduction"] == 0 and args["weight"] is None and not args["smooth"])


def _ignored(node: fx.Node) -> Any:
    return node.args[4] if len(node.args) > 4 else node.kwargs.get("ignore_index", -100)


def _is_last_dimension(node: fx.Node) -> bool:
    """argmax over the last of several dimensions, which it removes, of floating-point values."""
    value: Any = node.args[0].meta["val"]  # type: ignore[union-attr]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    last = dim is not None and dim % max(value.dim(), 1) == value.dim() - 1
    return last and not keeps and value.dim() > 1 and value.dtype in (torch.float16, torch.float32)


def _label(node: fx.Node) -> str:
    return " ".join(str(node.meta[key]) for key in ("module", "source") if node.meta.get(key))


def _runs_on_host(node: fx.Node) -> bool:
    """Whether an operator's results are copied to the device once they are made."""
    return node.target is ops.cpu_op or node.target in CUSTOM


def _makes_from_nothing(node: fx.Node) -> bool:
    """Whether an operator is given no tensor to say where its result shall be."""
    schema = getattr(node.target, "_schema", None)
    takes_device = schema is not None and any(argument.name == "device" for argument in schema.arguments)
    return takes_device and not node.all_input_nodes
