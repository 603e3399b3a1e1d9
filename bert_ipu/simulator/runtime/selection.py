"""Which function computes a node: its operator's own, or another one for its draws, its numerics or the kernels.

A choice looks at a node and the name of its operator. It returns a function with its arguments, or None where it does
not apply; of `_CHOICES`, the first one that does counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.runtime import (
    depth_division,
    half_convolutions,
    half_partials,
    operators,
    optimizer_ops,
    products,
)
from bert_ipu.simulator.runtime.custom import CUSTOM, custom_op_function
from bert_ipu.simulator.runtime.half_partials import HalfPartials
from bert_ipu.simulator.runtime.instructions import RUN, Name
from bert_ipu.simulator.runtime.normalisation import FUSED, STATISTICS, in_one_dtype
from bert_ipu.simulator.runtime.settings import Products

if TYPE_CHECKING:
    from bert_ipu.simulator.runtime.lowering import Emitter

aten = torch.ops.aten

DRAWS = Name(f"{RUN.text}.draws")

Call = tuple[Callable[..., Any], list[Any]]

_PRODUCTS = operators.names("linear matmul mm bmm")


def select(emitter: Emitter, node: fx.Node, args: list[Any]) -> Call:
    """The function that computes a node from `args`, and what it is called with."""
    name = operators.operator_name(node.target)
    for choice in _CHOICES:
        found = choice(emitter, node, name, args)
        if found is not None:
            return found
    for position in operators.LONG_ARGUMENTS.get(name, ()):
        if position < len(args) and args[position] is not None:
            args[position] = emitter.code.emit(operators.as_long, args[position])
    return operators.implementation(node.target), args


def select_matmul(emitter: Emitter, node: fx.Node, args: list[Any]) -> Call:
    """The same for the product of two matrices, or batches of them, that a node makes."""
    chosen = _sum_in_half(emitter, node, "matmul", args) or _multiply_halves(emitter, node, "matmul", args)
    return chosen or (torch.matmul, args)


def all_half(node: fx.Node) -> bool:
    """Whether an operator reads fp16 tensors and no wider ones, so that its result is as narrow."""
    values = [read.meta["val"] for read in node.all_input_nodes]
    floats = [v for v in values if isinstance(v, Tensor) and v.dtype.is_floating_point and v.dim() > 0]
    return bool(floats) and all(v.dtype == torch.float16 for v in floats)


# -- choices -----------------------------------------------------------------------------------


def _draw(emitter: Emitter, node: fx.Node, name: str, args: list[Any]) -> Call | None:
    drawing = operators.DRAWING_OVERLOADS.get(node.target) or operators.DRAWING.get(name)
    return None if drawing is None else (drawing, [DRAWS, node.meta.get("random", 0), *args])


def _run_body(emitter: Emitter, node: fx.Node, name: str, args: list[Any]) -> Call | None:
    if node.target is ops.for_loop:
        return _loop(emitter.subroutine(args[0])), [RUN, *args[1:]]
    if node.target is ops.cond:
        return _branch(emitter.subroutine(args[1]), emitter.subroutine(args[2])), [RUN, args[0], *args[3:]]
    return None


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


def _run_custom(emitter: Emitter, node: fx.Node, name: str, args: list[Any]) -> Call | None:
    if node.target not in CUSTOM:
        return None
    function = custom_op_function(node)
    return function, [DRAWS, *args] if hasattr(function, "takes_draws") else args


def _update_by_kernel(emitter: Emitter, node: fx.Node, name: str, args: list[Any]) -> Call | None:
    if node.target is not ops.sgd0_var_update or emitter.kernels is None:
        return None
    return optimizer_ops.sgd0_var_update_by_kernel, [*args, emitter.kernels]


def _sum_in_half(emitter: Emitter, node: fx.Node, name: str, args: list[Any]) -> Call | None:
    """Products whose partial sums are rounded to fp16."""
    if name in half_partials.MATMULS and _sums_in_half(emitter, node, "matmul"):
        return half_partials.MATMULS[name], [*_rounding(emitter, node), _tiles_of_depth(node), *args]
    if name in half_convolutions.CONVOLUTIONS and _sums_in_half(emitter, node, "convolution"):
        return half_convolutions.CONVOLUTIONS[name], [*_rounding(emitter, node), *args]
    return None


def _sums_in_half(emitter: Emitter, node: fx.Node, kind: Products) -> bool:
    numerics = emitter.numerics
    default = torch.float16 if kind in numerics.half_partials else torch.float32
    return numerics.rounds and node.meta.get("partials", default) == torch.float16 and all_half(node)


def _rounding(emitter: Emitter, node: fx.Node) -> tuple[HalfPartials, Name | None]:
    """How a node's partial sums are rounded, and what they draw for it."""
    number = node.meta.get("number", 0) + half_partials.NUMBER
    partials = HalfPartials(emitter.kernels, number, emitter.numerics.overflow)
    return partials, DRAWS if emitter.numerics.stochastic else None


def _tiles_of_depth(node: fx.Node) -> int:
    """Over how many tiles the device would divide the reduced dimension of a product of matrices."""
    first = 1 if operators.operator_name(node.target) in half_partials.ADDED else 0
    left, right = (read.meta["val"] for read in node.args[first : first + 2])  # type: ignore[union-attr]
    right = right.t() if node.target is aten.linear.default else right
    return depth_division.tiles_for(left.shape, right.shape)


def _multiply_halves(emitter: Emitter, node: fx.Node, name: str, args: list[Any]) -> Call | None:
    """Products of operands that may be rounded to fp16."""
    kernels = emitter.kernels
    if name not in _PRODUCTS or kernels is None or not emitter.numerics.half_products or not all_half(node):
        return None
    if name != "linear":
        return products.matmul, [*args, kernels]
    bias = [None] if len(args) == 2 else []
    return products.linear, [*args, *bias, kernels]


def _normalise(emitter: Emitter, node: fx.Node, name: str, args: list[Any]) -> Call | None:
    """Norms of bf16 values, which ATen wants in one dtype; a kernel that has them in one anyway is left alone."""
    if node.target not in STATISTICS or emitter.numerics.half != torch.bfloat16:
        return None
    if node.target in FUSED and not _mixes_dtypes(node):
        return None
    return in_one_dtype(operators.implementation(node.target), STATISTICS[node.target]), args


def _mixes_dtypes(node: fx.Node) -> bool:
    """Whether an operator reads floating-point tensors of several dtypes."""
    values = [read.meta["val"] for read in node.all_input_nodes]
    return len({v.dtype for v in values if isinstance(v, Tensor) and v.dtype.is_floating_point}) > 1


_CHOICES: tuple[Callable[[Emitter, fx.Node, str, list[Any]], Call | None], ...] = (
    _draw,
    _run_body,
    _run_custom,
    _update_by_kernel,
    _sum_in_half,
    _multiply_halves,
    _normalise,
)
