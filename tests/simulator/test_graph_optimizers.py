"""Compiled optimizers against torch.optim: the same weights after some steps, however the batch is split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lamb_reference import Lamb
from torch import Tensor, nn

from bert_ipu.simulator.compiler import compile_program
from bert_ipu.simulator.graph.ir import Reduction
from bert_ipu.simulator.graph.optimizer_spec import HyperParameter, OptimizerSpec
from bert_ipu.simulator.graph.request import CompileRequest
from bert_ipu.simulator.params import SimulatorParams
from bert_ipu.simulator.runtime.engine import Executable
from bert_ipu.simulator.runtime.settings import ExecutionSettings

STEPS, MICRO_BATCH = 4, 3


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.second(torch.tanh(self.first(x))), y)


def attributes(**values: float) -> dict[str, HyperParameter]:
    """Attributes of PopTorch's names; the learning rate is variable, as PopTorch's is."""
    return {name: HyperParameter(value, name != "learningRate") for name, value in values.items()}


def data(micro_batches: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    size = micro_batches * MICRO_BATCH
    x = torch.randn(STEPS, size, 4, generator=generator)
    y = torch.randint(0, 3, (STEPS, size), generator=generator)
    return list(zip(x, y))


def simulate(spec: OptimizerSpec, reduction: Reduction) -> dict[str, Tensor]:
    module = Classifier()
    example = (torch.zeros(MICRO_BATCH, 4), torch.zeros(MICRO_BATCH, dtype=torch.int64))
    program = compile_program(
        CompileRequest(module.forward, module, example, training=True, optimizer=spec, reduction=reduction)
    )
    settings = ExecutionSettings(
        replication_factor=reduction.replicas, gradient_accumulation=reduction.accumulation
    )
    executable = Executable(program, settings, SimulatorParams())
    for x, y in data(reduction.accumulation * reduction.replicas):
        executable.run([x, y])
    return {name: executable.read_variable(name) for name, _ in module.named_parameters()}


def reference(
    make: Callable[..., torch.optim.Optimizer], micro_batches: int, clip: float | None = None
) -> dict[str, Tensor]:
    module = Classifier()
    optimizer = make(module.parameters())
    for x, y in data(micro_batches):
        optimizer.zero_grad()
        module(x, y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return {name: p.detach() for name, p in module.named_parameters()}


def spec(kind: str, loss_scaling: float = 1.0, **values: Any) -> OptimizerSpec:
    own = {k: values.pop(k) for k in ("max_grad_norm", "tf_variant") if k in values}
    names = dict.fromkeys((name for name, _ in Classifier().named_parameters()), 0)
    return OptimizerSpec(kind, (attributes(**values),), names, HyperParameter(loss_scaling), **own)


SGD = {"learningRate": 0.1, "weightDecay": 0.02}
ADAM = {"learningRate": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weightDecay": 0.1}
RMS = {"learningRate": 0.01, "alpha": 0.9, "eps": 1e-6, "weightDecay": 0.1}

OPTIMIZERS: dict[str, tuple[OptimizerSpec, Callable[..., torch.optim.Optimizer]]] = {
    "SGD": (spec("SGD2", **SGD), lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.02)),
    "SGD, loss scaled": (spec("SGD2", 64.0, **SGD), lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.02)),
    "SGD, separate momentum": (
        spec("SGD2", 64.0, **SGD, momentum=0.9, dampening=0.0),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.02),
    ),
    "SGD, combined momentum": (
        spec("SGD1", 64.0, **SGD, momentum=0.9, dampening=0.0, velocityScaling=8.0),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.02),
    ),
    "SGD, Nesterov": (
        spec("SGD2", 8.0, **SGD, momentum=0.9, dampening=0.0, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.02, nesterov=True),
    ),
    "Adam": (
        spec("ADAM", 32.0, **ADAM),
        lambda p: torch.optim.Adam(p, 0.01, (0.9, 0.99), 1e-6, weight_decay=0.1),
    ),
    "RMSprop": (
        spec("RMSPROP", 4.0, **RMS),
        lambda p: torch.optim.RMSprop(p, 0.01, 0.9, 1e-6, weight_decay=0.1),
    ),
    "RMSprop, momentum": (
        spec("RMSPROP", 4.0, **RMS, momentum=0.5),
        lambda p: torch.optim.RMSprop(p, 0.01, 0.9, 1e-6, weight_decay=0.1, momentum=0.5),
    ),
    "RMSprop, centred": (
        spec("RMSPROP_CENTERED", 4.0, **RMS),
        lambda p: torch.optim.RMSprop(p, 0.01, 0.9, 1e-6, weight_decay=0.1, centered=True),
    ),
    "AdamW": (
        spec("ADAMW", 32.0, **ADAM),
        # PopART adds the decay to the step and scales both by the rate: torch's AdamW in exact arithmetic.
        lambda p: torch.optim.AdamW(p, 0.01, (0.9, 0.99), 1e-6, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("reduction", [Reduction(), Reduction(4), Reduction(1, 2), Reduction(2, 2)], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_equal_torch_optim(name: str, reduction: Reduction) -> None:
    compiled, make = OPTIMIZERS[name]
    ours = simulate(compiled, reduction)
    theirs = reference(make, reduction.accumulation * reduction.replicas)
    for key, weight in theirs.items():
        torch.testing.assert_close(ours[key], weight, rtol=2e-5, atol=2e-6)


def test_a_running_mean_equals_the_mean_afterwards() -> None:
    compiled, make = OPTIMIZERS["Adam"]
    ours = simulate(compiled, Reduction(4, 2, running=True))
    for key, weight in reference(make, 8).items():
        torch.testing.assert_close(ours[key], weight, rtol=2e-5, atol=2e-6)


def test_summed_gradients_take_a_step_as_many_times_larger() -> None:
    summed = simulate(spec("SGD2", learningRate=0.1 / 4), Reduction(2, 2, mean=False))
    for key, weight in reference(lambda p: torch.optim.SGD(p, 0.1), 4).items():
        torch.testing.assert_close(summed[key], weight, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["SGD2", "ADAMW"])
def test_clipping_bounds_the_norm_of_all_gradients(kind: str) -> None:
    if kind == "SGD2":
        compiled, make = (
            spec(kind, 16.0, learningRate=0.1, max_grad_norm=0.05),
            lambda p: torch.optim.SGD(p, 0.1),
        )
    else:
        compiled = spec(kind, 16.0, **ADAM, max_grad_norm=0.05)
        make = OPTIMIZERS["AdamW"][1]
    ours = simulate(compiled, Reduction(2))
    for key, weight in reference(make, 2, clip=0.05).items():
        torch.testing.assert_close(ours[key], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("corrected", [True, False])
def test_lamb_equals_the_paper(corrected: bool) -> None:
    kind = "LAMB" if corrected else "LAMB_NO_BIAS"
    ours = simulate(spec(kind, 8.0, **ADAM, maxWeightNorm=10.0), Reduction(2, 2))

    def lamb(params: Iterable[nn.Parameter]) -> Lamb:
        return Lamb(params, 0.01, (0.9, 0.99), 1e-6, 0.1, max_weight_norm=10.0, bias_correction=corrected)

    for key, weight in reference(lamb, 4).items():
        torch.testing.assert_close(ours[key], weight, rtol=2e-5, atol=2e-6)
