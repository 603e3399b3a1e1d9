"""What PopTorch rejects is rejected, with its error types, and the message says what, where and what to do."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from small_models import Calls

import bert_ipu.simulator.poptorch as poptorch
from bert_ipu.simulator.graph.unsupported import INSTEAD

DOCS = Path(__file__).parents[2] / "docs/simulator.md"


class Chain(torch.nn.Module):
    """Layers in blocks on the IPUs given."""

    def __init__(self, *ipus: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in ipus])
        for number, (layer, ipu) in enumerate(zip(self.layers, ipus)):
            poptorch.BeginBlock(layer, f"block{number}", ipu_id=ipu)

    def forward(self, x: torch.Tensor, target: torch.Tensor | None = None) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x if target is None else (x, F.mse_loss(x, target))


X = torch.randn(4, 4)


def _run(function: Callable[[torch.Tensor], Any]) -> Any:
    return poptorch.inferenceModel(torch.nn.Sequential(Calls(function)))(X)


HERE = r"in module '0' \(.*test_facade_mistakes\.py:\d+\)"


@pytest.mark.parametrize(
    ("function", "operator", "instead"),
    [
        (lambda x: torch.linalg.svd(x), "_linalg_svd", "poptorch.CPU"),
        (lambda x: torch.inverse(x), "linalg_inv_ex", "poptorch.CPU"),
        (lambda x: torch.fft.rfft(x), "_fft_r2c", "poptorch.CPU"),
        (lambda x: torch.lgamma(x), "lgamma", "poptorch.CPU"),
        (lambda x: F.grid_sample(x.reshape(1, 1, 4, 4), x.reshape(1, 2, 4, 2)), "grid_sampler_2d", "CPU"),
        (lambda x: torch.multinomial(x.abs(), 2), "multinomial", "draw on the host"),
        (lambda x: torch.kthvalue(x, 2), "kthvalue", "torch.sort"),
        (lambda x: torch.histc(x), "histc", "torch.bincount"),
        (lambda x: F.adaptive_max_pool2d(x[None], 2), "adaptive_max_pool2d", "max_pool2d"),
        (lambda x: F.huber_loss(x, x), "huber_loss", "smooth_l1_loss"),
        (lambda x: x.to_sparse(), "_to_sparse", "dense"),
    ],
)
def test_an_operator_that_the_ipu_lacks_is_named_with_its_place_and_a_way_out(
    function: Callable[[torch.Tensor], Any], operator: str, instead: str
) -> None:
    said = rf"aten::{operator} .*{HERE}.* has no counterpart on the IPU: .*{re.escape(instead)}"
    with pytest.raises(poptorch.Error, match=said):
        _run(function)


def test_the_operators_refused_are_torchs_and_are_listed() -> None:
    listed = DOCS.read_text()
    for name in " ".join(INSTEAD.values()).split():
        assert hasattr(torch.ops.aten, name), f"torch has no operator {name}"
        assert f"`{name}`" in listed, f"docs/simulator.md does not list {name}"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.numpy(), r"numpy\(\) reads a tensor's values"),
        (lambda x: numpy.asarray(x), "NumPy reads a tensor's values"),
        (lambda x: x.tolist(), r"tolist\(\) reads a tensor's values"),
        (lambda x: x * x.sum().item(), "needs a tensor's value on the host"),
        (lambda x: x if x.sum() > 0 else -x, "needs a tensor's value on the host"),
        (lambda x: x[x > 0], "shape depends on its input's values"),
        (lambda x: x.sum().backward(), r"backward\(\) is called inside a model's forward"),
        (lambda x: x[:0], r"Zero-sized tensors are unsupported \(Got shape \[0, 4\]\).*aten::slice"),
        (lambda x: x + torch.ones(4, 4, device="cpu"), r"(?s)Expected an IPU tensor but got.*aten::add"),
    ],
)
def test_what_a_forward_cannot_do_is_said_with_its_place(
    function: Callable[[torch.Tensor], Any], said: str
) -> None:
    with pytest.raises(poptorch.Error, match=f"(?s){said}") as error:
        _run(function)
    assert re.search(HERE, str(error.value)), error.value


def test_an_operator_whose_gradient_cannot_be_traced_is_named_with_its_place() -> None:
    @torch.library.custom_op("test_facade_mistakes::triple", mutates_args=())
    def triple(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    triple.register_fake(torch.empty_like)

    class Tripled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.mse_loss(triple(self.weight * x), x)

    torch.testing.assert_close(poptorch.inferenceModel(Tripled())(X), (2 * X).square().mean())
    said = r"The gradient of test_facade_mistakes\.triple\S* \(.*test_facade_mistakes\.py:\d+\) cannot be compiled"
    with pytest.raises(poptorch.Error, match=said):
        poptorch.trainingModel(Tripled())(X)


def test_a_pipeline_must_not_go_back() -> None:
    options = poptorch.Options().deviceIterations(4)
    with pytest.raises(poptorch.Error, match=r"goes back from stage 1 to stage 0: .*'block2'.*AutoIncrement"):
        poptorch.inferenceModel(Chain(0, 1, 0), options)(X)
    increment = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
    for strategy in (increment, poptorch.ShardedExecution()):
        options = poptorch.Options().deviceIterations(4).setExecutionStrategy(strategy)
        assert poptorch.inferenceModel(Chain(0, 1, 0), options)(X).shape == (4, 4)


def test_an_optimizer_of_another_kind_is_refused() -> None:
    model = Chain(0)
    trainer = poptorch.trainingModel(model, poptorch.Options(), poptorch.optim.SGD(model.parameters(), lr=0.1))
    trainer(X, X)
    groups = [{"params": [each]} for each in model.parameters()]
    with pytest.raises(
        poptorch.Error, match=r"of kind SGD2, the new one is of kind ADAMW\. Call destroy"
    ):
        trainer.setOptimizer(poptorch.optim.AdamW(model.parameters(), lr=0.1))
    with pytest.raises(poptorch.Error, match="1 parameter groups, the new one has 2"):
        trainer.setOptimizer(poptorch.optim.SGD(groups, lr=0.1))
    trainer.setOptimizer(poptorch.optim.SGD(model.parameters(), lr=0.2))
    trainer(X, X)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: poptorch.optim.AdamW(p, lr=0.1, loss_scaling=0.0), "Loss scaling cannot be 0"),
        (lambda p: torch.optim.Adam(p, lr=0.1, eps=0.0), "eps of the optimizer's group 0 is 0.0"),
        (lambda p: poptorch.optim.SGD([{"params": p, "lr": -0.1}], lr=0.1), "learningRate .* is -0.1"),
    ],
)
def test_values_that_popart_refuses_are_refused(make: Any, said: str) -> None:
    """PopART's `Adam::runValueChecks`, `SGD::runValueChecks` and `Optimizer::Optimizer`."""
    model = Chain(0)
    with pytest.raises(poptorch.Error, match=said):
        poptorch.trainingModel(model, poptorch.Options(), make(list(model.parameters())))(X, X)


