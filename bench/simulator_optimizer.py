"""How long the optimizer's update of BERT-base takes: 109 million parameters, AdamW and LAMB.

    python bench/simulator_optimizer.py [--rounds 10] [--threads 2]

The update alone, by the kernels that a training program runs; torch.optim.AdamW(fused=True) in turns with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from simulator_workloads import interleaved

ASKED = {"AdamW": 0.100, "LAMB": 0.250}


def update(name: str, shapes: list[tuple[int, ...]]) -> Callable[[], None]:
    """One update of all weights by our kernels."""
    import torch

    from bert_ipu.simulator.runtime.fused_adam import adam_kernel
    from bert_ipu.simulator.runtime.native import load_kernels

    kernels = load_kernels()
    if kernels is None:
        raise SystemExit("no C++ compiler: there are no kernels to measure")
    function = adam_kernel(kernels, lamb=name == "LAMB", corrected=True)
    states = [[torch.rand(shape) for _ in range(4)] + [torch.zeros(())] for shape in shapes]
    norm = 10.0 if name == "LAMB" else None

    def run() -> None:
        for weight, gradient, first, second, step in states:
            function(weight, gradient, first, second, step, 1.0, 0.9, 0.999, 1e-6, 0.01, 1e-4, norm)

    return run


def torch_update(shapes: list[tuple[int, ...]]) -> Callable[[], None]:
    """The same by torch's fused AdamW."""
    import torch

    weights = [torch.rand(shape, requires_grad=True) for shape in shapes]
    for weight in weights:
        weight.grad = torch.rand(weight.shape)
    optimizer = torch.optim.AdamW(weights, fused=True)
    return lambda: optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    import torch

    from bert_ipu.config import ModelConfig
    from bert_ipu.model import BertForPreTraining

    torch.set_num_threads(args.threads)
    with torch.device("meta"):
        model = BertForPreTraining(ModelConfig())
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    count = sum(parameter.numel() for parameter in model.parameters())
    *ours, theirs = interleaved(
        [*(update(name, shapes) for name in ASKED), torch_update(shapes)], args.rounds
    )
    print(f"{count / 1e6:.1f} million parameters, {args.threads} threads; milliseconds: wall (CPU)")
    print("| optimizer | asked | measured |")
    print("|---|---|---|")
    for (name, asked), taken in zip(ASKED.items(), ours):
        print(f"| {name} | {asked * 1e3:.0f} | {taken.wall * 1e3:.0f} ({taken.cpu * 1e3:.0f}) |")
    print(f"| torch.optim.AdamW(fused=True) | - | {theirs.wall * 1e3:.0f} ({theirs.cpu * 1e3:.0f}) |")


if __name__ == "__main__":
    main()
