"""Micro-batches run together, against torch run on each alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_ipu import simulator
from bert_ipu.simulator import poptorch
from bert_ipu.simulator.compiler import compile_program
from bert_ipu.simulator.graph import capture, ops
from bert_ipu.simulator.graph.ir import Program, Reduction
from bert_ipu.simulator.graph.optimizer_spec import HyperParameter, OptimizerSpec
from bert_ipu.simulator.graph.request import CompileRequest
from bert_ipu.simulator.params import SimulatorParams
from bert_ipu.simulator.runtime import chunking
from bert_ipu.simulator.runtime.engine import Executable
from bert_ipu.simulator.runtime.numerics import Numerics
from bert_ipu.simulator.runtime.settings import ExecutionSettings

B, S, H = 3, 4, 6
COUNT = 4

# What a model does with its input x [B, S, H] and its weights w [H, H], v [H], e [9, H].
CASES: dict[str, Callable[[Tensor, dict[str, Tensor]], Tensor]] = {
    "linear": lambda x, p: F.linear(x, p["w"], p["v"]),
    "matmul": lambda x, p: torch.matmul(x, p["w"]),
    "attention": lambda x, p: torch.softmax(torch.matmul(x, x.transpose(-1, -2)) * 0.3, dim=-1) @ x * p["v"],
    "layer_norm": lambda x, p: F.layer_norm(x, (H,), p["v"], p["v"] * 2),
    "gelu": lambda x, p: F.gelu(x * p["v"]),
    "tanh": lambda x, p: torch.tanh(x + p["v"]),
    "broadcast": lambda x, p: x[:, :1] * p["v"] + x,
    "permuted": lambda x, p: (x * p["v"]).permute(2, 0, 1).reshape(H, -1).sum(1),
    "heads": lambda x, p: F.linear(x, p["w"]).view(B, S, 2, 3).permute(2, 0, 1, 3)[1] * 2,
    "transposed": lambda x, p: (x * p["v"]).transpose(0, 1)[1],
    "reduced": lambda x, p: (x * p["v"]).mean(dim=(0, 2)) + x.sum() + x.amax(dim=1).mean(),
    "embedding": lambda x, p: F.embedding((x[..., 0].abs() * 3).int().clamp(max=8), p["e"]),
    "gathered": lambda x, p: torch.gather(x * p["v"], 1, (x[:, :2].abs() * 2).long().clamp(max=3)),
    "joined": lambda x, p: (
        torch.cat([x * p["v"], x], dim=0) + torch.stack([x, x], dim=0).reshape(2 * B, S, H)
    ),
    "sliced": lambda x, p: (x * p["v"])[:, 1:3, ::2],
    "split": lambda x, p: torch.split(x * p["v"], 2, dim=2)[1] + torch.unbind(x, dim=1)[0][:, None, :2],
    "where": lambda x, p: torch.where(x > 0, x * p["v"], p["v"]),
    "expanded": lambda x, p: (x[:, 0] * p["v"]).unsqueeze(0).expand(2, B, H) * 2,
    "cumulative": lambda x, p: torch.cumsum(x * p["v"], dim=1),
    "vector": lambda x, p: torch.matmul(x[0, 0], p["w"]) + x[1, 1],
    "sides of a sigmoid": lambda x, p: F.logsigmoid(x * p["v"]),
    "masked by a mean": lambda x, p: (x * p["v"]).masked_fill(x > 0, x.mean()),
    "gathered from some rows": lambda x, p: torch.gather(
        x * p["v"], 1, (x[:2].abs() * 2).long().clamp(max=3)
    ),
    "added to some rows": lambda x, p: (x * p["v"]).scatter_add(2, (x[:2] > 0).long(), x[:2] * p["v"]),
    "along no dimension": lambda x, p: (
        (x * p["v"]).flip(()) + (x * p["v"]).amax(()) + x.sum().transpose(0, -1) * x.mean().sum(0)
    ),
    "no rule": lambda x, p: torch.roll(x * p["v"], 1, 0),
}


class Model(nn.Module):
    def __init__(self, function: Callable[[Tensor, dict[str, Tensor]], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.v = nn.Parameter(torch.randn(H, H)), nn.Parameter(torch.randn(H))
        self.e = nn.Parameter(torch.randn(9, H))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, {"w": self.w, "v": self.v, "e": self.e})


def inputs() -> Tensor:
    return torch.randn(COUNT * B, S, H, generator=torch.Generator().manual_seed(3))


def _trained_by_sgd(model: Model, weights: Iterable[str], reduction: Reduction) -> Program:
    """The program that trains some of a model's weights with a learning rate of 0.1, for micro-batches of B rows."""

    def forward(x: Tensor) -> Tensor:
        loss: Tensor = capture.current().emit(ops.identity_loss, model(x).square(), reduction="mean")
        return loss

    constant = {"learningRate": 0.1, "momentum": 0.0, "weightDecay": 0.0}
    group = {name: HyperParameter(value) for name, value in constant.items()}
    optimizer = OptimizerSpec("SGD1", (group,), dict.fromkeys(weights, 0))
    return compile_program(
        CompileRequest(
            forward, model, (inputs()[:B],), training=True, optimizer=optimizer, reduction=reduction
        )
    )


