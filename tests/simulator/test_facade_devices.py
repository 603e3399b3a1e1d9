"""Inside a forward everything of the model is on the IPU, and says so.

PopTorch moves the parameters and buffers there before it enters the forward (`_compileWithDispatch` in its
`python/_poplar_executor.py`). Without a device in mind, programs ask them where to make their tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bert_ipu.simulator.poptorch as poptorch


class Holder(nn.Module):
    """A parameter, a buffer and a tensor that is neither; forward is `of(self, x)`."""

    def __init__(self, of: Callable[[Holder, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("offset", torch.tensor([10.0, 20.0]))
        self.plain = torch.tensor([100.0, 200.0])
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self, x)


def _moves_itself(model: Holder, x: Tensor) -> Tensor:
    model.weight = model.weight.to(x.device)
    model.offset = model.offset.to(device=x.device, dtype=x.dtype)
    return x + model.weight + model.offset


X, WEIGHT, OFFSET, PLAIN = (torch.tensor(v) for v in ([3.0, 4.0], [1.0, 2.0], [10.0, 20.0], [100.0, 200.0]))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (lambda m, x: x + torch.ones(2, device=m.weight.device), X + 1),
        (lambda m, x: x + torch.ones(2, device=next(m.parameters()).device), X + 1),
        (lambda m, x: x + torch.arange(2, device=m.offset.device), X + torch.arange(2)),
        (lambda m, x: x + torch.tensor([5.0, 6.0], device=m.weight.device), X + torch.tensor([5.0, 6.0])),
        (lambda m, x: x.to(m.weight.device) + m.plain.to(m.weight.device), X + PLAIN),
        (lambda m, x: x.int().to(m.weight) + m.weight.to(x), X + WEIGHT),
        (lambda m, x: x.half().to(m.offset, copy=True), X),
        (lambda m, x: m.plain.to(x) + m.weight.half().to(x), PLAIN + WEIGHT),
        (_moves_itself, X + WEIGHT + OFFSET),
    ],
    ids=["weight", "parameters", "buffer", "tensor", "to", "to other", "copy", "constant", "assigned"],
)
def test_the_models_tensors_are_on_the_ipu(of: Callable[[Holder, Tensor], Tensor], expected: Tensor) -> None:
    model = Holder(of)
    options = poptorch.Options()
    for _ in range(2):  # the model is as it was after a compile
        assert torch.equal(poptorch.inferenceModel(model, options.clone())(X), expected)
    assert isinstance(model.weight, nn.Parameter)
    assert model.weight.device.type == model.offset.device.type == "cpu"


def test_each_tensor_says_where_it_is() -> None:
    seen: list[tuple[str, bool, bool]] = []

    def looks(model: Holder, x: Tensor) -> Tensor:
        for tensor in (x, model.weight, model.offset, model.plain):
            seen.append((str(tensor.device), tensor.is_ipu, tensor.is_cpu))
        return x

    poptorch.inferenceModel(Holder(looks))(X)
    assert seen == [("ipu:0", True, False)] * 3 + [("cpu", False, True)]


def test_a_buffer_that_was_written_is_assigned_to_itself() -> None:
    def counts(model: Holder, x: Tensor) -> Tensor:
        model.offset.add_(1)
        model.offset = model.offset.to(x.device)
        return x + model.offset

    model = poptorch.inferenceModel(Holder(counts))
    assert torch.equal(model(X), X + OFFSET + 1)
    assert torch.equal(model(X), X + OFFSET + 2)


def test_a_buffer_written_on_an_early_stage_adds_no_stage() -> None:
    """Two stages and two more for the gradients, one of them shared: PopTorch asks for 3 micro-batches."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            with poptorch.Block("first", ipu_id=0):
                x = self.norm(x)
                self.calls.add_(1)
            with poptorch.Block("last", ipu_id=1):
                return nn.functional.cross_entropy(self.last(x), labels)

    options = poptorch.Options()
    options.setExecutionStrategy(poptorch.PipelinedExecution("first", "last"))
    options.Training.gradientAccumulation(3)
    model = Normed()
    poptorch.trainingModel(model, options)(torch.randn(6, 4), torch.ones(6, dtype=torch.long))
    assert model.calls == 3
    assert model.norm.running_mean.all()


def test_an_environment_that_says_nothing_about_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "yes")
    model = poptorch.inferenceModel(nn.Identity())
    with pytest.raises(poptorch.Error, match="POPTORCH_IPU_MODEL is 'yes'; set it to 1"):
        model(torch.ones(2))
