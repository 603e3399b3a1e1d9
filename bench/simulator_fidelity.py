"""What the IPU's half precision costs: a step of "ipu" numerics against the plain float32 step.

    python bench/simulator_fidelity.py [--model base-128] [--rounds 5] [--threads 2]

All are the same model on the simulator: in float16, rounded stochastically after each operator; with the sums inside
matrix products rounded too (half partials), for which nothing is asked; and in float32.
"""

from __future__ import annotations

import argparse

from simulator_workloads import WORKLOADS, interleaved, simulator_step

ASKED = 1.15


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
    faithful = simulator_step(work, numerics="ipu")
    summed = simulator_step(work, numerics="ipu", half_partials=True)
    plain = simulator_step(work, numerics="ipu", half=False)
    ours, with_sums, theirs = interleaved([faithful, summed, plain], args.rounds)
    print("| model | float16 | asked | wall ratio | CPU ratio | seconds per step: wall (CPU) |")
    print("|---|---|---|---|---|---|")
    for name, asked, time in (("float32 sums", f"{ASKED}x", ours), ("half partials", "", with_sums)):
        print(
            f"| {args.model} | {name} | {asked} | {time.wall / theirs.wall:.2f}x | {time.cpu / theirs.cpu:.2f}x | "
            f"{time}, float32 {theirs} |"
        )


if __name__ == "__main__":
    main()
