"""Matrix products with partial sums of fp16, as `setPartialsType(torch.half)` has Poplar take them.

Poplar's codelet adds up 16 products in float32 and adds that to an fp16 number in memory
(`poplin/codelets/ConvPartial1x1Out.cpp`), so that each 16 of the reduced dimension end in a rounding.  The reduced
dimension is divided over tiles, whose sums are added in float32.  Over how many is for Poplar's planner to say, which
weighs cycles of arithmetic and of exchange; `tiles_of_depth` does so for a whole IPU, with the hardware's rates alone.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.random import ROUNDING, Draws
from bert_ipu.simulator.runtime.rounding import halves_of_spans, round_half, rounded_by

PRODUCTS = 16
"""Products that are added up in float32: the input channels of the matrix unit in fp16."""
NUMBER = 4
"""Added to an operator's number for the draws of its partial sums; the rounding of its results takes those before."""
TILE_ROWS, TILE_COLUMNS = 4, 32
"""Of the result, what one group of random words rounds once."""

TILES = 1472
"""Of an IPU of the second generation."""
MULTIPLICATIONS_PER_CYCLE, CHANNELS = 64, 16
"""Of a tile's matrix unit in fp16, which takes rows and columns of 16."""
EXCHANGE_BYTES = 4
"""That a tile receives per cycle (8 TB/s over all tiles at 1.33 GHz)."""
ADDITIONS_PER_CYCLE = 4
"""Of fp16 numbers, 64 bits at a time."""


@functools.lru_cache(maxsize=4096)
def tiles_of_depth(batches: int, rows: int, columns: int, depth: int) -> int:
    """Over how many tiles the reduced dimension of a product [rows, depth] x [depth, columns] is divided.

    The division with the fewest cycles for multiplying, receiving the operands, and receiving and adding the sums.
    """
    groups = math.ceil(depth / PRODUCTS)
    apart = min(batches, TILES)
    best = (math.inf, 1)
    for shares in range(1, min(groups, TILES // apart) + 1):
        tiles = TILES // (apart * shares)
        fewest = min(
            _cycles(math.ceil(rows / across), math.ceil(columns / (tiles // across)), depth, shares)
            for across in range(1, tiles + 1)
        )
        best = min(best, (fewest, shares))
    return best[1]


def tiles_for(left: torch.Size, right: torch.Size) -> int:
    """The same for operands of torch.matmul."""
    columns = right[-1] if len(right) > 1 else 1
    if len(right) <= 2:
        return tiles_of_depth(1, math.prod(left[:-1]), columns, left[-1])
    batches = math.prod(_lead(left, right))
    return tiles_of_depth(batches, left[-2] if len(left) > 1 else 1, columns, left[-1])


def _lead(left: torch.Size, right: torch.Size) -> torch.Size:
    """The dimensions before those of the matrices, broadcast."""
    lead: torch.Size = torch.broadcast_shapes(left[:-2], right[:-2])  # type: ignore[no-untyped-call]
    return lead


def _cycles(rows: int, columns: int, depth: int, shares: int) -> float:
    """Of one tile with so many rows and columns of the result, and one of the shares of the depth."""
    width = math.ceil(columns / CHANNELS) * CHANNELS
    mine = math.ceil(math.ceil(depth / shares) / PRODUCTS) * PRODUCTS
    cycles = rows * width * mine / MULTIPLICATIONS_PER_CYCLE + 2 * (rows + columns) * mine / EXCHANGE_BYTES
    if shares > 1:
        cycles += rows * columns * (2 / EXCHANGE_BYTES + 1 / ADDITIONS_PER_CYCLE)
    return cycles


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
    lead = _lead(a.shape, b.shape)
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
