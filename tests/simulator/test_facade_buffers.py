"""Buffers of models: what replicas share, what the host may write, and what is no variable on an IPU.

The oracle is PopTorch: `tests/buffers_test.py`, `poptorch/source/InplaceOps.cpp` for replicas, and
`JITDispatch::addParameter` for types.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bert_ipu.simulator.poptorch as poptorch

ROWS = torch.tensor([[9.0, 9.0], [2.0, 2.0]])


class Sums(nn.Module):
    """Adds its input to a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 2, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x.to(self.total.dtype))
        return self.total + 0


class Scales(nn.Module):
    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_replicas_that_share_buffers_may_not_write_them() -> None:
    """Nor would they differ, were their inputs the same."""
    broadcast = poptorch.inferenceModel(Sums(), poptorch.Options().replicationFactor(2))
    with pytest.raises(
        poptorch.Error, match=r"does not support broadcasting buffers.* The forward writes total\."
    ):
        broadcast(ROWS)
    same_inputs = (
        poptorch.Options().replicationFactor(2).inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    )
    assert torch.equal(
        poptorch.inferenceModel(Sums(), same_inputs)(ROWS[:1]), torch.cat([ROWS[:1], ROWS[:1]])
    )


def test_replicas_train_with_batch_norms_statistics() -> None:
    """Which are updated at the end of a micro-batch."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            out = self.norm(x)
            return out, poptorch.identity_loss(out.sum(), "mean")

    model = Normed()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    poptorch.trainingModel(model, poptorch.Options().replicationFactor(2), optimizer)(torch.rand(8, 2))
    assert (model.norm.running_mean != 0).all()


def test_without_broadcasting_each_replica_has_a_buffer_of_its_own() -> None:
    """Of the model's shape, all with its first value; the host gets the first replica's."""
    model = Sums()
    executor = poptorch.inferenceModel(model, poptorch.Options().replicationFactor(2).broadcastBuffers(False))
    assert torch.equal(executor(ROWS), ROWS)
    assert torch.equal(executor(ROWS), 2 * ROWS)
    executor.copyWeightsToHost()
    assert torch.equal(model.total, 2 * ROWS[:1])


def test_whole_numbers_of_a_model_are_constants(capsys: pytest.CaptureFixture[str]) -> None:
    """As they were when the model was compiled, even on several replicas."""
    model = Sums(torch.int32)
    executor = poptorch.inferenceModel(model, poptorch.Options().replicationFactor(2))
    assert torch.equal(executor(ROWS), ROWS.int())
    model.total.fill_(5)
    executor.copyWeightsToDevice()
    assert torch.equal(executor(ROWS), ROWS.int())
    assert "are constants of the program: total." in capsys.readouterr().err


def test_an_executable_of_other_constants_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    for factor in (2, 3):
        options = poptorch.Options().enableExecutableCaching(str(tmp_path))
        executor = poptorch.inferenceModel(Scales(torch.tensor([factor])), options)
        assert torch.equal(executor(ROWS), factor * ROWS)


def test_wide_types_are_said_to_become_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    poptorch.inferenceModel(Scales(torch.ones(1).double()))(ROWS.long())
    said = capsys.readouterr().err
    assert "The IPU has no int64, and computes with int32: x" in said
    assert "The IPU has no float64, and computes with float32: factor" in said


def test_the_host_updates_the_buffers_that_are_named() -> None:
    model = Scales(torch.full((1,), 2.0))
    executor = poptorch.inferenceModel(model, poptorch.Options().updatableNamedBuffers(["factor"]))
    executor.compile(ROWS)
    model.factor.fill_(3)
    executor.copyNamedBuffersToDevice()
    assert torch.equal(executor(ROWS), 3 * ROWS)


@pytest.mark.parametrize("factor", [torch.ones(1), torch.tensor([2])])
def test_names_that_no_variable_buffer_has_are_refused(factor: Tensor) -> None:
    name = "factor" if factor.dtype == torch.int64 else "mean"
    executor = poptorch.inferenceModel(Scales(factor), poptorch.Options().updatableNamedBuffers([name]))
    with pytest.raises(poptorch.Error, match=rf"updatableNamedBuffers\(\) names \['{name}'\]"):
        executor.compile(ROWS)


def test_the_constants_of_a_deep_model_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Each batch norm has a counter, of whole numbers."""
    model = torch.nn.Sequential(*(torch.nn.BatchNorm1d(4) for _ in range(20)))
    poptorch.inferenceModel(model.eval())(torch.ones(2, 4))
    said = capsys.readouterr().err
    assert "0.num_batches_tracked, 1.num_batches_tracked" in said and "and 16 more" in said
    assert "19.num_batches_tracked" not in said
