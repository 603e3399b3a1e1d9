"""Softmax, layer norm and GELU with their neighbours in one pass over each row: C++ kernels, or plain torch.

What a kernel does not cover (an odd layout, another dtype) runs as the operators it stands for.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from bert_ipu.simulator.runtime import random
from bert_ipu.simulator.runtime.losses import SUFFIX
from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.random import GROUP, Draws, threshold_for

aten = torch.ops.aten


class _Dropout(ctypes.Structure):
    """The kernels' `Dropout`."""

    _fields_ = [
        ("key", ctypes.c_void_p), ("places", ctypes.c_void_p), ("elements", ctypes.c_int64),
        ("op", ctypes.c_uint32), ("threshold", ctypes.c_uint32), ("scale", ctypes.c_float),
    ]  # fmt: skip


class _SoftmaxShape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batches", "heads", "rows", "columns", "bias_batch", "bias_row")),
        ("scale", ctypes.c_float), ("dropout", _Dropout),
    ]  # fmt: skip


class _NormShape(ctypes.Structure):
    _fields_ = [
        ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("eps", ctypes.c_float), ("dropout", _Dropout),
    ]  # fmt: skip


@dataclass(frozen=True)
class Dropping:
    """A dropout that a kernel does on the way: its operator number and probability."""

    op: int
    p: float


def _dropout(dropping: Dropping | None, draws: Draws | None, x: Tensor) -> _Dropout:
    if dropping is None or draws is None:
        return _Dropout()
    return _Dropout(
        draws.key_pointer, draws.places_pointer, x.numel() // draws.streams, dropping.op,
        threshold_for(dropping.p), 1.0 / (1.0 - dropping.p),
    )  # fmt: skip


def _drops_by_rows(dropping: Dropping | None, draws: Draws | None, x: Tensor) -> bool:
    """Whether rows of x are whole groups of random words; true where nothing is dropped."""
    if dropping is None or draws is None:
        return True
    return 0.0 < dropping.p < 1.0 and x.shape[-1] % GROUP == 0


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


# -- softmax -----------------------------------------------------------------------------------


