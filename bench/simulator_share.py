"""What share of the machine's matrix products a training step reaches.

    python bench/simulator_share.py [--model base-128] [--rounds 5] [--threads 2]

The rate of torch's products is measured in the same run, in turns with the steps: of float32 and of bf16 matrices, the
better of the two counts.  Useful operations are those of products alone, so that everything else a step does
lowers the share.  It can be above 100%: "fast" numerics may multiply in fp16, which torch does not on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from simulator_workloads import WORKLOADS, interleaved, simulator_step

ROWS, INNER, COLUMNS, REPEATED = 1024, 768, 3072, 8


def product(dtype: Any) -> Callable[[], None]:
    """Several products of a layer's size."""
    import torch

    left, right = torch.randn(ROWS, INNER).to(dtype), torch.randn(INNER, COLUMNS).to(dtype)
    out = torch.empty(ROWS, COLUMNS, dtype=dtype)

    def multiply() -> None:
        for _ in range(REPEATED):
            torch.mm(left, right, out=out)

    return multiply


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base-128", choices=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    work = WORKLOADS[args.model]
    steps = [simulator_step(work, dropout=dropout) for dropout in (0.0, 0.1)]
    float32, bf16, without, with_dropout = interleaved(
        [product(torch.float32), product(torch.bfloat16), *steps], args.rounds
    )
    operations = 2.0 * ROWS * INNER * COLUMNS * REPEATED
    best = min(float32.wall, bf16.wall)
    rate = operations / best
    print(f"torch's products: float32 {operations / float32.wall / 1e9:.0f} GFLOP/s, ", end="")
    print(f"bf16 {operations / bf16.wall / 1e9:.0f} GFLOP/s, {args.threads} threads")
    print("| what | asked | share | seconds per step: wall (CPU) |")
    print("|---|---|---|---|")
    for what, asked, taken in (("without dropout", 80, without), ("with dropout 0.1", 72, with_dropout)):
        print(f"| {args.model}, {what} | {asked}% | {work.flops / taken.wall / rate:.0%} | {taken} |")


if __name__ == "__main__":
    main()