class Scaled(torch.nn.Module):
    """A loss, and twice of it."""

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.wrapped = wrapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        twice = 2 * F.mse_loss(self.layer(x), x)
        return poptorch.identity_loss(twice, reduction="none") if self.wrapped else twice


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_follows_the_last_loss_is_not_minimised_and_is_said(
    caplog: pytest.LogCaptureFixture, wrapped: bool
) -> None:
    """PopTorch's `RemoveSurplusIdentityLosses.cpp`: training starts from the last loss function's result."""
    model = Scaled(wrapped)
    reference = copy.deepcopy(model.layer)
    trained = poptorch.trainingModel(model, poptorch.Options(), torch.optim.SGD(model.parameters(), lr=1.0))
    trained(X)
    ((2 if wrapped else 1) * F.mse_loss(reference(X), X)).backward()
    expected = reference.weight - reference.weight.grad
    torch.testing.assert_close(model.layer.weight.detach(), expected.detach())
    assert ("changes nothing in training" in caplog.text) is not wrapped


@pytest.mark.parametrize("period", [3, 4])
def test_a_return_period_must_divide_the_iterations(period: int) -> None:
    """PopART's `DataFlow::isValidAnchorReturnPeriod`."""
    options = poptorch.Options().deviceIterations(2).outputMode(poptorch.OutputMode.EveryN, period)
    with pytest.raises(poptorch.Error, match=rf"must be a multiple of {period}"):
        poptorch.inferenceModel(Chain(0), options)(X)


