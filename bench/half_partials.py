"""What half partials change in a matrix product, and what simulating them costs.

    python bench/half_partials.py [--reduced 64 768 3072 30528] [--threads 1]

For a product [512, reduced] x [reduced, 768], the relative error with float32 sums, with fp16 sums on one tile, and
with the reduced dimension on as many tiles as `tiles_of_depth` says, rounded to the nearest and at random; and how
many times as long as torch's float32 product the last two take, as the median of rounds in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from bert_ipu.simulator.runtime.depth_division import tiles_of_depth
from bert_ipu.simulator.runtime.half_partials import HalfPartials
from bert_ipu.simulator.runtime.native import load_kernels
from bert_ipu.simulator.runtime.random import Draws, make_places, seed_key
from bert_ipu.simulator.runtime.rounding import HALF_MAX

ROWS, COLUMNS, ROUNDS = 512, 768, 9


def main() -> None:
    """Print one line for each size of the reduced dimension."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reduced", type=int, nargs="+", default=[64, 768, 3072, 30528])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kernels = load_kernels()
    partials = HalfPartials(kernels, 0, HALF_MAX)
    draws = Draws(seed_key(0), make_places([(0, 0)]), kernels)
    for size in args.reduced:
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(1, ROWS, size, generator=generator).half().float()
        b = (torch.randn(1, size, COLUMNS, generator=generator) / size**0.5).half().float()
        print(f"{size:5}:", compared(a, b, partials, draws))


def compared(a: Tensor, b: Tensor, partials: HalfPartials, draws: Draws) -> str:
    """Errors and times of one product."""
    tiles = tiles_of_depth(*a.shape[:2], b.shape[2], a.shape[2])
    ways: dict[str, Callable[[], Tensor]] = {
        "float32 sums": lambda: torch.bmm(a, b).half().float(),
        "one tile": lambda: partials.multiply(a, b, 1, None),
        f"{tiles} tiles": lambda: partials.multiply(a, b, tiles, None),
        f"{tiles} tiles, at random": lambda: partials.multiply(a, b, tiles, draws),
    }
    exact = a.double() @ b.double()
    errors = [f"{name} {float((way() - exact).norm() / exact.norm()):.1e}" for name, way in ways.items()]
    plain, nearest, stochastic = medians([lambda: torch.bmm(a, b), *list(ways.values())[2:]])
    return f"{', '.join(errors)}; {nearest / plain:.1f}x and {stochastic / plain:.1f}x the time"


def medians(ways: list[Callable[[], Tensor]]) -> list[float]:
    """Seconds of each, of rounds in which they take turns."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for taken, way in zip(seconds, ways):
            started = time.perf_counter()
            way()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


if __name__ == "__main__":
    main()
