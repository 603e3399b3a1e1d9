"""A loop of plain torch, which training through PopTorch's API is held against."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

import bert_ipu.simulator.poptorch as poptorch


def trains_like_torch(
    model: torch.nn.Module,
    *inputs: torch.Tensor,
    accumulation: int = 1,
    optimizer: Callable[..., Any] = torch.optim.SGD,
) -> None:
    """Hold three weight updates to torch's: losses of all micro-batches, parameters and buffers."""
    options = poptorch.Options().outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(accumulation)
    reference = copy.deepcopy(model)
    trained = poptorch.trainingModel(model, options, optimizer(model.parameters(), lr=0.1))
    theirs = optimizer(reference.parameters(), lr=0.1)
    for _ in range(3):
        got = trained(*inputs)
        theirs.zero_grad()
        losses = [reference(*part) for part in zip(*(tensor.chunk(accumulation) for tensor in inputs))]
        (sum(losses) / accumulation).backward()  # type: ignore[union-attr]
        theirs.step()
        torch.testing.assert_close(got.reshape(-1), torch.stack(losses).detach())
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(
            model.state_dict()[name], tensor, msg=lambda text, name=name: f"{name}: {text}"
        )
