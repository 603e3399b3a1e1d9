"""Matrix products of half-precision values, where the CPU multiplies fp16 faster than torch makes use of.

`kernels/half_matmul.cpp` says how: operands are scaled and rounded to fp16, short sums are taken in fp16 and added
up in float32.  What is lost is less than bf16 operands lose.  Only "fast" numerics multiply so.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from bert_ipu.simulator.runtime.native import Kernels

SMALL, SHALLOW = 100, 64
"""Products of fewer rows or columns, or of less depth, are left to torch: packing costs more than it saves."""
SMALL_WORK = 1 << 18
"""Multiplications below which the call costs more than it saves."""

_POINTERS = ("a", "b", "bias", "c", "row_sums")
_NUMBERS = ("rows", "columns", "depth", "a_row", "a_column", "b_row", "b_column", "c_row")
_PAIRS = ("batches", "a_batch", "b_batch", "c_batch")


class HalfProduct(ctypes.Structure):
    """The kernel's `HalfProduct`; strides count elements."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_int64 * 2) for name in _PAIRS),
    ]


@functools.cache
def has_half_products(kernels: Kernels) -> bool:
    """Whether the kernels were built for a CPU with fp16 arithmetic (AVX512-FP16)."""
    available = ctypes.c_int32()
    kernels.half_products(ctypes.addressof(available))
    return bool(available.value)


def matmul(a: Tensor, b: Tensor, kernels: Kernels) -> Tensor:
    """a [..., M, K] times b [..., K, N], float32, as torch.matmul."""
    if b.dim() == 2 and a.dim() > 2:
        return matmul(a.reshape(-1, a.shape[-1]), b, kernels).view(*a.shape[:-1], b.shape[-1])
    if not _is_worth_it(a, b):
        return torch.matmul(a, b)
    return multiply_into(a.new_empty(*a.shape[:-1], b.shape[-1]), a, b, kernels)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """x [..., K] times the transpose of weight [N, K], plus bias [N], float32."""
    rows = x.reshape(-1, x.shape[-1])
    transposed = weight.t()
    if not _is_worth_it(rows, transposed):
        return torch.nn.functional.linear(x, weight, bias)
    out = x.new_empty(rows.shape[0], weight.shape[0])
    multiply_into(out, rows, transposed, kernels, bias)
    return out.view(*x.shape[:-1], weight.shape[0])


def product_and_row_sums(a: Tensor, b: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """a [M, K] times b [K, N], and the sums [M] of a's rows: a weight's gradient and its bias's."""
    # Small as they may be: torch needs another pass for the sums, and its threads share a deep product badly.
    if not _is_worth_it(a, b, SHALLOW):
        return torch.mm(a, b), a.sum(1)
    out, sums = a.new_empty(a.shape[0], b.shape[1]), a.new_empty(a.shape[0])
    return multiply_into(out, a, b, kernels, row_sums=sums), sums


def merged_heads(a: Tensor, b: Tensor, kernels: Kernels) -> Tensor:
    """The product of a [B, N, S, K] and b [B, N, K, D] as [B, S, N, D]: what a token's heads say, side by side.

    Of other shapes, the product with dimensions 1 and 2 exchanged.
    """
    if a.dim() != 4 or not _is_worth_it(a, b):
        return matmul(a, b, kernels).transpose(1, 2)
    out = a.new_empty(a.shape[0], a.shape[2], a.shape[1], b.shape[3])
    multiply_into(out.transpose(1, 2), a, b, kernels)
    return out


def multiply_into(
    out: Tensor, a: Tensor, b: Tensor, kernels: Kernels, bias: Tensor | None = None, row_sums: Tensor | None = None
) -> Tensor:  # fmt: skip
    """out [..., M, N] = a [..., M, K] b [..., K, N], with up to two leading dimensions; rows of out are dense."""
    lead = out.shape[:-2]
    product = HalfProduct(
        a.data_ptr(), b.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(),
        None if row_sums is None else row_sums.data_ptr(), a.shape[-2], b.shape[-1], a.shape[-1],
        a.stride(-2), a.stride(-1), b.stride(-2), b.stride(-1), out.stride(-2),
        _pair(lead, 1), _pair(a.stride()[:-2], 0), _pair(b.stride()[:-2], 0), _pair(out.stride()[:-2], 0),
    )  # fmt: skip
    kernels.half_matmul(ctypes.addressof(product))
    return out


def _pair(values: Sequence[int], missing: int) -> tuple[int, ...]:
    return (missing,) * (2 - len(values)) + tuple(values)


def _is_worth_it(a: Tensor, b: Tensor, small: int = SMALL) -> bool:
    if a.dim() != b.dim() or not 2 <= a.dim() <= 4 or a.shape[:-2] != b.shape[:-2]:
        return False
    rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    if a.dtype != torch.float32 or b.dtype != torch.float32 or rows * depth * columns < SMALL_WORK:
        return False
    if a.dim() > 2:  # of batches of strided matrices torch makes copies first
        return min(rows, depth, columns) >= SMALL // 2
    return min(rows, columns) >= small and depth >= SHALLOW
