"""How operators run on many micro-batches at once: one rule per kind of operator, by operator name.

A rule takes (batcher, node, args, kwargs), args with operands in place of nodes, and returns the result's
operand, a tuple of them, or None where it does not apply; then the operator runs once per micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.runtime.batching import Batcher, Layout, Operand, Rule, operands_in
from bert_ipu.simulator.runtime.instructions import Name
from bert_ipu.simulator.runtime.operators import names

BATCHED = (Layout.FOLDED, Layout.STACKED)


def _varies(operand: Operand) -> bool:
    return operand.layout in BATCHED


def _shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a micro-batch's result; of the first of several."""
    value = node.meta["val"]
    return tuple((value if isinstance(value, Tensor) else value[0]).shape)


# -- element by element ------------------------------------------------------------------------


def elementwise(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Operators that broadcast their tensors and compute each element alone."""
    shape = _shape(node)
    operands = operands_in([args, kwargs])
    if _stays_stacked(operands) or not all(_folds(operand, shape) for operand in operands):
        align = _stack_aligned(len(shape))
        return b.call(node, Layout.STACKED, _map(b, align, args), _map(b, align, kwargs))
    return b.call(node, Layout.FOLDED, _map(b, _fold, args), _map(b, _fold, kwargs))


def _folds(operand: Operand, shape: tuple[int, ...]) -> bool:
    """Whether an operand broadcasts against FOLDED operands of the result's shape."""
    if not shape:
        return False
    if _varies(operand):
        return len(operand.shape) == len(shape) and operand.shape[0] == shape[0]
    return len(operand.shape) < len(shape) or operand.shape[0] == 1


def _stays_stacked(operands: Iterable[Operand]) -> bool:
    varying = [operand for operand in operands if _varies(operand)]
    return all(operand.layout is Layout.STACKED for operand in varying)


def _fold(b: Batcher, operand: Operand) -> Name:
    return b.folded(operand) if _varies(operand) else operand.name


def _stack_aligned(rank: int) -> Callable[[Batcher, Operand], Name]:
    """STACKED, with dimensions of size 1 after K so that shapes align from the right."""

    def stack(b: Batcher, operand: Operand) -> Name:
        if not _varies(operand):
            return operand.name
        name = b.stacked(operand)
        missing = rank - len(operand.shape)
        return b.emit(torch.reshape, name, [b.chunk, *[1] * missing, *operand.shape]) if missing > 0 else name

    return stack


def _map(b: Batcher, convert: Callable[[Batcher, Operand], Name], value: Any) -> Any:
    if isinstance(value, Operand):
        return convert(b, value)
    if isinstance(value, dict):
        return {key: _map(b, convert, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(_map(b, convert, item) for item in value)
    return value


def drawing(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Operators that draw one number per element of their first tensor, or of a new one."""
    operands = operands_in(args)
    if not operands:
        return b.call(node, Layout.STACKED, args, kwargs)
    layout = operands[0].layout
    if len(operands) > 1 or layout is Layout.SAME:
        return elementwise(b, node, _map_all_stacked(b, args), kwargs)
    return b.call(node, layout, args, kwargs)


def masked_fill(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The value is a number or a tensor without dimensions, so it cannot vary."""
    return None if isinstance(args[2], Operand) and _varies(args[2]) else elementwise(b, node, args, kwargs)


def gelu_backward(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Element by element, of a gradient and an input of one shape: torch's operator does not always broadcast."""
    alike = all(_varies(operand) for operand in operands_in(args))
    return elementwise(b, node, args if alike else _map_all_stacked(b, args), kwargs)


def _map_all_stacked(b: Batcher, args: list[Any]) -> list[Any]:
    return [Operand(b.stacked(x), Layout.STACKED, x.shape) if isinstance(x, Operand) else x for x in args]


# -- operators with dimensions -----------------------------------------------------------------


def along(position: int, name: str = "dim", default: Any = None) -> Rule:
    """Operators that name a dimension (or several) at `position`, and keep the others apart."""

    def rule(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        operands = [operand for operand in operands_in(args) if _varies(operand)]
        rank = len(operands[0].shape)
        if any(len(operand.shape) != rank for operand in operands_in(args)):
            return None
        given = args[position] if len(args) > position else kwargs.get(name, default)
        dims = given if isinstance(given, (list, tuple)) else [given]
        if rank == 0 or given is None or not dims:
            return None
        dims = [dim % rank for dim in dims]
        folds = (
            min(dims) > 0
            and not _stays_stacked(operands)
            and all(_folds(operand, operands[0].shape) and _varies(operand) for operand in operands_in(args))
        )
        shifted = [dim if folds else dim + 1 for dim in dims]
        convert = _fold if folds else _stack
        converted = _map(b, convert, args)
        options = dict(kwargs)
        value = shifted if isinstance(given, (list, tuple)) else shifted[0]
        if len(args) > position:
            converted[position] = value
        else:
            options[name] = value
        return b.call(node, Layout.FOLDED if folds else Layout.STACKED, converted, options)

    return rule


def _stack(b: Batcher, operand: Operand) -> Name:
    return b.stacked(operand)


def reduce_all(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Reductions; over everything where no dimension is given."""
    given = args[1] if len(args) > 1 else kwargs.get("dim")
    if isinstance(given, int) or given:
        return along(1)(b, node, args, kwargs)
    operand: Operand = args[0]
    function = _REDUCTIONS.get(node.target._schema.name.split("::")[1])  # type: ignore[union-attr]
    if function is None or kwargs or len(args) > 1:
        return None
    flat = b.emit(torch.reshape, operand.name, [b.chunk, math.prod(operand.shape)])
    name = b.emitter.settle(node, b.emit(function, flat, 1), node.meta["val"], 0)
    return Operand(name, Layout.STACKED, ())


def identity_loss(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A loss per micro-batch."""
    operand: Operand = args[0]
    if kwargs["reduction"] == "none":
        return Operand(operand.name, operand.layout, operand.shape)
    flat = b.emit(torch.reshape, operand.name, [b.chunk, math.prod(operand.shape)])
    name = b.emit(_REDUCTIONS[kwargs["reduction"]], flat, 1)
    return Operand(b.emitter.settle(node, name, node.meta["val"], 0), Layout.STACKED, ())


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "amax": torch.amax,
    "amin": torch.amin,
    "argmax": torch.argmax,
    "argmin": torch.argmin,
    "any": torch.any,
    "all": torch.all,
}


def transpose(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    operand: Operand = args[0]
    rank = len(operand.shape)
    if rank == 0:
        return operand
    dims = [dim % rank for dim in args[1:3]]
    if min(dims) > 0 and operand.layout is Layout.FOLDED:
        return b.call(node, Layout.FOLDED, [operand.name, *dims], kwargs)
    return b.call(node, Layout.STACKED, [b.stacked(operand), *[dim + 1 for dim in dims]], kwargs)


def matrix_transpose(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """aten.t of a matrix per micro-batch."""
    operand: Operand = args[0]
    if len(operand.shape) != 2:
        return None
    name = b.emit(torch.transpose, b.stacked(operand), 1, 2)
    return Operand(name, Layout.STACKED, operand.shape[::-1], transposed=operand)


def permute(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    operand: Operand = args[0]
    dims = [dim % len(operand.shape) for dim in args[1]]
    if dims and dims[0] == 0 and operand.layout is Layout.FOLDED:
        return b.call(node, Layout.FOLDED, [operand.name, dims], kwargs)
    return b.call(node, Layout.STACKED, [b.stacked(operand), [0, *[dim + 1 for dim in dims]]], kwargs)


# -- shapes ------------------------------------------------------------------------------------


def reshape(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Every operator that only changes the shape of contiguous memory."""
    operand: Operand = args[0]
    shape = _shape(node)
    if not shape:
        return Operand(b.emit(torch.reshape, operand.name, [b.chunk]), Layout.STACKED, shape)
    name = b.emit(torch.reshape, operand.name, [b.chunk * shape[0], *shape[1:]])
    return Operand(name, Layout.FOLDED, shape)


def expand(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    operand: Operand = args[0]
    shape = _shape(node)
    lead = [1] * (len(shape) - len(operand.shape))
    viewed = b.emit(torch.reshape, operand.name, [b.chunk, *lead, *operand.shape])
    return Operand(b.emit(Tensor.expand, viewed, [b.chunk, *shape]), Layout.STACKED, shape)


def backward_into(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """select_backward and slice_backward: (grad, input sizes, dim, ...)."""
    sizes, dim = list(args[1]), args[2] % len(args[1])
    if dim > 0 and args[0].layout is Layout.FOLDED:
        return b.call(
            node, Layout.FOLDED, [args[0].name, [b.chunk * sizes[0], *sizes[1:]], dim, *args[3:]], kwargs
        )
    return b.call(node, Layout.STACKED, [b.stacked(args[0]), [b.chunk, *sizes], dim + 1, *args[3:]], kwargs)


def join(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """cat and stack."""
    rank = len(args[0][0].shape) + (node.target._schema.name == "aten::stack")  # type: ignore[union-attr]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % rank
    varying = [operand for operand in args[0] if _varies(operand)]
    if dim > 0 and len(varying) == len(args[0]) and not _stays_stacked(varying):
        return b.call(node, Layout.FOLDED, [[b.folded(operand) for operand in args[0]], dim], {})
    return b.call(node, Layout.STACKED, [[b.stacked(operand) for operand in args[0]], dim + 1], {})


# -- products ----------------------------------------------------------------------------------


def linear(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if any(_varies(operand) for operand in operands_in([args[1:], kwargs])):
        return None
    if len(x.shape) == 1:
        return b.call(node, Layout.STACKED, [b.stacked(x), *args[1:]], kwargs)
    return b.call(node, Layout.FOLDED, [b.folded(x), *args[1:]], kwargs)


def matmul(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    left, right = args[:2]
    ranks = len(left.shape), len(right.shape)
    if min(ranks) < 2:
        return None
    if not _varies(right) and ranks[1] == 2:
        # torch.matmul, as the operator may be mm, which takes matrices only
        return _product(b, node, Layout.FOLDED, b.folded(left), right.name)
    same_lead = ranks[0] == ranks[1] > 2 and left.shape[0] == right.shape[0]
    if same_lead and _varies(left) and _varies(right):
        return _product(b, node, Layout.FOLDED, b.folded(left), b.folded(right))
    align = _stack_aligned(max(ranks))
    return _product(b, node, Layout.STACKED, align(b, left), align(b, right))


def _product(b: Batcher, node: fx.Node, layout: Layout, left: Name, right: Name) -> Operand:
    name = b.emitter.settle(node, b.emitter.matmul(node, left, right), node.meta["val"], 0)
    return Operand(name, layout, _shape(node))


def matmul_summed(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The sum over micro-batches of products of matrices: one product that contracts over them too."""
    left, right = args[:2]
    if len(left.shape) != 2 or len(right.shape) != 2 or not (_varies(left) and _varies(right)):
        return None
    if left.transposed is None:
        left = matrix_transpose(b, node, [left], {})
        tall = b.emit(torch.reshape, left.name, [b.chunk * left.shape[0], left.shape[1]])
    else:
        tall = b.folded(left.transposed)
    name = b.emitter.matmul(node, b.emit(torch.t, tall), b.folded(right))
    return Operand(b.emitter.settle(node, name, node.meta["val"], 0), Layout.SUMMED, _shape(node))


def sum_summed(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A sum over dimension 0 (among others) of FOLDED rows is also the sum over micro-batches."""
    operand: Operand = args[0]
    if len(args) < 2 or not args[1] or 0 not in [dim % len(operand.shape) for dim in args[1]]:
        return None
    return b.call(node, Layout.SUMMED, [b.folded(operand), *args[1:]], kwargs)


# -- embeddings, normalisation, losses ---------------------------------------------------------


def embedding(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if _varies(args[0]):
        return None
    layout = args[1].layout
    return b.call(node, layout, args, kwargs)


def embedding_backward_summed(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return b.call(node, Layout.SUMMED, [b.stacked(args[0]), b.stacked(args[1]), *args[2:]], kwargs)


def layer_norm(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Normalisation over trailing dimensions, all rows apart."""
    x = args[0]
    if any(_varies(operand) for operand in operands_in(args[2:])):
        return None
    if len(x.shape) > len(args[1]):
        return b.call(node, Layout.FOLDED, [b.folded(x), *args[1:]], kwargs)
    return None


def layer_norm_backward(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Gradients of the rows apart; those of weight and bias come out summed over all rows."""
    grad, x, shape, mean, rstd, weight, bias, mask = args
    if any(_varies(operand) for operand in operands_in([weight, bias])) or len(x.shape) <= len(shape):
        return None
    sums = [user for user in node.users if user.args[1] != 0]
    if not all(user in b.analysis.summed for user in sums):
        return None
    rows = [b.folded(grad), b.folded(x), shape, b.folded(mean), b.folded(rstd), weight, bias, mask]
    results = b.call(node, Layout.FOLDED, rows, kwargs)
    return tuple(
        Operand(result.name, Layout.SUMMED, result.shape) if index and isinstance(result, Operand) else result
        for index, result in enumerate(results)
    )


def loss_per_row(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """cross_entropy_loss and nll_loss without reduction over [rows, classes]."""
    reduction = args[3] if len(args) > 3 else kwargs.get("reduction", 1)
    if reduction != 0 or len(args[0].shape) != 2 or any(_varies(weight) for weight in operands_in(args[2:])):
        return None
    return b.call(node, Layout.FOLDED, [b.folded(args[0]), b.folded(args[1]), *args[2:]], kwargs)


def loss_per_row_grad(b: Batcher, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("reduction", 1) != 0 or len(args[1].shape) != 2:
        return None
    return b.call(node, Layout.FOLDED, [b.folded(x) for x in args], kwargs)


ELEMENTWISE = names(
    "abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or "
    "bitwise_xor ceil celu clamp clamp_max clamp_min clone copysign cos cosh div elu elu_backward eq erf "
    "erfc exp expm1 floor floor_divide fmod ge gelu gt hardshrink hardsigmoid "
    "hardsigmoid_backward hardswish hardtanh hardtanh_backward isfinite isinf isnan le leaky_relu "
    "leaky_relu_backward lerp log log10 log1p log2 logical_and logical_not logical_or logical_xor lt "
    "maximum minimum mul ne neg nop ones_like zeros_like full_like pow reciprocal relu relu6 "
    "remainder round rsqrt rsub sigmoid sigmoid_backward sign silu silu_backward sin sinh softplus "
    "softplus_backward softshrink sqrt square sub tan tanh tanh_backward threshold threshold_backward trunc "
    "true_divide where xlogy _to_copy alias detach lift_fresh_copy to mish mish_backward log_sigmoid_forward "
    "selu nan_to_num"
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(
        names("dropout dropout_grad randn rand randn_like rand_like uniform bernoulli exponential"),
        drawing,
    ),
    **dict.fromkeys(names("reshape view flatten unsqueeze squeeze view_copy _unsafe_view"), reshape),
    **dict.fromkeys(
        names("softmax _softmax log_softmax _log_softmax cumsum flip glu sort logsumexp"),
        along(1),
    ),
    **dict.fromkeys(names("select slice narrow gather"), along(1, default=0)),
    **dict.fromkeys(names("split split_with_sizes chunk"), along(2, default=0)),
    "masked_fill": masked_fill,
    "gelu_backward": gelu_backward,
    "topk": along(2, default=-1),
    "scatter_add": along(1),
    "scatter": along(1),
    "unbind": along(1, default=0),
    **dict.fromkeys(names("_softmax_backward_data _log_softmax_backward_data"), along(2)),
    **dict.fromkeys(names("sum mean amax amin argmax argmin any all"), reduce_all),
    "identity_loss": identity_loss,
    "transpose": transpose,
    "t": matrix_transpose,
    "permute": permute,
    "expand": expand,
    "select_backward": backward_into,
    "slice_backward": backward_into,
    "cat": join,
    "stack": join,
    "linear": linear,
    "matmul": matmul,
    "mm": matmul,
    "bmm": matmul,
    "embedding": embedding,
    "layer_norm": layer_norm,
    "native_layer_norm": layer_norm,
    "native_layer_norm_backward": layer_norm_backward,
    "cross_entropy_loss": loss_per_row,
    "cross_entropy_grad": loss_per_row_grad,
}

SUM_RULES: dict[str, Rule] = {
    "mm": matmul_summed,
    "matmul": matmul_summed,
    "sum": sum_summed,
    "embedding_dense_backward": embedding_backward_summed,
}
