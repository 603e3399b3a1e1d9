"""Options: types are kept, use freezes, copies are free, files and the environment are read."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import re
from pathlib import Path

import pytest
import torch

import bert_ipu.simulator.poptorch as poptorch
from bert_ipu.simulator.poptorch import option_groups, poptorch_core
from bert_ipu.simulator.poptorch import options as options_module


def test_a_wrong_type_is_refused_and_the_value_stays() -> None:
    options = poptorch.Options()
    with pytest.raises(AssertionError, match=r"Option device_iterations is 2.5, and must be of type int"):
        options.deviceIterations(2.5)  # type: ignore[arg-type]
    assert options.device_iterations == 1


def test_an_unknown_option_is_refused() -> None:
    options = poptorch.Options()
    with pytest.raises(AssertionError, match="There is no option devce_iterations"):
        options.set(devce_iterations=2)
    with pytest.raises(AttributeError, match="Options has no option nothing"):
        _ = options.nothing


def test_use_freezes_every_group_and_a_copy_is_free() -> None:
    options = poptorch.Options()
    poptorch.DataLoader(options, torch.utils.data.TensorDataset(torch.zeros(4)))
    changes = [
        lambda o: o.deviceIterations(2),
        lambda o: o.Training.gradientAccumulation(2),
        lambda o: o._Popart.set("enableOutlining", True),
        lambda o: o.TensorLocations.setWeightLocation(poptorch.TensorLocationSettings()),
        lambda o: o.Distributed.configureProcessId(0, 2),
        lambda o: o.Precision.enableStochasticRounding(True),
    ]
    for change in changes:
        with pytest.raises(AttributeError, match="Can't modify frozen Options"):
            change(options)
    copied = copy.deepcopy(options)
    for change in changes:
        change(copied)
    assert options._Popart.options.get("enableStochasticRounding") is None


def test_a_file_of_options_is_read(tmp_path: Path) -> None:
    path = tmp_path / "options.conf"
    path.write_text("deviceIterations(3)\n\n# a comment\n  Training.gradientAccumulation(4)\n")
    options = poptorch.Options().loadFromFile(str(path))
    assert (options.device_iterations, options.Training.gradient_accumulation) == (3, 4)
    path.write_text("deviceIterations(3)\ndeviceIterations(\n")
    with pytest.raises(poptorch.ConfigFileError, match=r"line 2 of options\.conf"):
        poptorch.Options().loadFromFile(str(path))


def test_the_environment_sets_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "POPTORCH_DEFAULT_OPTIONS",
        '{"deviceIterations": 2, "Training.gradientAccumulation": 8,'
        ' "connectionType": "ConnectionType.OnDemand",'
        ' "_Popart.set": ["saveInitializersToFile", "weights.onnx"]}',
    )
    options = poptorch.Options()
    assert options.device_iterations == 2
    assert options.Training.gradient_accumulation == 8
    assert options.connection_type == poptorch.ConnectionType.OnDemand
    assert options._Popart.options["saveInitializersToFile"] == "weights.onnx"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("noSuchOption", True, "Unknown bool option noSuchOption"),
        ("enableOutlining", 1.5, "Unknown floating point option enableOutlining"),
        ("autoRecomputation", 99, "Option autoRecomputation is 99, and must be from 0 to 4"),
        ("dotChecks", torch.zeros(1), "Unknown value type Tensor for option dotChecks"),
    ],
)
def test_popart_options_are_checked_by_name_type_and_range(name: str, value: object, message: str) -> None:
    options = poptorch.Options().outputMode(poptorch.OutputMode.All)
    options._Popart.set(name, value)
    with pytest.raises(poptorch.Error, match=message):
        poptorch_core._validateOptions(options.toDict())


def test_the_options_that_are_set_are_logged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from PopTorch's C++ layer: printed, and not heard by what the program hangs on Python's root logger."""
    compiler, programs = logging.getLogger("poptorch::compiler"), io.StringIO()
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(programs)])
    options = poptorch.Options().outputMode(poptorch.OutputMode.All).replicationFactor(4)
    before = compiler.level
    compiler.setLevel(logging.DEBUG)
    try:
        poptorch_core._validateOptions(options.toDict())
    finally:
        compiler.setLevel(before)
    assert "poptorch.Options set replication_factor to value 4" in capsys.readouterr().err
    assert not programs.getvalue()


def test_input_groups_must_divide_the_replicas() -> None:
    options = poptorch.Options().replicationFactor(4)
    with pytest.raises(ValueError, match="does not divide replicationFactor 4"):
        options.inputReplicaGrouping(3, poptorch.CommGroupType.Consecutive)
    options.inputReplicaGrouping(2, poptorch.CommGroupType.Orthogonal)
    assert options.input_group_size == 2


def test_a_block_belongs_to_one_stage_only() -> None:
    with pytest.raises(AssertionError, match="Block B1 is listed in two stages"):
        poptorch.PipelinedExecution("B1", poptorch.Stage("B2", "B1"))
    strategy = poptorch.ParallelPhasedExecution(
        poptorch.Phase(poptorch.Stage("A").ipu(0), poptorch.Stage("B").ipu(1))
    )
    assert strategy.stage("B")._ipu == 1
    with pytest.raises(AssertionError, match="Block C is not listed"):
        strategy.stage("C")


def test_printing_options_shows_their_values() -> None:
    text = repr(poptorch.Options().replicationFactor(4))
    assert text.startswith("Options(") and "replication_factor=4" in text


_GROUPS = {
    "Options": "",
    "_PrecisionOptions": "Precision.",
    "_TrainingOptions": "Training.",
    "_JitOptions": "Jit.",
    "_PopartOptions": "_Popart.",
    "_DistributedOptions": "Distributed.",
    "_TensorLocationOptions": "TensorLocations.",
    "TensorLocationSettings": "TensorLocations.",
}
_NO_OPTIONS = {"clone", "defaultOutputMode", "toDict", "checkIsFrozen"}


@pytest.mark.parametrize("group", _GROUPS)
def test_the_state_of_every_option_is_listed(group: str) -> None:
    text = (Path(__file__).parents[2] / "docs/simulator.md").read_text()
    section = text.split("## Options", 1)[1].split("\n## ", 1)[0]
    listed = set(re.findall(r"`([\w.*]+)", section))
    cls = getattr(options_module, group, None) or getattr(option_groups, group)
    names = [name for name, member in vars(cls).items() if inspect.isfunction(member) and name[0] != "_"]
    prefix = _GROUPS[group]
    missing = [n for n in names if n not in _NO_OPTIONS and not {prefix + n, f"{prefix}*"} & listed]
    assert names and not missing


@pytest.mark.parametrize("text", ["", "options.json", "[4]", "4"])
def test_options_that_are_no_json_object_name_their_source(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSONDecodeError, as of `json.loads`, which PopTorch calls, or ValueError, its base."""
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", text)
    with pytest.raises(ValueError, match="takes a JSON object such as") as error:
        poptorch.Options()
    assert "POPTORCH_DEFAULT_OPTIONS" in error.value.__notes__[0]
