"""Gradients of products over the elements that an index sends to one place.

torch's own formulas for these look at the values ("is there a zero?"), which a compiled program cannot.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from bert_ipu.simulator.graph.autodiff import Backward
from bert_ipu.simulator.graph.traced_gradients import traced_rule

aten = torch.ops.aten

Pairs = Iterator[tuple[fx.Node, fx.Node]]


def scatter_reduce_rule(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    """`scatter_reduce`: by hand for products, by torch's autograd for the rest."""
    target, dim, index, source, kind = node.args
    if kind != "prod":
        yield from traced_rule(b, node, grad)
        return
    yield from _product(b, node, grad, (target, dim, index, source))  # type: ignore[arg-type]


def index_reduce_rule(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    """`index_reduce`, whose index counts along one dimension only."""
    target, dim, index, source, kind = node.args
    if kind != "prod":
        yield from traced_rule(b, node, grad)
        return
    shape = list(source.meta["val"].shape)  # type: ignore[union-attr]
    position = dim % max(len(shape), 1)  # type: ignore[operator]
    column = b.reshape(index, [size if d == position else 1 for d, size in enumerate(shape)])  # type: ignore[arg-type]
    everywhere = b.emit(aten.expand.default, column, shape)
    yield from _product(b, node, grad, (target, dim, everywhere, source))  # type: ignore[arg-type]


def _product(
    b: Backward, node: fx.Node, grad: fx.Node, operands: tuple[fx.Node, int, fx.Node, fx.Node]
) -> Pairs:
    """d(product) / d(x) is the product of the others: 0 if one of them is 0, else all that are not 0, without x."""
    target, dim, index, source = operands
    include_self = bool(node.kwargs.get("include_self", True))
    zero_target, zero_source = (b.emit(aten.eq.Scalar, x, 0) for x in (target, source))
    full_target = b.emit(aten.masked_fill.Scalar, target, zero_target, 1)
    full_source = b.emit(aten.masked_fill.Scalar, source, zero_source, 1)
    product = b.emit(
        aten.scatter_reduce.two, full_target, dim, index, full_source, "prod", include_self=include_self
    )
    count_target, count_source = (b.cast(x, grad.meta["val"].dtype) for x in (zero_target, zero_source))
    zeros = b.emit(
        aten.scatter_reduce.two, count_target, dim, index, count_source, "sum", include_self=include_self
    )

    def of(x: fx.Node, is_zero: fx.Node, upstream: fx.Node, others: fx.Node, zeros_there: fx.Node) -> fx.Node:
        rest = b.emit(aten.div.Tensor, b.emit(aten.mul.Tensor, upstream, others), x)
        alone = b.cast(b.emit(aten.eq.Tensor, zeros_there, is_zero), grad.meta["val"].dtype)
        return b.emit(aten.mul.Tensor, rest, alone)

    if b.needs(target):
        if include_self:
            yield target, of(full_target, count_target, grad, product, zeros)
        else:
            yield target, b.emit(aten.scatter.value, grad, dim, index, 0)
    if b.needs(source):
        gathered = [b.emit(aten.gather.default, x, dim, index) for x in (grad, product, zeros)]
        yield source, of(full_source, count_source, *gathered)