@pytest.mark.parametrize(
    ("make", "change", "said"),
    [  # torch's own are constant where they have their default; PopTorch's where the constructor was not told.
        (
            torch.optim.AdamW,
            {"betas": (0.5, 0.9)},
            "beta1 of group 0 is compiled in as 0.9, and is",
        ),
        (
            torch.optim.SGD,
            {"weight_decay": 0.1},
            "was compiled in as a constant, 0, and is a variable now, 0.1",
        ),
        (poptorch.optim.Adam, {"eps": 1e-5}, "eps of group 0 is compiled in as"),
        (poptorch.optim.LAMB, {"lr": 0.5}, None),
        (lambda p, lr: poptorch.optim.Adam(p, lr=lr, eps=1e-8), {"eps": 1e-5}, None),
    ],
)
def test_a_constant_attribute_cannot_change_after_compilation(
    make: Any, change: Any, said: str | None
) -> None:
    """PopTorch's user guide, "Constant attributes"; the errors are those of PopART's `OptimizerValue`."""
    model = Chain(0)
    optimizer = make(model.parameters(), lr=0.1)
    trained = poptorch.trainingModel(model, poptorch.Options(), optimizer)
    trained(X, X)
    optimizer.param_groups[0].update(change)
    if said is None:
        trained.setOptimizer(optimizer)
    else:
        with pytest.raises(poptorch.Error, match=said):
            trained.setOptimizer(optimizer)
    trained(X, X)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda o: o.deviceIteration(3), AttributeError, "Did you mean deviceIterations"),
        (lambda o: o._Popart.set("enableOutlinin", True), poptorch.Error, "did you mean enableOutlining"),
        (
            lambda o: o._Popart.setPatterns({"TiedGathr": True}),
            poptorch.Error,
            "Unknown pattern TiedGathr.*TiedGather",
        ),
        (lambda o: o.deviceIterations(0), poptorch.Error, r"deviceIterations\(0\): it must be 1 or more"),
        (lambda o: o.replicationFactor(-1), poptorch.Error, r"replicationFactor\(-1\): it must be 1 or more"),
        (lambda o: o.anchorTensor("a", "nope"), poptorch.Error, "no tensor called 'nope'.*getTensorNames"),
    ],
)
def test_an_option_that_is_none_is_refused(change: Any, error: type[Exception], said: str) -> None:
    options = poptorch.Options()
    with pytest.raises(error, match=said):
        change(options)
        poptorch.inferenceModel(Chain(0), options)(X)


def test_options_in_use_cannot_be_changed() -> None:
    options = poptorch.Options()
    poptorch.inferenceModel(Chain(0), options)
    with pytest.raises(AttributeError, match=r"Can't modify frozen Options: .*options.clone\(\)"):
        options.deviceIterations(2)
    with pytest.raises(AttributeError, match=r"Can't modify frozen Options: .*options.clone\(\)"):
        options.Training.gradientAccumulation(2)


def test_cycles_are_not_made_up() -> None:
    model = poptorch.inferenceModel(Chain(0), poptorch.Options().logCycleCount(True))
    model(X)
    with pytest.raises(poptorch.SimulatorUnsupported, match="no model of how long an IPU takes"):
        model.cycleCount()
