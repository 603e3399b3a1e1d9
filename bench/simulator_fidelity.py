"""What the IPU's half precision costs: a step of "ipu" numerics against the plain float32 step.

    python bench/simulator_fidelity.py [--model base-128] [--rounds 5] [--threads 2]

Both are the same model on the simulator: once in float16, rounded stochastically after each operator, once in float32.
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
    plain = simulator_step(work, numerics="ipu", half=False)
    ours, theirs = interleaved([faithful, plain], args.rounds)
    print("| model | asked | wall ratio | CPU ratio | seconds per step: wall (CPU) |")
    print("|---|---|---|---|---|")
    print(
        f"| {args.model} | {ASKED}x | {ours.wall / theirs.wall:.2f}x | {ours.cpu / theirs.cpu:.2f}x | "
        f"float16 rounded stochastically {ours}, float32 {theirs} |"
    )


if __name__ == "__main__":
    main()
