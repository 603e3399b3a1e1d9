"""The engine against a plain torch training loop."""

from __future__ import annotations

import pytest
import torch
from runtime_programs import data, mlp, reference

from bert_ipu.simulator.params import SimulatorParams
from bert_ipu.simulator.runtime.engine import Executable
from bert_ipu.simulator.runtime.settings import ExecutionSettings


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_training_equals_a_torch_loop(
    accumulation: int, replicas: int, iterations: int, batched: bool
) -> None:
    settings = ExecutionSettings(iterations, replicas, accumulation, output_mode="all")
    program = mlp(accumulation=accumulation, replicas=replicas)
    executable = Executable(program, settings, SimulatorParams(batch_micro_batches=batched))
    per_run = settings.micro_batches
    x, y = data(per_run * 4)
    losses = []
    for rows, labels in zip(x.chunk(4), y.chunk(4)):
        loss, _ = executable.run([rows, labels])
        losses.append(loss.reshape(-1))
    expected, weights = reference(x, y, accumulation * replicas)
    assert relative(torch.cat(losses), torch.stack(expected)) < 1e-5
    for name, weight in weights.items():
        assert relative(executable.read_variable(name), weight) < 5e-6, name


@pytest.mark.parametrize(("mode", "rows"), [("all", 12), ("final", 2), ("every_n", 4), ("sum", 2)])
def test_output_modes(mode: str, rows: int) -> None:
    settings = ExecutionSettings(3, 2, 2, output_mode=mode, output_period=3)
    executable = Executable(mlp(accumulation=2, replicas=2), settings, SimulatorParams())
    x, y = data(12)
    loss, logits = executable.run([x, y])
    expected, _ = reference(x, y, 4)
    all_losses = torch.stack(expected)
    wanted = {
        "all": all_losses,
        "final": all_losses[-2:],
        "every_n": all_losses.view(6, 2)[2::3].reshape(-1),
        "sum": all_losses.view(6, 2).sum(0),
    }[mode]
    torch.testing.assert_close(loss, wanted)
    assert logits.shape == (rows * 4, 5)


def test_a_scalar_can_change_between_runs() -> None:
    executable = Executable(mlp(rate=None), ExecutionSettings(), SimulatorParams())
    x, y = data(1)
    executable.set_scalar("rate", 0.0)
    before = executable.read_variable("w1")
    executable.run([x, y])
    assert torch.equal(executable.read_variable("w1"), before)
    executable.set_scalar("rate", 0.1)
    executable.run([x, y])
    torch.testing.assert_close(executable.read_variable("w1"), reference(x, y, 1)[1]["w1"])


def test_state_goes_on_where_it_stopped() -> None:
    x, y = data(4)
    whole = Executable(mlp(accumulation=2), ExecutionSettings(gradient_accumulation=2), SimulatorParams())
    parts = Executable(mlp(accumulation=2), ExecutionSettings(gradient_accumulation=2), SimulatorParams())
    for rows, labels in zip(x.chunk(2), y.chunk(2)):
        whole.run([rows, labels])
    parts.run([x[:8], y[:8]])
    resumed = Executable(mlp(accumulation=2), ExecutionSettings(gradient_accumulation=2), SimulatorParams())
    resumed.load_state_dict(parts.state_dict())
    resumed.run([x[8:], y[8:]])
    for name in ("w1", "b1", "w2", "b2"):
        assert torch.equal(resumed.read_variable(name), whole.read_variable(name))


def test_memory_nobody_wrote_is_nan() -> None:
    program = mlp()
    program.variables["w1"].tensor = None
    executable = Executable(program, ExecutionSettings(), SimulatorParams())
    loss, _ = executable.run(list(data(1)))
    assert loss.isnan()


def test_half_precision_trains_near_single() -> None:
    x, y = data(40)
    losses, _ = reference(x, y, 1)
    for numerics, band in (("ipu", 0.01), ("fast", 0.05)):
        executable = Executable(
            mlp(dtype=torch.float16), ExecutionSettings(40), SimulatorParams(numerics=numerics)
        )
        loss, logits = executable.run([x, y])
        assert logits.dtype == torch.float16
        assert relative(loss, torch.stack(losses)) < band


def test_half_weights_are_half_values_in_ipu_numerics() -> None:
    executable = Executable(mlp(dtype=torch.float16), ExecutionSettings(3), SimulatorParams(numerics="ipu"))
    executable.run(list(data(3)))
    for name in ("w1", "b1", "w2", "b2"):
        (stored,) = executable.store.values[name]
        assert torch.equal(stored, stored.half().float())
