"""Gradient rules of the operators that models are mostly made of.

A rule takes the builder `b`, the forward's `node` and the gradient `grad` of its result (`grads`, where the result is a
tuple), and yields (operand, gradient) pairs for the operands that want one.  Gradients come out in the operand's shape
after `Backward.fit`, so a rule of a broadcasting operator need not sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import fx

from bert_ipu.simulator.graph import ops, scatter_gradients
from bert_ipu.simulator.graph.autodiff import Backward, GradientRule

aten = torch.ops.aten

Pairs = Iterator[tuple[fx.Node, fx.Node]]


def _args(node: fx.Node) -> Any:
    """A node's arguments, free of fx's wide type."""
    return node.args


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument given by position, by name, or left at its default."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


# -- matrix products ---------------------------------------------------------------------------


def _linear(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, weight = _args(node)[:2]
    bias = _argument(node, 2, "bias")
    rows = b.reshape(grad, [-1, _shape(grad)[-1]]) if len(_shape(grad)) != 2 else grad
    if b.needs(x):
        yield x, b.emit(aten.matmul.default, grad, weight, operand=0)
    if b.needs(weight):
        inputs = b.reshape(x, [-1, _shape(x)[-1]]) if len(_shape(x)) != 2 else x
        yield weight, b.emit(aten.mm.default, b.emit(aten.t.default, rows), inputs, operand=1)
    if b.needs(bias):
        yield bias, b.emit(aten.sum.dim_IntList, rows, [0], operand=2)


def _matmul(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    left, right = _args(node)
    left_shape, right_shape = _shape(left), _shape(right)
    if len(left_shape) == 1 or len(right_shape) == 1:
        yield from _vector_matmul(b, node, grad)
        return
    if b.needs(left):
        yield left, b.emit(aten.matmul.default, grad, b.transpose(right), operand=0)
    if not b.needs(right):
        return
    if len(right_shape) == 2 and len(left_shape) > 2:
        # One product over all rows instead of one per batch entry and a sum.
        row_count = math.prod(left_shape[:-1])
        rows = b.reshape(left, [row_count, left_shape[-1]])
        columns = b.reshape(grad, [row_count, right_shape[-1]])
        yield right, b.emit(aten.mm.default, b.emit(aten.t.default, rows), columns, operand=1)
    else:
        yield right, b.emit(aten.matmul.default, b.transpose(left), grad, operand=1)


def _vector_matmul(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    """A vector on the left is a matrix of one row, one on the right a matrix of one column."""
    left, right = _args(node)
    left_shape, right_shape = _shape(left), _shape(right)
    rows = b.reshape(left, [1, *left_shape]) if len(left_shape) == 1 else left
    columns = b.reshape(right, [*right_shape, 1]) if len(right_shape) == 1 else right
    shape = _shape(grad)
    if len(left_shape) == 1:
        shape = (*shape[:-1], 1, shape[-1]) if len(right_shape) > 1 else (1,)
    if len(right_shape) == 1:
        shape = (*shape, 1)
    matrix = b.reshape(grad, shape)
    if b.needs(left):
        full = b.emit(aten.matmul.default, matrix, b.transpose(columns), operand=0)
        yield left, b.reshape(b.sum_to(full, _shape(rows)), left_shape)
    if b.needs(right):
        full = b.emit(aten.matmul.default, b.transpose(rows), matrix, operand=1)
        yield right, b.reshape(b.sum_to(full, _shape(columns)), right_shape)


def _addmm(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    bias, left, right = _args(node)
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    if b.needs(bias):
        yield bias, _scaled(b, grad, beta)
    scaled = _scaled(b, grad, alpha)
    if b.needs(left):
        yield left, b.emit(aten.matmul.default, scaled, b.transpose(right), operand=1)
    if b.needs(right):
        yield right, b.emit(aten.matmul.default, b.transpose(left), scaled, operand=2)


# -- arithmetic --------------------------------------------------------------------------------


def _scaled(b: Backward, grad: fx.Node, factor: Any) -> fx.Node:
    return grad if factor == 1 else b.emit(aten.mul.Tensor, grad, factor)


def _add(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, y = _args(node)[:2]
    if b.needs(x):
        yield x, grad
    if b.needs(y):
        yield y, _scaled(b, grad, node.kwargs.get("alpha", 1))


def _sub(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, y = _args(node)[:2]
    if b.needs(x):
        yield x, grad
    if b.needs(y):
        yield y, _scaled(b, b.emit(aten.neg.default, grad), node.kwargs.get("alpha", 1))


def _rsub(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, y = _args(node)[:2]
    if b.needs(x):
        yield x, _scaled(b, b.emit(aten.neg.default, grad), node.kwargs.get("alpha", 1))
    if b.needs(y):
        yield y, grad


def _mul(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, y = _args(node)
    if b.needs(x):
        yield x, b.emit(aten.mul.Tensor, grad, y, operand=0)
    if b.needs(y):
        yield y, b.emit(aten.mul.Tensor, grad, x, operand=1)


def _div(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, y = _args(node)
    if b.needs(x):
        yield x, b.emit(aten.div.Tensor, grad, y, operand=0)
    if b.needs(y):
        ratio = b.emit(aten.div.Tensor, node, y)
        yield y, b.emit(aten.neg.default, b.emit(aten.mul.Tensor, grad, ratio), operand=1)


def _neg(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    yield _args(node)[0], b.emit(aten.neg.default, grad, operand=0)


def _pow_scalar(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, exponent = _args(node)
    if exponent == 0:
        return  # a constant, also at 0, where the formula below divides by 0
    if exponent == 2:
        slope = b.emit(aten.mul.Tensor, x, 2)
    else:
        slope = b.emit(aten.mul.Tensor, b.emit(aten.pow.Tensor_Scalar, x, exponent - 1), exponent)
    yield x, b.emit(aten.mul.Tensor, grad, slope, operand=0)


def _exp(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    yield _args(node)[0], b.emit(aten.mul.Tensor, grad, node, operand=0)


def _log(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    yield _args(node)[0], b.emit(aten.div.Tensor, grad, _args(node)[0], operand=0)


def _sqrt(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    yield _args(node)[0], b.emit(aten.div.Tensor, grad, b.emit(aten.mul.Tensor, node, 2), operand=0)


def _rsqrt(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    cube = b.emit(aten.pow.Tensor_Scalar, node, 3)
    yield _args(node)[0], b.emit(aten.mul.Tensor, grad, b.emit(aten.mul.Tensor, cube, -0.5), operand=0)


def _where(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    condition, x, y = _args(node)
    zero = b.emit(aten.zeros_like.default, grad)
    if b.needs(x):
        yield x, b.emit(aten.where.self, condition, grad, zero, operand=1)
    if b.needs(y):
        yield y, b.emit(aten.where.self, condition, zero, grad, operand=2)


def _masked_fill(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, mask = _args(node)[:2]
    if b.needs(x):
        yield x, b.emit(aten.masked_fill.Scalar, grad, mask, 0.0, operand=0)


# -- activations, normalisation, dropout -------------------------------------------------------


def _relu(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    yield _args(node)[0], b.emit(aten.threshold_backward.default, grad, node, 0, operand=0)


def _gelu(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x = _args(node)[0]
    yield x, b.emit(aten.gelu_backward.default, grad, x, operand=0, **node.kwargs)


def _tanh(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    yield _args(node)[0], b.emit(aten.tanh_backward.default, grad, node, operand=0)


def _sigmoid(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    yield _args(node)[0], b.emit(aten.sigmoid_backward.default, grad, node, operand=0)


def _softmax(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, dim = _args(node)[:2]
    dtype = x.meta["val"].dtype
    yield x, b.emit(aten._softmax_backward_data.default, grad, node, dim, dtype, operand=0)


def _log_softmax(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, dim = _args(node)[:2]
    dtype = x.meta["val"].dtype
    yield x, b.emit(aten._log_softmax_backward_data.default, grad, node, dim, dtype, operand=0)


def _layer_norm(b: Backward, node: fx.Node, grads: list[Optional[fx.Node]]) -> Pairs:
    x, shape, weight, bias, _ = _args(node)
    mean, rstd = b.item(node, 1), b.item(node, 2)
    mask = [b.needs(x), b.needs(weight), b.needs(bias)]
    made = b.emit(
        aten.native_layer_norm_backward.default, grads[0], x, shape, mean, rstd, weight, bias, mask, operand=0
    )
    for position, operand in enumerate((x, weight, bias)):
        if b.needs(operand):
            yield operand, b.item(made, position)


def _dropout(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, p = _args(node)[:2]
    made = b.emit(ops.dropout_grad, grad, p, operand=0)
    made.meta["random"] = node.meta["random"]
    yield x, made


# -- losses ------------------------------------------------------------------------------------


def _cross_entropy(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    logits, target = _args(node)[:2]
    reduction, ignored = _argument(node, 3, "reduction", 1), _argument(node, 4, "ignore_index", -100)
    made = b.emit(
        ops.cross_entropy_grad, grad, logits, target, operand=0, reduction=reduction, ignore_index=ignored
    )
    yield logits, made


def _nll_loss(b: Backward, node: fx.Node, grads: list[Optional[fx.Node]]) -> Pairs:
    x, target, weight, reduction, ignored = _args(node)
    total = b.item(node, 1)
    yield (
        x,
        b.emit(
            aten.nll_loss_backward.default, grads[0], x, target, weight, reduction, ignored, total, operand=0
        ),
    )


# -- embedding and indexing --------------------------------------------------------------------


def _embedding(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    weight, indices = _args(node)[:2]
    rows, padding = _shape(weight)[0], _argument(node, 2, "padding_idx", -1)
    yield (
        weight,
        b.emit(aten.embedding_dense_backward.default, grad, indices, rows, padding, False, operand=0),
    )


def _gather(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, dim, index = _args(node)[:3]
    zeros = _zeros(b, x)
    yield x, b.emit(aten.scatter_add.default, zeros, dim, index, grad, operand=0)


def _index_select(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, dim, index = _args(node)
    zeros = _zeros(b, x)
    yield x, b.emit(aten.index_add.default, zeros, dim, index, grad, operand=0)


def _index(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, indices = _args(node)
    zeros = _zeros(b, x)
    yield x, b.emit(aten.index_put.default, zeros, indices, grad, True, operand=0)


def _zeros(b: Backward, like: fx.Node) -> fx.Node:
    value = like.meta["val"]
    return b.emit(aten.zeros.default, list(value.shape), dtype=value.dtype)


# -- shapes ------------------------------------------------------------------------------------


def _reshaping(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x = _args(node)[0]
    yield x, b.reshape(grad, _shape(x))


def _unchanged(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    """The gradient as it is; after `expand`, `Backward.fit` sums over what was repeated."""
    yield _args(node)[0], grad


def _to_copy(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x = _args(node)[0]
    if x.meta["val"].dtype.is_floating_point:
        yield x, grad


def _transpose(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    yield _args(node)[0], b.emit(node.target, grad, *_args(node)[1:], operand=0)


def _permute(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, dims = _args(node)
    order = [dim % len(dims) for dim in dims]
    yield x, b.emit(aten.permute.default, grad, [order.index(d) for d in range(len(order))], operand=0)


def _select(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x, dim, index = _args(node)
    yield x, b.emit(aten.select_backward.default, grad, list(_shape(x)), dim, index, operand=0)


def _slice(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x = _args(node)[0]
    dim, start, end, step = (
        _argument(node, 1, "dim", 0),
        _argument(node, 2, "start") or 0,
        _argument(node, 3, "end"),
        _argument(node, 4, "step", 1),
    )
    shape = list(_shape(x))
    stop = shape[dim] if end is None else end
    yield x, b.emit(aten.slice_backward.default, grad, shape, dim, start, stop, step, operand=0)


def _cat(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    tensors, dim = _args(node)[0], _argument(node, 1, "dim", 0)
    start = 0
    for position, tensor in enumerate(tensors):
        size = _shape(tensor)[dim]
        if b.needs(tensor):
            yield tensor, b.emit(aten.slice.Tensor, grad, dim, start, start + size, operand=position)
        start += size


def _stack(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    tensors, dim = _args(node)[0], _argument(node, 1, "dim", 0)
    for position, tensor in enumerate(tensors):
        if b.needs(tensor):
            yield tensor, b.emit(aten.select.int, grad, dim, position, operand=position)


def _split(b: Backward, node: fx.Node, grads: list[Optional[fx.Node]]) -> Pairs:
    """Of `split` and `split_with_sizes`: the pieces put together, zeros where a piece is not used."""
    x, dim = _args(node)[0], _argument(node, 2, "dim", 0)
    yield x, b.emit(aten.cat.default, _or_zeros(b, node, grads), dim, operand=0)


def _unbind(b: Backward, node: fx.Node, grads: list[Optional[fx.Node]]) -> Pairs:
    x, dim = _args(node)[0], _argument(node, 1, "dim", 0)
    yield x, b.emit(aten.stack.default, _or_zeros(b, node, grads), dim, operand=0)


def _or_zeros(b: Backward, node: fx.Node, grads: list[Optional[fx.Node]]) -> list[fx.Node]:
    values = node.meta["val"]
    return [
        grad if grad is not None else b.emit(aten.zeros.default, list(value.shape), dtype=value.dtype)
        for grad, value in zip(grads, values)
    ]


# -- reductions --------------------------------------------------------------------------------


def _sum(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x = _args(node)[0]
    yield x, _spread(b, node, grad, _shape(x))


def _mean(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x = _args(node)[0]
    shape = _shape(x)
    count = math.prod(shape) // max(math.prod(_shape(node)), 1)
    yield x, b.emit(aten.div.Tensor, _spread(b, node, grad, shape), count, operand=0)


def _spread(b: Backward, node: fx.Node, grad: fx.Node, shape: tuple[int, ...]) -> fx.Node:
    """The gradient of a reduction's result, repeated over the dimensions that it reduced."""
    dims = _argument(node, 1, "dim")
    if shape and dims is not None and not _argument(node, 2, "keepdim", False):
        reduced = {d % len(shape) for d in ([dims] if isinstance(dims, int) else dims)} or set(
            range(len(shape))
        )
        grad = b.reshape(grad, [1 if d in reduced else size for d, size in enumerate(shape)])
    return b.emit(aten.expand.default, grad, list(shape), operand=0)


