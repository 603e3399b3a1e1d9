"""What PopTorch 3.4 rejects, at the time it does and with its error types: options, targets, arguments, files.

The oracle is its sources: `python/*.py` for the types of errors, `popart_compiler/source/CompilerImpl.cpp` for targets,
`SessionOptionsParser.cpp` and `SessionOptions.cpp` for options, PopART's `builder.cpp` and `matmul.cpp` for operators.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import Calls
from torch import Tensor, nn

import bert_ipu.simulator.poptorch as poptorch

X = torch.rand(4, 4)
Stage, Serialize = poptorch.Stage, poptorch.MatMulSerializationMode


def _compile(options: poptorch.Options, model: nn.Module | None = None) -> poptorch.PoplarExecutor:
    executor = poptorch.inferenceModel(model or nn.Linear(4, 4), options)
    executor.compile(X)
    return executor


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: o._Popart.setPatterns({}, level=4), "patterns_level is 4, and must be from 0 to 3"),
        (
            lambda o: o._Popart.setEngineOptions({"target.workerStackSizeInBytes": 1.5}),
            "1.5 .* takes strings",
        ),
        (lambda o: o._Popart.set("dotChecks", [2.5]), "2.5 .* takes strings"),
        (
            lambda o: o._Popart.set("hardwareInstrumentations", {2}),
            "hardwareInstrumentations has 2, and takes 0",
        ),
        (lambda o: o.setAvailableMemoryProportion({"IPU0": 1.5}), "IPU0 1.5, and may give more than 0"),
        (
            lambda o: o.enableExecutableCaching(Path("cache")),
            "Unknown value type .*Path for option cachePath",
        ),
        (lambda o: o.useOfflineIpuTarget(7), "was given version 7; there are 1, 2, 21"),
        (lambda o: o.useOfflineIpuTarget().logCycleCount(True), "only supported on actual IPU hardware"),
        (lambda o: o.useIpuModel(True).logCycleCount(True), "only supported on actual IPU hardware"),
    ],
)
def test_an_option_that_the_compiler_refuses(change: Callable[[poptorch.Options], Any], said: str) -> None:
    options = poptorch.Options()
    change(options)
    with pytest.raises(poptorch.Error, match=said):
        _compile(options)


def test_whole_numbers_are_written_out_for_containers_of_strings() -> None:
    options = poptorch.Options().setAvailableMemoryProportion({"IPU0": 1})
    options._Popart.setEngineOptions({"a": 1})
    _compile(options)


def test_the_environment_asks_for_the_ipu_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three IPUs are no power of two, which only a device needs; options come before the environment."""

    def three(options: poptorch.Options) -> poptorch.Options:
        return options.replicationFactor(3).enableExecutableCaching(str(tmp_path))

    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    assert not poptorch.ipuHardwareIsAvailable()
    with pytest.raises(AssertionError, match="There is no IPU here"):
        poptorch.ipuHardwareVersion()
    capsys.readouterr()
    poptorch.inferenceModel(nn.Linear(4, 4), three(poptorch.Options())).compile(torch.rand(3, 4))
    assert "Graphcore's IPU Model has no executable cache" in capsys.readouterr().err
    with pytest.raises(poptorch.Error, match="must reserve a minimum of 4"):
        poptorch.inferenceModel(nn.Linear(4, 4), three(poptorch.Options().useIpuModel(False))).compile(
            torch.rand(3, 4)
        )


@pytest.mark.parametrize("ipus", [(1, 0), (0, 0)])
def test_parallel_phases_alternate_between_even_and_odd_ipus(ipus: tuple[int, int]) -> None:
    strategy = poptorch.ParallelPhasedExecution([Stage("a").ipu(ipus[0])], [Stage("b").ipu(ipus[1])])
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for layer, name in zip(model, "ab"):
        poptorch.BeginBlock(layer, name)
    with pytest.raises(poptorch.Error, match=r"Phase \d has block '[ab]' on IPU \d, but parallel phases"):
        _compile(poptorch.Options().setExecutionStrategy(strategy), model)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: poptorch.set_available_memory(x @ x, 1.5), "is 1.5, and must be above 0"),
        (
            lambda x: poptorch.serializedMatMul(x, x, Serialize.InputChannels, 3),
            "factor 3 for the input channels",
        ),
        (lambda x: poptorch.serializedMatMul(x, x, Serialize.ReducingDim), "factor 0 for the reducing"),
        (lambda x: poptorch.nearest(x, x, "a", "b"), "a batch must be a list or a tensor"),
        (
            lambda x: poptorch.CPU(lambda x: poptorch.CPU(torch.abs, "inner")(x), "outer")(x),
            "must not overlap",
        ),
    ],
)
def test_an_operator_of_poptorchs_own_refuses_its_arguments(
    function: Callable[[Tensor], Any], said: str
) -> None:
    with pytest.raises(poptorch.Error, match=said):
        _compile(poptorch.Options(), Calls(function))


