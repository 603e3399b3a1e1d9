"""Which function computes an operator, given carriers in place of the device's values.

Most ATen operators run as they are.  The tables here hold the exceptions: operators that draw random numbers,
that want int64 where the device has int32, that are quicker under another name, and those ATen lacks.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.runtime import losses, optimizer_ops, random
from bert_ipu.simulator.runtime.random import Draws
from bert_ipu.simulator.runtime.tensor_text import Layout

aten = torch.ops.aten
Function = Callable[..., Any]


def names(text: str) -> frozenset[str]:
    """The words of a list of operator names."""
    return frozenset(text.split())


VIEWS = names(
    "alias as_strided chunk diagonal detach expand expand_as flatten getitem movedim narrow permute reshape "
    "select slice split split_with_sizes squeeze swapaxes t T mT tensor_split transpose unbind unflatten "
    "unsqueeze view view_as contiguous numpy_T unfold swapdims moveaxis real _unsafe_view view_copy"
)
"""Operators whose result may share memory with their first argument, and never needs rounding."""

EXACT = VIEWS | names(
    "abs amax amin argmax argmin cat ceil clamp clamp_max clamp_min clone constant_pad_nd copy embedding eq "
    "fill flip floor full full_like gather ge gt hardtanh hardtanh_backward index index_select le "
    "lift_fresh_copy logical_and logical_not logical_or lt masked_fill max max_pool1d max_pool2d maximum min "
    "minimum ne neg nop ones ones_like pad relu relu6 repeat roll round scalar_tensor scatter "
    "select_backward sign slice_backward sort stack threshold threshold_backward topk tril triu trunc where "
    "zero zeros zeros_like one_hot new_zeros new_full new_ones repeat_interleave"
)
"""Operators whose results are fp16 values when their inputs are."""

KEEPS_INT32 = VIEWS | names(
    "_to_copy add cat clamp div embedding eq full full_like gather index_select masked_fill maximum minimum "
    "mul ne neg arange ones_like sub where zeros zeros_like"
)
"""Operators that return int32 where ATen gets int32."""

CASTS = names("to _to_copy type_as half float bfloat16 int long")


def operator_name(target: Any) -> str:
    """The plain name of a target: "add" for aten.add.Tensor, "dropout_grad" for the IPU's."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[1]
    return str(getattr(target, "name", getattr(target, "__name__", target)))


# -- random numbers ----------------------------------------------------------------------------


def _dropout(draws: Draws, op: int, x: Tensor, p: float, train: bool = True) -> Tensor:
    return random.dropout(x, p, draws, op) if train else x


def _native_dropout(
    draws: Draws, op: int, x: Tensor, p: float, train: bool | None = True
) -> tuple[Tensor, Tensor]:
    dropped = random.dropout(torch.ones_like(x), p, draws, op) if train else torch.ones_like(x)
    return x * dropped, dropped != 0


def _normal_like(draws: Draws, op: int, x: Tensor, **_: Any) -> Tensor:
    return _shape_like(random.normal, draws, op, x)


def _uniform_like(draws: Draws, op: int, x: Tensor, **_: Any) -> Tensor:
    return _shape_like(random.uniform, draws, op, x)