# -- operators that only the IPU has -----------------------------------------------------------


def _identity_loss(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    x = _args(node)[0]
    shape = _shape(x)
    if node.kwargs["reduction"] == "mean":
        grad = b.emit(aten.div.Tensor, grad, math.prod(shape))
    if shape:
        grad = b.cast(grad, x.meta["val"].dtype)
    yield x, b.emit(aten.expand.default, grad, list(shape), operand=0)


def _unrecorded_write(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    old = _args(node)[0]
    if b.needs(old):
        yield old, grad


def _print(b: Backward, node: fx.Node, grad: fx.Node) -> Pairs:
    if node.kwargs["print_gradient"]:
        title = str(node.kwargs["title"])
        # The gradient's title is PopART's: `PrintTensorOp::getGradOps`.
        options = {**node.kwargs, "title": f"{title}_gradient" if title else "Gradient"}
        grad = b.emit(ops.print_tensor, grad, operand=0, **options)
    yield _args(node)[0], grad


RULES: dict[Any, GradientRule] = {
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.rsub.Scalar: _rsub,
    aten.rsub.Tensor: _rsub,
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    aten.neg.default: _neg,
    aten.pow.Tensor_Scalar: _pow_scalar,
    aten.exp.default: _exp,
    aten.log.default: _log,
    aten.sqrt.default: _sqrt,
    aten.rsqrt.default: _rsqrt,
    aten.where.self: _where,
    aten.scatter_reduce.two: scatter_gradients.scatter_reduce_rule,
    aten.index_reduce.default: scatter_gradients.index_reduce_rule,
    aten.masked_fill.Scalar: _masked_fill,
    aten.relu.default: _relu,
    aten.gelu.default: _gelu,
    aten.tanh.default: _tanh,
    aten.sigmoid.default: _sigmoid,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
    aten.native_layer_norm.default: _layer_norm,
    aten.dropout.default: _dropout,
    aten.cross_entropy_loss.default: _cross_entropy,
    aten.nll_loss_forward.default: _nll_loss,
    aten.embedding.default: _embedding,
    aten.gather.default: _gather,
    aten.index_select.default: _index_select,
    aten.index.Tensor: _index,
    aten.reshape.default: _reshaping,
    aten.squeeze.default: _reshaping,
    aten.squeeze.dim: _reshaping,
    aten.squeeze.dims: _reshaping,
    aten.unsqueeze.default: _reshaping,
    aten.expand.default: _unchanged,
    aten._to_copy.default: _to_copy,
    aten.transpose.int: _transpose,
    aten.t.default: _transpose,
    aten.permute.default: _permute,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unbind.int: _unbind,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    ops.identity_loss: _identity_loss,
    ops.unrecorded_write: _unrecorded_write,
    ops.print_tensor: _print,
    ops.nop: _unchanged,
}
