"""Performance counters: as many times for each input and output as PopTorch's own test_perf_counters.py expects."""

from __future__ import annotations

import pytest
import torch

from bert_ipu.simulator import poptorch
from bert_ipu.simulator.poptorch import OutputMode

X = torch.ones(16, 4)


class Product(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * y


def options(iterations: int, replicas: int = 1) -> poptorch.Options:
    made = poptorch.Options().deviceIterations(iterations)
    return made.replicationFactor(replicas)


def sizes(model: poptorch.PoplarExecutor) -> dict[str, list[int]]:
    return {event: [len(times) for times in found] for event, found in model.getPerfCounters().items()}


@pytest.mark.parametrize(
    ("mode", "period", "returned"),
    [(OutputMode.All, None, 8), (OutputMode.Final, None, 2), (OutputMode.Sum, None, 2), (OutputMode.EveryN, 2, 4)],
)  # fmt: skip
def test_every_transfer_has_its_times(mode: OutputMode, period: int | None, returned: int) -> None:
    model = poptorch.inferenceModel(Product(), options(4, replicas=2).outputMode(mode, period))
    model(X, X)
    taken, given = [8, 8], [returned]
    assert sizes(model) == {
        "input": taken,
        "input_complete": taken,
        "output": given,
        "output_complete": given,
    }
    for least, greatest, mean in (model.getLatency(), model.getComputeLatency(), model.getHostIpuLatency()):
        assert least <= mean <= greatest


def test_synthetic_data_takes_no_time_on_its_way() -> None:
    model = poptorch.inferenceModel(Product(), options(16).enableSyntheticData(True))
    model(X, X)
    assert sizes(model) == {"input": [0, 0], "input_complete": [0, 0], "output": [0], "output_complete": [0]}
    assert model.getLatency() == (0.0, 0.0, 0.0)


def test_before_the_first_call_there_are_no_times() -> None:
    model = poptorch.inferenceModel(Product(), options(1))
    assert set(map(str, model.getPerfCounters().values())) == {"[[]]"}
