"""Matrix products with partial sums of fp16, as `setPartialsType(torch.half)` has Poplar take them.

Poplar's codelet adds up 16 products in float32 and adds that to an fp16 number in memory
(`poplin/codelets/ConvPartial1x1Out.cpp`), so that each 16 of the reduced dimension end in a rounding.  The reduced
dimension is divided over tiles (`depth_division.py`), whose sums are added in float32.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from bert_ipu.simulator.runtime.depth_division import PRODUCTS, broadcast_lead
from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.random import ROUNDING, Draws
from bert_ipu.simulator.runtime.rounding import halves_of_spans, round_half, rounded_by

NUMBER = 4
"""Added to an operator's number for the draws of its partial sums; the rounding of its results takes those before."""
TILE_ROWS, TILE_COLUMNS = 4, 32
"""Of the result, what one group of random words rounds once."""


class _Product(ctypes.Structure):
    """The kernel's `PartialsProduct`; strides count elements."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a", "b", "c")),
        *((name, ctypes.c_int64) for name in ("batches", "rows", "columns", "depth", "share")),
        *((name, ctypes.c_int64) for name in ("a_batch", "a_row", "a_column")),
        *((name, ctypes.c_int64) for name in ("b_batch", "b_row", "b_column", "streams")),
    ]


@dataclass(frozen=True)
class HalfPartials:
    """How the sums of one operator's products are rounded."""

    kernels: Optional[Kernels]
    op: int
    """The number that its random draws go by."""
    overflow: float

    def multiply(self, a: Tensor, b: Tensor, tiles: int, draws: Draws | None) -> Tensor:
        """a [B, M, K] times b [B, K, N] as float32 [B, M, N] of fp16 values; B = streams x batches of each.

        a and b: float32 that hold fp16 values.  `draws`: round at random; to the nearest where it is None.
        """
        share = math.ceil(math.ceil(a.shape[2] / PRODUCTS) / tiles) * PRODUCTS
        if self.kernels is not None and a.device.type == "cpu":
            return self._by_kernel(a, b, share, draws)
        return self._in_torch(a, b, share, draws)

    def _by_kernel(self, a: Tensor, b: Tensor, share: int, draws: Draws | None) -> Tensor:
        assert self.kernels is not None, "the caller looked"
        (batches, rows, depth), columns = a.shape, b.shape[2]
        out = a.new_empty(batches, rows, columns)
        product = _Product(
            a.data_ptr(), b.data_ptr(), out.data_ptr(), batches, rows, columns, depth, share,
            *a.stride(), *b.stride(), 1 if draws is None else draws.streams,
        )  # fmt: skip
        draw: tuple[Any, ...] = (None, 0, None)
        if draws is not None:
            draw = (draws.key_pointer, self.op | ROUNDING, draws.places_pointer)
        self.kernels.half_partials_matmul(ctypes.addressof(product), self.overflow, *draw)
        return out

    def _in_torch(self, a: Tensor, b: Tensor, share: int, draws: Draws | None) -> Tensor:
        """The same function as the kernel's, up to the order of additions in float32."""
        total = a.new_zeros(a.shape[0], a.shape[1], b.shape[2])
        rounds = 0
        for left, right in zip(torch.split(a, share, 2), torch.split(b, share, 1)):
            partial = torch.zeros_like(total)
            for rows, columns in zip(torch.split(left, PRODUCTS, 2), torch.split(right, PRODUCTS, 1)):
                partial = self._rounded(partial + torch.bmm(rows, columns), draws, rounds)
                rounds += 1
            total += partial
        return self._rounded(total, draws, rounds) if share < a.shape[2] else total

    def _rounded(self, sums: Tensor, draws: Draws | None, rounds: int) -> Tensor:
        """The sums [B, M, N] rounded, for the `rounds`-th time."""
        if draws is None:
            return round_half(sums, None, self.overflow)
        batches, rows, columns = sums.shape
        strips, panels = math.ceil(rows / TILE_ROWS), math.ceil(columns / TILE_COLUMNS)
        tiles = batches // draws.streams * strips * panels
        spans = range(rounds * tiles, (rounds + 1) * tiles)
        halves = halves_of_spans(draws, self.op | ROUNDING, spans, sums.device)
        halves = halves.view(batches, strips, panels, TILE_ROWS, TILE_COLUMNS).transpose(2, 3)
        random16 = halves.reshape(batches, strips * TILE_ROWS, panels * TILE_COLUMNS)[:, :rows, :columns]
        return rounded_by(sums, random16, self.overflow)


def matmul(partials: HalfPartials, draws: Draws | None, tiles: int, a: Tensor, b: Tensor) -> Tensor:
    """As torch.matmul, of vectors, matrices and batches of them."""
    if a.dim() == 1:
        return matmul(partials, draws, tiles, a[None], b).squeeze(-1 if b.dim() == 1 else -2)
    if b.dim() == 1:
        return matmul(partials, draws, tiles, a, b[:, None]).squeeze(-1)
    streams = 1 if draws is None else draws.streams
    if b.dim() == 2:
        rows = a.reshape(streams, -1, a.shape[-1])
        product = partials.multiply(rows, b.expand(streams, *b.shape), tiles, draws)
        return product.view(*a.shape[:-1], b.shape[1])
    lead = broadcast_lead(a.shape, b.shape)
    left = a.expand(*lead, *a.shape[-2:]).reshape(-1, *a.shape[-2:])
    right = b.expand(*lead, *b.shape[-2:]).reshape(-1, *b.shape[-2:])
    return partials.multiply(left, right, tiles, draws).view(*lead, a.shape[-2], b.shape[-1])


def linear(
    partials: HalfPartials, draws: Draws | None, tiles: int, x: Tensor, weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As torch.nn.functional.linear; the bias is added to rounded sums."""
    product = matmul(partials, draws, tiles, x, weight.t())
    return product if bias is None else product.add_(bias)


def added_product(
    partials: HalfPartials, draws: Draws | None, tiles: int, added: Tensor, a: Tensor, b: Tensor,
    *, beta: float = 1, alpha: float = 1,
) -> Tensor:  # fmt: skip
    """As torch.addmm, baddbmm and addmv."""
    return matmul(partials, draws, tiles, a, b) * alpha + added * beta


ADDED = ("addmm", "baddbmm", "addmv")
"""Operators whose first argument is added to the product of the others."""

MATMULS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), matmul),
    "linear": linear,
    **dict.fromkeys(ADDED, added_product),
}
"""By the name of the operator, as function(partials, draws, tiles, *its arguments)."""