def test_cpu_operators_run_after_one_that_was_refused() -> None:
    doubled = Calls(lambda x: poptorch.CPU(lambda x: x * 2, "double")(x))
    torch.testing.assert_close(poptorch.inferenceModel(doubled)(X), X * 2)


def test_attributes_are_strings() -> None:
    """torch.ops.poptorch.set_attribute(str attribute, str key, str value)."""
    with pytest.raises(RuntimeError, match="'layer' and its value 1 must both be strings"):
        poptorch.Attribute(__outline={"layer": 1}).__enter__()


def test_a_parameter_is_no_tensor_to_a_compiled_model() -> None:
    executor = _compile(poptorch.Options())
    with pytest.raises(
        poptorch.Error, match=r"Type mismatch for input: expected .*Tensor.* but got .*Parameter"
    ):
        executor(nn.Parameter(X))


def test_an_optimizer_of_another_models_parameters_is_refused() -> None:
    """PopTorch looks the parameters up by their addresses, and finds none."""

    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.mse_loss(self.layer(x), x)

    optimizer = poptorch.optim.SGD(Trained().parameters(), lr=0.1)
    with pytest.raises(KeyError, match="2 parameters of the optimizer are none of the model's"):
        poptorch.trainingModel(Trained(), poptorch.Options(), optimizer)(X)


def test_a_result_on_the_cpu_is_a_warning_of_pythons() -> None:
    model = Calls(lambda x: (x + 1, torch.ones(2, device="cpu")))
    with pytest.warns(UserWarning, match="Output expected to be on the IPU but is on cpu"):
        result, constant = poptorch.inferenceModel(model)(X)
    torch.testing.assert_close((result, constant), (X + 1, torch.ones(2)))


def test_load_asserts_the_version_of_a_file(tmp_path: Path) -> None:
    executor, file = _compile(poptorch.Options()), str(tmp_path / "model.poptorch")
    executor._poptorch_version = "3.3.0"
    executor.save(file)
    with pytest.raises(AssertionError, match=r"version 3\.3\.0 of PopTorch wrote it, and this is version 3\.4"):
        poptorch.load(file)
    with pytest.raises(poptorch.Error, match=r"version 3\.3\.0 of PopTorch wrote it, and this is version 3\.4"):
        poptorch.inferenceModel(nn.Linear(4, 4)).loadExecutable(file)


def test_several_processes_without_a_cache_are_warned(caplog: pytest.LogCaptureFixture) -> None:
    options = poptorch.Options().useOfflineIpuTarget()
    options.Distributed.configureProcessId(0, 2)
    with caplog.at_level(logging.WARNING, "poptorch::python"):
        _compile(options)
    assert "Each process compiles the model" in caplog.text


ONE = poptorch.VariableRetrievalMode.OnePerGroup
CONSECUTIVE, NO_GROUPING = poptorch.CommGroupType.Consecutive, poptorch.CommGroupType.NoGrouping


def _grouped(rows: int, *grouping: Any) -> Tensor:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(rows, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    executor = poptorch.inferenceModel(Weighted(), poptorch.Options().replicationFactor(4))
    executor.weight.replicaGrouping(*grouping)
    return executor(X)


@pytest.mark.parametrize(
    ("rows", "grouping", "error", "message"),
    [
        (
            2,
            (CONSECUTIVE, 3, ONE),
            poptorch.Error,
            "weight: groups of 3 replicas do not divide the 4 replicas",
        ),
        (2, (CONSECUTIVE, 0, ONE), poptorch.Error, "groups of 0 replicas do not divide"),
        (3, (CONSECUTIVE, 2, ONE), poptorch.Error, "make 2 groups of 4 replicas"),
        (2, (NO_GROUPING, 0, ONE), poptorch.Error, "make 4 groups of 4 replicas"),
        (2, (7, 2, ONE), poptorch.Error, "comm_group_type must be one of"),
        (2, ("pairs", 2, ONE), TypeError, "comm_group_type must be a whole number"),
        (2, (CONSECUTIVE, "2", ONE), TypeError, "shards must be a whole number"),
        (2, (CONSECUTIVE, 2, "all"), TypeError, "variable_retrieval_mode must be"),
    ],
)
def test_groups_of_replicas_must_fit(rows: int, grouping: Any, error: type[Exception], message: str) -> None:
    """PopART's `VariableSettings::verify` and `shapeOnReplica`; the types are the bindings'."""
    with pytest.raises(error, match=message):
        _grouped(rows, *grouping)


def test_one_group_of_all_replicas_is_none() -> None:
    """The documentation of `CommGroupType.All`."""
    assert _grouped(1, poptorch.CommGroupType.All, 0, ONE).shape == (4, 4)


def test_a_process_has_at_most_64_ipus() -> None:
    """PopTorch's `tests/replicated_graph_test.py` has the text."""
    with pytest.raises(
        poptorch.Error, match=r"Too many IPUs requested \(128\)\. Experiments that need over 64 "
    ):
        poptorch.inferenceModel(nn.Linear(4, 4), poptorch.Options().replicationFactor(128))(torch.rand(128, 4))
