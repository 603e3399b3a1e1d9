"""Which function computes a node: its operator's own, or another one for its draws, its numerics or the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.normalisation import FUSED, STATISTICS, in_one_dtype
from bert_ipu.simulator.runtime.numerics import Numerics
from bert_ipu.simulator.runtime.settings import Products

aten = torch.ops.aten

DRAWS = Name(f"{RUN.text}.draws")

Call = tuple[Callable[..., Any], list[Any]]
"""A function and what it is called with."""

_PRODUCTS = operators.names("linear matmul mm bmm")


@dataclass(frozen=True)
class Selector:
    """Selects functions for one kind of numerics, among the kernels that there are.

    A choice looks at a node and the name of its operator, and gives a call, or None where it does not apply.
    """

    numerics: Numerics
    kernels: Kernels | None

    def special(self, node: fx.Node, args: list[Any]) -> Call | None:
        """The first choice that applies; None where the operator's own implementation computes the node."""
        choices = (
            self._draw,
            self._run_custom,
            self._update_by_kernel,
            self._sum_in_half,
            self._multiply_halves,
            self._normalise,
        )
        name = operators.operator_name(node.target)
        found = (choice(node, name, args) for choice in choices)
        return next((call for call in found if call is not None), None)

    def matmul(self, node: fx.Node, args: list[Any]) -> Call:
        """What computes the product of two matrices, or of batches of them, that is a node's or part of it."""
        chosen = self._sum_in_half(node, "matmul", args) or self._multiply_halves(node, "matmul", args)
        return chosen or (torch.matmul, args)

    def _draw(self, node: fx.Node, name: str, args: list[Any]) -> Call | None:
        drawing = operators.DRAWING_OVERLOADS.get(node.target) or operators.DRAWING.get(name)
        return None if drawing is None else (drawing, [DRAWS, node.meta.get("random", 0), *args])

    def _run_custom(self, node: fx.Node, name: str, args: list[Any]) -> Call | None:
        if node.target not in CUSTOM:
            return None
        function = custom_op_function(node)
        return function, [DRAWS, *args] if hasattr(function, "takes_draws") else args

    def _update_by_kernel(self, node: fx.Node, name: str, args: list[Any]) -> Call | None:
        if node.target is not ops.sgd0_var_update or self.kernels is None:
            return None
        return optimizer_ops.sgd0_var_update_by_kernel, [*args, self.kernels]

    def _sum_in_half(self, node: fx.Node, name: str, args: list[Any]) -> Call | None:
        """Products whose partial sums are rounded to fp16."""
        if name in half_partials.MATMULS and self._sums_in_half(node, "matmul"):
            return half_partials.MATMULS[name], [*self._rounding(node), _tiles_of_depth(node), *args]
        if name in half_convolutions.CONVOLUTIONS and self._sums_in_half(node, "convolution"):
            return half_convolutions.CONVOLUTIONS[name], [*self._rounding(node), *args]
        return None

    def _sums_in_half(self, node: fx.Node, kind: Products) -> bool:
        numerics = self.numerics
        default = torch.float16 if kind in numerics.half_partials else torch.float32
        return numerics.rounds and node.meta.get("partials", default) == torch.float16 and all_half(node)

    def _rounding(self, node: fx.Node) -> tuple[HalfPartials, Name | None]:
        """How a node's partial sums are rounded, and what they draw for it."""
        number = node.meta.get("number", 0) + half_partials.NUMBER
        partials = HalfPartials(self.kernels, number, self.numerics.overflow)
        return partials, DRAWS if self.numerics.stochastic else None

    def _multiply_halves(self, node: fx.Node, name: str, args: list[Any]) -> Call | None:
        """Products of operands that may be rounded to fp16."""
        kernels = self.kernels
        if name not in _PRODUCTS or kernels is None or not self.numerics.half_products or not all_half(node):
            return None
        if name != "linear":
            return products.matmul, [*args, kernels]
        bias = [None] if len(args) == 2 else []
        return products.linear, [*args, *bias, kernels]

    def _normalise(self, node: fx.Node, name: str, args: list[Any]) -> Call | None:
        """Norms of bf16 values, which ATen wants in one dtype; a kernel that has them in one anyway is left alone."""
        if node.target not in STATISTICS or self.numerics.half != torch.bfloat16:
            return None
        if node.target in FUSED and not _mixes_dtypes(node):
            return None
        return in_one_dtype(operators.implementation(node.target), STATISTICS[node.target]), args


def all_half(node: fx.Node) -> bool:
    """Whether an operator reads fp16 tensors and no wider ones, so that its result is as narrow."""
    values = [read.meta["val"] for read in node.all_input_nodes]
    floats = [v for v in values if isinstance(v, Tensor) and v.dtype.is_floating_point and v.dim() > 0]
    return bool(floats) and all(v.dtype == torch.float16 for v in floats)


def _tiles_of_depth(node: fx.Node) -> int:
    """Over how many tiles the device would divide the reduced dimension of a product of matrices."""
    first = 1 if operators.operator_name(node.target) in half_partials.ADDED else 0
    left, right = (read.meta["val"] for read in node.args[first : first + 2])  # type: ignore[union-attr]
    right = right.t() if node.target is aten.linear.default else right
    return depth_division.tiles_for(left.shape, right.shape)


def _mixes_dtypes(node: fx.Node) -> bool:
    """Whether an operator reads floating-point tensors of several dtypes."""
    values = [read.meta["val"] for read in node.all_input_nodes]
    return len({v.dtype for v in values if isinstance(v, Tensor) and v.dtype.is_floating_point}) > 1
