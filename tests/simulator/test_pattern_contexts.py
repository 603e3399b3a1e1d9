"""A pattern may give an operator of the forward to the weight update, as PopART's `AccumulateOuterFragment` does."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from custom_op_builds import OPS, STRICT
from torch import Tensor, nn

import bert_ipu.simulator.poptorch as poptorch
from bert_ipu.simulator.custom_ops import CustomOpError, load_library
from bert_ipu.simulator.native.build import compile_library

pytestmark = pytest.mark.cpp

FACTOR, LR = 0.75, 0.5


@cache
def load_average() -> None:
    load_library(compile_library([OPS / "average_pattern.cpp"], flags=STRICT))


class Teacher(nn.Module):
    """A student that imitates the moving average of its own weights."""

    def __init__(self, reads_result: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.student, self.teacher = nn.Linear(3, 2), nn.Linear(3, 2)
        self.teacher.requires_grad_(False)
        self.reads_result = reads_result

    def forward(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        for average, weight in zip(self.teacher.parameters(), self.student.parameters()):
            result = poptorch.custom_op(
                [average, weight, factor], "Averaged", "test.average", 1, example_outputs=[average]
            )[0]
        wanted = self.teacher(x) + (result if self.reads_result else 0)
        return wanted, nn.functional.mse_loss(self.student(x), wanted)


@pytest.mark.parametrize(("accumulation", "replicas"), [(1, 1), (3, 1), (2, 2)])
def test_averages_are_taken_once_per_weight_update(accumulation: int, replicas: int) -> None:
    """Every micro-batch sees the old average; the new one is made of the weights before their update."""
    load_average()
    model = Teacher()
    reference = copy.deepcopy(model)
    options = poptorch.Options().replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    options.outputMode(poptorch.OutputMode.All)
    trained = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.student.parameters(), lr=LR))
    optimizer = torch.optim.SGD(reference.student.parameters(), lr=LR)
    rows = 2 * accumulation * replicas
    for _ in range(4):
        x = torch.randn(rows, 3)
        wanted, _ = trained(x, torch.full((rows // 2,), FACTOR))
        expected = reference.teacher(x)
        torch.testing.assert_close(wanted, expected)
        optimizer.zero_grad()
        nn.functional.mse_loss(reference.student(x), expected).backward()
        with torch.no_grad():
            for average, weight in zip(reference.teacher.parameters(), reference.student.parameters()):
                average.mul_(FACTOR).add_(weight, alpha=1 - FACTOR)
        optimizer.step()
    trained.copyWeightsToHost()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)


def test_a_micro_batch_cannot_read_what_runs_after_it() -> None:
    load_average()
    model = Teacher(reads_result=True)
    options = poptorch.Options()
    trained = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.student.parameters(), lr=LR))
    with pytest.raises(CustomOpError, match=r"reads the result of Accumulate, which runs after the micro-batch"):
        trained(torch.randn(2, 3), torch.tensor([FACTOR]))