def _shape_like(draw: Function, draws: Draws, op: int, x: Tensor) -> Tensor:
    """A draw of x's shape; x is [K * n, ...] or [K, ...] for K streams."""
    flat: Tensor = draw((x.numel() // draws.streams,), draws, op, x.device)
    return flat.view(x.shape).to(x.dtype)


def _randn(
    draws: Draws, op: int, size: list[int], *, dtype: Any = None, device: Any = None, **_: Any
) -> Tensor:
    drawn = random.normal(tuple(size), draws, op, torch.device(device or "cpu"))
    return drawn.squeeze(0).to(dtype or torch.float32)


def _rand(
    draws: Draws, op: int, size: list[int], *, dtype: Any = None, device: Any = None, **_: Any
) -> Tensor:
    drawn = random.uniform(tuple(size), draws, op, torch.device(device or "cpu"))
    return drawn.squeeze(0).to(dtype or torch.float32)


def _uniform(draws: Draws, op: int, x: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    return _uniform_like(draws, op, x) * (high - low) + low


def _normal(draws: Draws, op: int, x: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return _normal_like(draws, op, x) * std + mean


def _normal_means(
    draws: Draws, op: int, mean: Any, std: Any = 1.0, size: Any = None, *, device: Any = None, **_: Any
) -> Tensor:
    """torch.normal with tensors or a size: mean + std x a standard normal draw."""
    if size is not None:
        shape = tuple(size)
        drawn: Tensor = random.normal(shape, draws, op, torch.device(device or "cpu")).squeeze(0) * std + mean
        return drawn
    like = mean if isinstance(mean, Tensor) else std
    if isinstance(mean, Tensor) and isinstance(std, Tensor):
        like = mean + std
    shifted: Tensor = _normal_like(draws, op, like) * std + mean
    return shifted


def _bernoulli(draws: Draws, op: int, x: Tensor, p: float | Tensor | None = None, **_: Any) -> Tensor:
    probability = x if p is None else p
    drawn = random.uniform((x.numel() // draws.streams,), draws, op, x.device).view(x.shape)
    return (drawn < probability).to(x.dtype)


def _exponential(draws: Draws, op: int, x: Tensor, rate: float = 1.0, **_: Any) -> Tensor:
    drawn: Tensor = torch.log(_uniform_like(draws, op, x)).neg() / rate
    return drawn


def _randint(
    draws: Draws,
    op: int,
    low: int,
    high: int,
    size: list[int],
    *,
    dtype: Any = None,
    device: Any = None,
    **_: Any,
) -> Tensor:
    drawn = random.uniform(tuple(size), draws, op, torch.device(device or "cpu")).squeeze(0)
    return ((drawn * (high - low)).floor().to(torch.int32) + low).to(dtype or torch.int32)


def _randperm(draws: Draws, op: int, n: int, *, device: Any = None, **_: Any) -> Tensor:
    drawn = random.uniform((n,), draws, op, torch.device(device or "cpu"))
    return drawn.squeeze(0).argsort().to(torch.int32)


DRAWING: dict[str, Function] = {
    "dropout": _dropout,
    "native_dropout": _native_dropout,
    "dropout_grad": _dropout,
    "randn": _randn,
    "rand": _rand,
    "randn_like": _normal_like,
    "rand_like": _uniform_like,
    "uniform": _uniform,
    "bernoulli": _bernoulli,
    "exponential": _exponential,
    "randint": _randint,
    "randperm": _randperm,
}
"""Called as function(draws, op, *args); by name, or by overload where one name has several shapes."""

DRAWING_OVERLOADS: dict[Any, Function] = {
    aten.normal_functional.default: _normal,
    aten.normal.Tensor_float: _normal_means,
    aten.normal.Tensor_Tensor: _normal_means,
    aten.normal.float_Tensor: _normal_means,
    aten.normal.float_float: _normal_means,
    aten.randint.default: lambda draws, op, high, size, **kw: _randint(draws, op, 0, high, size, **kw),
}


def is_drawing(target: Any) -> bool:
    """Whether an operator draws random numbers."""
    return target in DRAWING_OVERLOADS or operator_name(target) in DRAWING


# -- int64 where ATen wants it -----------------------------------------------------------------

LONG_ARGUMENTS: dict[str, tuple[int, ...]] = {
    "gather": (2,),
    "gather_backward": (3,),
    "scatter": (2,),
    "scatter_add": (2,),
    "scatter_reduce": (2,),
    "take_along_dim": (1,),
    "take": (1,),
    "one_hot": (0,),
    "cross_entropy_loss": (1,),
    "nll_loss": (1,),
    "nll_loss_nd": (1,),
    "nll_loss_forward": (1,),
    "nll_loss2d": (1,),
    "nll_loss2d_forward": (1,),
    "nll_loss_backward": (2,),
    "nll_loss2d_backward": (2,),
    "max_pool2d_with_indices_backward": (7,),
    "max_pool3d_with_indices_backward": (7,),
    "index_put": (1,),
    "index": (1,),
    "index_add": (2,),
    "index_copy": (2,),
    "index_fill": (2,),
    "sort_backward": (2,),
    "value_selecting_reduction_backward": (2,),
    "max_unpool2d": (1,),
    "put": (1,),
    "multilabel_margin_loss": (1,),
    "multi_margin_loss": (1,),
    "ctc_loss": (1,),
}
"""Positions of index arguments that must be int64; the device has them as int32."""


def as_long(value: Any) -> Any:
    """int32 tensors, also inside lists, as int64."""
    if isinstance(value, (list, tuple)):
        return type(value)(as_long(item) for item in value)
    return value.long() if isinstance(value, Tensor) and value.dtype == torch.int32 else value


# -- other implementations ---------------------------------------------------------------------


def _on_contiguous(function: Function) -> Function:
    """An operator whose kernel reads its tensors' memory in order, which torch's callers see to."""

    def call(*args: Any) -> Any:
        return function(*[x.contiguous() if isinstance(x, Tensor) else x for x in args])

    return call


def _identity(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _identity_loss(x: Tensor, *, reduction: str) -> Tensor:
    if reduction == "none":
        return x
    return x.sum() if reduction == "sum" else x.mean()


def _print_tensor(x: Tensor, *, title: str, print_gradient: bool, **layout: Any) -> Tensor:
    text = Layout(**layout).text(x.cpu())
    print(f"{title}: {text}" if title else text, file=sys.stderr, flush=True)
    return x


def _cpu_op(*inputs: Tensor, function: Function, outputs: Any, device: Any = "cpu") -> tuple[Any, ...]:
    """The host's callable on the device's values; its results take the declared dtypes, on the device."""
    results = function(*(x.cpu() for x in inputs))
    results = results if isinstance(results, (list, tuple)) else (results,)
    return tuple(y.to(device=device, dtype=_cpu_dtype(dtype)) for y, (_, dtype) in zip(results, outputs))


def _cpu_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float16 else dtype


UNINITIALISED = frozenset({aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default})
"""Make tensors that nobody has written yet: NaN, so that a program that reads them shows it."""


def _uninitialised(
    shape: list[int], *, dtype: torch.dtype | None = None, device: Any = None, **_: Any
) -> Tensor:
    dtype = dtype or torch.float32
    return torch.full(shape, torch.nan if dtype.is_floating_point else 0, dtype=dtype, device=device)


def _uninitialised_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _uninitialised(list(x.shape), dtype=dtype or x.dtype, device=x.device)


def _in_the_gradients_dtype(backward: Function) -> Function:
    """ATen's operator, which wants one dtype: that of the gradient, which a loss scale may have made float32."""

    def widened(gradient: Tensor, *args: Any) -> Tensor:
        floats = (isinstance(x, Tensor) and x.is_floating_point() for x in args)
        result: Tensor = backward(gradient, *(x.to(gradient.dtype) if f else x for x, f in zip(args, floats)))
        return result

    return widened


IMPLEMENTATIONS: dict[Any, Function] = {
    operator.getitem: operator.getitem,
    ops.identity_loss: _identity_loss,
    ops.nop: _identity,
    ops.cross_entropy_grad: losses.cross_entropy_grad,
    ops.print_tensor: _print_tensor,
    ops.cpu_op: _cpu_op,
    ops.assign: optimizer_ops.assign,
    ops.increment: optimizer_ops.increment,
    ops.accumulator_zero: optimizer_ops.zero,
    ops.accumulate: optimizer_ops.accumulate,
    ops.sgd0_var_update: optimizer_ops.sgd0_var_update,
    ops.sgd1_var_update: optimizer_ops.sgd1_var_update,
    ops.sgd1_accl_update: optimizer_ops.sgd1_accl_update,
    ops.sgd1_nesterov: optimizer_ops.sgd1_nesterov,
    ops.adam_updater: optimizer_ops.adam_updater,
    ops.lamb_square: optimizer_ops.lamb_square,
    ops.adam_var_update: optimizer_ops.adam_var_update,
    ops.rmsprop_updater: optimizer_ops.rmsprop_updater,
    ops.scaled_var_update: optimizer_ops.scaled_var_update,
    ops.histogram: optimizer_ops.histogram,
    ops.loss_scale_update: optimizer_ops.loss_scale_update,
    aten.empty.memory_format: _uninitialised,
    aten.empty_like.default: _uninitialised_like,
    aten.new_empty.default: lambda x, size, **kwargs: _uninitialised(
        size, **{"dtype": x.dtype, "device": x.device, **kwargs}
    ),
    aten.native_group_norm.default: _on_contiguous(aten.native_group_norm.default),
    aten.native_group_norm_backward.default: _on_contiguous(aten.native_group_norm_backward.default),
    aten.nll_loss_backward.default: _in_the_gradients_dtype(aten.nll_loss_backward),
    aten.nll_loss2d_backward.default: _in_the_gradients_dtype(aten.nll_loss2d_backward),
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.matmul.default: torch.matmul,
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.linear.default: torch.nn.functional.linear,
    aten.transpose.int: torch.transpose,
    aten.permute.default: torch.permute,
    aten.reshape.default: torch.reshape,
    aten.view.default: torch.reshape,
    aten.tanh.default: torch.tanh,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.select.int: torch.select,
}
"""What runs in place of an operator; torch's own bindings where they are quicker to call than the overload.
"""


def implementation(target: Any) -> Function:
    """The function that computes an operator from carriers."""
    function: Function = IMPLEMENTATIONS.get(target, target)
    return function