@pytest.mark.parametrize("name", CASES)
def test_inference(name: str) -> None:
    model = Model(CASES[name]).eval()
    program = compile_program(CompileRequest(model, model, (inputs()[:B],)))
    executable = Executable(program, ExecutionSettings(device_iterations=COUNT), SimulatorParams())
    assert executable.plan.chunk == COUNT
    (found,) = executable.run([inputs()])
    with torch.no_grad():
        parts = [model(rows) for rows in inputs().split(B)]
    expected = torch.stack(parts) if parts[0].dim() == 0 else torch.cat(parts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_training(name: str, replicas: int) -> None:
    model = Model(CASES[name])
    before = {key: value.detach().clone() for key, value in model.named_parameters()}

    used = [key for key, value in _gradients(model).items() if value is not None]
    accumulation = COUNT // replicas
    program = _trained_by_sgd(model, used, Reduction(accumulation, replicas))
    settings = ExecutionSettings(gradient_accumulation=accumulation, replication_factor=replicas)
    executable = Executable(program, settings, SimulatorParams())
    assert executable.plan.chunk == COUNT
    executable.run([inputs()])
    for key, gradient in _gradients(model).items():
        if gradient is not None:
            expected = before[key] - 0.1 * gradient
            torch.testing.assert_close(executable.read_variable(key), expected, rtol=1e-5, atol=1e-5)


def _gradients(model: Model) -> dict[str, Tensor | None]:
    """Means over the micro-batches, by torch's autograd on each."""
    model.zero_grad()
    for rows in inputs().split(B):
        (model(rows).square().mean() / COUNT).backward()
    return {key: value.grad for key, value in model.named_parameters()}


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("chunk", [COUNT, COUNT // 2, 1])
def test_running_means(chunk: int, replicas: int) -> None:
    """PopART's running accumulation, of all micro-batches of an update at once, or in several parts."""
    model = Model(lambda x, p: F.gelu(F.linear(x, p["w"], p["v"])) + F.embedding(_indices(x), p["e"]))
    weights = {key: value.detach().clone() for key, value in model.named_parameters()}

    program = _trained_by_sgd(model, weights, Reduction(COUNT, replicas, running=True))
    each = chunking.peak_bytes(program, Numerics("ipu", torch.float32))
    settings = ExecutionSettings(gradient_accumulation=COUNT, replication_factor=replicas)
    executable = Executable(program, settings, SimulatorParams(chunk_bytes=chunk * each))
    assert executable.plan.chunk == chunk
    for step in range(3):
        data = torch.randn(replicas * COUNT * B, S, H, generator=torch.Generator().manual_seed(step))
        executable.run([data])
        model.zero_grad()
        for rows in data.split(B):
            (model(rows).square().mean() / (replicas * COUNT)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None, "each weight is used"
                parameter -= 0.1 * parameter.grad
    for key, parameter in model.named_parameters():
        found = executable.read_variable(key)
        assert not torch.equal(found, weights[key])
        torch.testing.assert_close(found, parameter.detach(), rtol=1e-5, atol=1e-5)


def _indices(x: Tensor) -> Tensor:
    return (x[..., 0].abs() * 3).int().clamp(max=8)


class Dropped(nn.Dropout):
    """Dropout with a loss, as it drops in training sessions only."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        dropped = super().forward(x)
        return dropped, nn.functional.mse_loss(dropped, x)


def test_dropout_is_the_same_in_a_chunk_and_alone() -> None:
    model = Dropped(0.4)
    x = torch.ones(COUNT * B, S, H)
    settings = ExecutionSettings(device_iterations=COUNT, seed=5)
    found = []
    for batched in (True, False):
        program = compile_program(CompileRequest(model, model, (x[:B],), training=True))
        params = SimulatorParams(batch_micro_batches=batched)
        found.append(Executable(program, settings, params).run([x])[0])
    assert torch.equal(found[0], found[1])
    first, second = found[0].split(B)[:2]
    assert not torch.equal(first, second)


def test_chunks_fit_the_memory_they_are_given() -> None:
    model = Model(CASES["linear"])
    program = compile_program(CompileRequest(model, model, (inputs()[:B],)))
    settings = ExecutionSettings(device_iterations=COUNT)
    small = Executable(program, settings, SimulatorParams(chunk_bytes=2 * B * S * H * 4))
    assert small.plan.chunk == 2
    (found,) = small.run([inputs()])
    torch.testing.assert_close(found, model(inputs()).detach())


class ScaledWeight(nn.Module):
    """A result that depends on a weight alone, [H + 1] of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 1.3, H + 1).half())

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * 0.3333 + 0 * x


def test_what_is_rounded_at_random_is_so_for_each_micro_batch() -> None:
    """Also what no input changes, where the micro-batches share the rest."""
    count = 400
    simulator.install(SimulatorParams())
    options = poptorch.Options().deviceIterations(count)
    options.Precision.enableStochasticRounding(True)
    model = ScaledWeight()
    rounded = poptorch.inferenceModel(model, options)(torch.zeros(count, H + 1).half()).double()
    exact = model.weight.detach().double() * 0.3333
    assert (rounded.std(0) > 0).all()
    # Two neighbours in fp16 are 2^-10 of the value apart at most, and a draw between them has half of that as its
    # largest deviation.
    assert ((rounded.mean(0) - exact).abs() < 5 * exact * 2**-11 / count**0.5).all()