def softmax(
    scores: Tensor, dim: int, scale: float, bias: Tensor | None, dropping: Dropping | None, draws: Draws | None,
    kernels: Kernels,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Softmax of scores * scale + bias, and the same after dropout (itself without one)."""
    strides = _bias_strides(scores, bias)
    if strides is None or dim not in (-1, scores.dim() - 1) or not _drops_by_rows(dropping, draws, scores):
        return _softmax_in_torch(scores, dim, scale, bias, dropping, draws)
    scores = scores.contiguous()
    out = torch.empty_like(scores)
    dropped = out if dropping is None else torch.empty_like(scores)
    batches, heads, rows, columns = _four(scores)
    shape = _SoftmaxShape(batches, heads, rows, columns, *strides, scale, _dropout(dropping, draws, scores))
    kernel = getattr(kernels, f"softmax_{SUFFIX[scores.dtype]}")
    kernel(scores.data_ptr(), _pointer(bias), out.data_ptr(), dropped.data_ptr(), ctypes.addressof(shape))
    return out, dropped


def _softmax_in_torch(
    scores: Tensor, dim: int, scale: float, bias: Tensor | None, dropping: Dropping | None, draws: Draws | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scaled = scores * scale if bias is None else scores * scale + bias
    out = torch.softmax(scaled, dim)
    if dropping is None or draws is None:
        return out, out
    return out, random.dropout(out, dropping.p, draws, dropping.op)


def softmax_grad(
    gradient: Tensor, probabilities: Tensor, dim: int, scale: float, dropping: Dropping | None, draws: Draws | None,
    kernels: Kernels,
) -> Tensor:  # fmt: skip
    """The gradient of `softmax`'s scores, of that of its second result."""
    covered = gradient.dtype == probabilities.dtype and gradient.dtype in SUFFIX
    covered = covered and dim in (-1, gradient.dim() - 1)
    if not covered or not _drops_by_rows(dropping, draws, gradient):
        if dropping is not None and draws is not None:
            gradient = random.dropout(gradient, dropping.p, draws, dropping.op)
        plain: Tensor = aten._softmax_backward_data(gradient, probabilities, dim, probabilities.dtype)
        return plain * scale
    gradient, probabilities = gradient.contiguous(), probabilities.contiguous()
    out = torch.empty_like(gradient)
    shape = _SoftmaxShape(1, 1, *_two(gradient), 0, 0, scale, _dropout(dropping, draws, gradient))
    kernel = getattr(kernels, f"softmax_grad_{SUFFIX[gradient.dtype]}")
    kernel(gradient.data_ptr(), probabilities.data_ptr(), out.data_ptr(), ctypes.addressof(shape))
    return out


def _two(x: Tensor) -> tuple[int, int]:
    columns = x.shape[-1]
    return x.numel() // max(columns, 1), columns


def _four(x: Tensor) -> tuple[int, int, int, int]:
    """Batches, heads, rows and columns of [..., rows, columns] scores."""
    if x.dim() < 3:
        return (1, 1, *_two(x))
    rows, columns = x.shape[-2:]
    heads = x.shape[-3]
    return x.numel() // max(heads * rows * columns, 1), heads, rows, columns


def _bias_strides(scores: Tensor, bias: Tensor | None) -> tuple[int, int] | None:
    """How a bias that broadcasts over heads moves with batches and rows; None where the kernel cannot add it."""
    if scores.dtype not in SUFFIX or scores.numel() == 0:
        return None
    if bias is None:
        return 0, 0
    if bias.dtype != scores.dtype or bias.dim() != scores.dim() or bias.dim() < 3 or not bias.is_contiguous():
        return None
    *_, rows, columns = _four(scores)
    batches = scores.shape[:-3]
    if bias.shape[-1] != columns or bias.shape[-2] not in (1, rows) or bias.shape[-3] != 1:
        return None
    size = bias.shape[-2] * columns
    if bias.shape[:-3] == batches:
        return size, columns if bias.shape[-2] > 1 else 0
    return (0, columns if bias.shape[-2] > 1 else 0) if bias.numel() == size else None


# -- layer norm --------------------------------------------------------------------------------


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float,
    dropping: Dropping | None, draws: Draws | None, kernels: Kernels,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dropout(x) + residual, its layer norm over the last dimension, and the rows' means and inverse deviations."""
    like = x.dtype in SUFFIX and all(other.dtype == x.dtype for other in (residual, weight, bias))
    if not like or x.shape != residual.shape or not _drops_by_rows(dropping, draws, x):
        if dropping is not None and draws is not None:
            x = random.dropout(x, dropping.p, draws, dropping.op)
        total = x + residual
        return (total, *aten.native_layer_norm(total, list(weight.shape), weight, bias, eps))
    x, residual = x.contiguous(), residual.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x)
    mean = torch.empty(*x.shape[:-1], 1)
    rstd = torch.empty_like(mean)
    shape = _NormShape(*_two(x), eps, _dropout(dropping, draws, x))
    kernel = getattr(kernels, f"add_norm_{SUFFIX[x.dtype]}")
    kernel(
        x.data_ptr(), residual.data_ptr(), weight.data_ptr(), bias.data_ptr(), total.data_ptr(), out.data_ptr(),
        mean.data_ptr(), rstd.data_ptr(), ctypes.addressof(shape),
    )  # fmt: skip
    return total, out, mean, rstd


