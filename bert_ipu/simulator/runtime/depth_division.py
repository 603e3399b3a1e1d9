"""Over how many tiles of an IPU the reduced dimension of a matrix product is divided.

That is for Poplar's planner to say (`poplin/ConvPlan.cpp`), which knows many kinds of plans and weighs their cycles and
memory.  Here one kind is weighed, rows, columns and depth cut into equal parts, by the hardware's rates alone.
"""

from __future__ import annotations

import functools
import math

import torch

TILES = 1472
"""Of an IPU of the second generation (PopTorch's `popart_compiler/source/Utils.cpp`)."""
PRODUCTS = 16
"""What a tile's matrix unit adds up at once: input channels in fp16."""
CHANNELS = 16
"""Columns that it computes side by side, each 4 cycles (`poplin/PerformanceEstimation.hpp`)."""
MULTIPLICATIONS_PER_CYCLE = 64
"""16 x 16 in 4 cycles; at 1.33 GHz that makes the published 250 TFLOP/s of an IPU."""
EXCHANGE_BYTES = 4
"""That a tile receives per cycle: the published 8 TB/s, over all tiles."""
ADDITIONS_PER_CYCLE = 4
"""Of fp16 numbers: a tile's data path is 64 bits wide (`popops/PerformanceEstimation.cpp`)."""


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
    batches = math.prod(broadcast_lead(left, right))
    return tiles_of_depth(batches, left[-2] if len(left) > 1 else 1, columns, left[-1])


def broadcast_lead(left: torch.Size, right: torch.Size) -> torch.Size:
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
