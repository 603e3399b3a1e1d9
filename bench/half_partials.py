"""What half partials would change in a matrix product, and what emulating them would cost.

    python bench/half_partials.py [--reduced 64 768 3072]

Poplar's codelet for half partials (`poplin/codelets/ConvPartial1x1Out.cpp`) sums 16 products in float32 and adds
them to a half in memory, so each 16 of the reduced dimension end in a rounding.  The planner also divides that
dimension over tiles, whose sums are then added in float32.  Printed for each size: the relative error of the
product with float32 sums, with all 16s on one tile, and with the dimension on 12 tiles, and how many times as
long the middle one takes.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

GROUP, TILES, ROWS, COLUMNS = 16, 12, 128, 768


def half(x: Tensor) -> Tensor:
    """Rounded to float16."""
    return x.half().float()


def on_one_tile(a: Tensor, b: Tensor) -> Tensor:
    """The product with a half accumulator that is written after every 16 of the reduced dimension."""
    total = torch.zeros(a.shape[0], b.shape[1])
    for left, right in zip(a.split(GROUP, 1), b.split(GROUP)):
        total = half(total + left @ right)
    return total


def on_tiles(a: Tensor, b: Tensor) -> Tensor:
    """The same with the reduced dimension divided over tiles, whose results are added in float32."""
    share = max(GROUP, a.shape[1] // TILES // GROUP * GROUP)
    sums = [on_one_tile(left, right) for left, right in zip(a.split(share, 1), b.split(share))]
    return half(torch.stack(sums).sum(0))


def main() -> None:
    """Print one line for each size of the reduced dimension."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reduced", type=int, nargs="+", default=[64, 768, 3072])
    for size in parser.parse_args().reduced:
        generator = torch.Generator().manual_seed(0)
        a = half(torch.randn(ROWS, size, generator=generator))
        b = half(torch.randn(size, COLUMNS, generator=generator) / size**0.5)
        exact = a.double() @ b.double()
        errors, seconds = [], []
        for product in (lambda a, b: half(a @ b), on_one_tile, on_tiles):
            started = time.process_time()
            error = product(a, b) - exact
            seconds.append(time.process_time() - started)
            errors.append(float(error.norm() / exact.norm()))
        print(
            f"{size:5}: float32 sums {errors[0]:.1e}, one tile {errors[1]:.1e}, {TILES} tiles {errors[2]:.1e}; "
            f"{seconds[1] / seconds[0]:.1f}x the time"
        )


if __name__ == "__main__":
    main()