def norm_grad(
    gradient: Tensor, other: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor,
    dropping: Dropping | None, draws: Draws | None, kernels: Kernels,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of layer norm's x, weight and bias, where its result's is gradient + other; and x's after a dropout."""
    like = x.dtype in SUFFIX and all(y.dtype == x.dtype for y in (gradient, weight) if y is not None)
    parts = all(y is None or (y.shape == x.shape and y.dtype == x.dtype) for y in (gradient, other))
    if not like or not parts or mean.dtype != torch.float32 or not _drops_by_rows(dropping, draws, x):
        return _norm_grad_in_torch(gradient, other, x, mean, rstd, weight, bias, dropping, draws)
    gradient, x = gradient.contiguous(), x.contiguous()
    other = None if other is None else other.contiguous()
    out = torch.empty_like(x)
    dropped = out if dropping is None else torch.empty_like(x)
    weight_grad, bias_grad = torch.empty_like(weight), torch.empty_like(bias)
    shape = _NormShape(*_two(x), 0.0, _dropout(dropping, draws, x))
    kernel = getattr(kernels, f"norm_grad_{SUFFIX[x.dtype]}")
    kernel(
        gradient.data_ptr(), _pointer(other), x.data_ptr(), mean.data_ptr(), rstd.data_ptr(), weight.data_ptr(),
        out.data_ptr(), dropped.data_ptr(), weight_grad.data_ptr(), bias_grad.data_ptr(), ctypes.addressof(shape),
    )  # fmt: skip
    return out, weight_grad, bias_grad, dropped


def _norm_grad_in_torch(
    gradient: Tensor, other: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor,
    dropping: Dropping | None, draws: Draws | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    gradient = gradient if other is None else gradient + other
    operands: tuple[Tensor, ...] = (gradient, x, mean, rstd, weight, bias)
    if mean.dtype != x.dtype:  # as the kernel keeps it of bf16 rows, where torch wants one dtype
        operands = tuple(operand.float() for operand in operands)
    gradient, wide, mean, rstd, *parameters = operands
    made = aten.native_layer_norm_backward(
        gradient, wide, list(weight.shape), mean, rstd, *parameters, [True, True, True]
    )
    out, weight_grad, bias_grad = (each.to(x.dtype) for each in made)
    if dropping is None or draws is None:
        return out, weight_grad, bias_grad, out
    return out, weight_grad, bias_grad, random.dropout(out, dropping.p, draws, dropping.op)


# -- GELU and embeddings -----------------------------------------------------------------------


def gelu(x: Tensor, kernels: Kernels) -> Tensor:
    """x times the normal distribution function of x."""
    if x.dtype not in SUFFIX:
        return torch.nn.functional.gelu(x)
    x = x.contiguous()
    out = torch.empty_like(x)
    getattr(kernels, f"gelu_{SUFFIX[x.dtype]}")(x.data_ptr(), out.data_ptr(), x.numel())
    return out


def gelu_grad(gradient: Tensor, x: Tensor, kernels: Kernels) -> Tensor:
    """The gradient of `gelu`'s x."""
    if x.dtype not in SUFFIX or gradient.dtype != x.dtype or gradient.shape != x.shape:
        plain: Tensor = aten.gelu_backward(gradient, x)
        return plain
    gradient, x = gradient.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    kernel = getattr(kernels, f"gelu_grad_{SUFFIX[x.dtype]}")
    kernel(gradient.data_ptr(), x.data_ptr(), out.data_ptr(), x.numel())
    return out


def embedding_grad(gradient: Tensor, index: Tensor, rows: int, padding: int, kernels: Kernels) -> Tensor:
    """[rows, H]: at each index the sum of the gradients [..., H] of its look-ups; none for `padding`."""
    table = gradient.new_zeros(rows, gradient.shape[-1])
    return add_embedding_grad(table, gradient, index, padding, kernels)


def add_embedding_grad(
    table: Tensor, gradient: Tensor, index: Tensor, padding: int, kernels: Kernels
) -> Tensor:
    """The same, added to a table in place."""
    if table.dtype != torch.float32 or gradient.dtype != torch.float32 or not table.is_contiguous():
        plain: Tensor = aten.embedding_dense_backward(gradient, index, table.shape[0], padding, False)
        return table.add_(plain)
    gradient, index = gradient.contiguous(), index.to(torch.int32).contiguous()
    kernels.add_rows_f32(
        gradient.data_ptr(), index.data_ptr(), index.numel(), gradient.shape[-1], padding, table.data_ptr()
    )
    return table
