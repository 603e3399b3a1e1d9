"""`poptorch.Options`: what a user may set of compiling and running."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from . import enums, recording
from ._logging import logger
from .option_groups import (
    TensorLocationSettings,
    _DistributedOptions,
    _JitOptions,
    _PopartOptions,
    _PrecisionOptions,
    _TensorLocationOptions,
    _TrainingOptions,
)
from .options_dict import OptionsDict, ProgressBar, require
from .strategies import (
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
    _IExecutionStrategy,
    _IPhasedExecution,
)

__all__ = [
    "Attribute",
    "ConfigFileError",
    "Options",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "SerialPhasedExecution",
    "ShardedExecution",
    "Stage",
    "TensorLocationSettings",
    "_DistributedOptions",
    "_IExecutionStrategy",
    "_IPhasedExecution",
    "_JitOptions",
    "_PopartOptions",
    "_PrecisionOptions",
    "_TensorLocationOptions",
    "_TrainingOptions",
]

_NO_LIMIT = (1 << 64) - 1


class Attribute:
    """A context whose operators carry attributes: `Attribute(name={key: value})`."""

    _current_attrs: dict[str, dict[str, Any]] = {}

    def __init__(self, **kwargs: dict[str, Any]) -> None:
        self._kwargs = kwargs
        self._saved: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> None:
        outer = self._saved = Attribute._current_attrs
        for name, values in self._kwargs.items():
            for key, value in values.items():
                if not isinstance(key, str) or not isinstance(value, str):
                    raise RuntimeError(
                        f"Attribute {name}: {key!r} and its value {value!r} must both be strings."
                    )
        inner = {name: {**outer.get(name, {}), **values} for name, values in self._kwargs.items()}
        Attribute._current_attrs = {**outer, **inner}
        self._announce()

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        Attribute._current_attrs = self._saved
        self._announce()

    @staticmethod
    def _announce() -> None:
        annotations = recording.current_annotations()
        if annotations is not None:
            annotations.attributes = MappingProxyType(Attribute._current_attrs)


def current_attributes() -> Mapping[str, dict[str, Any]]:
    """The attributes that operators recorded now would carry."""
    return Attribute._current_attrs


class ConfigFileError(Exception):
    """A file given to `Options.loadFromFile` cannot be read as options."""


def _enum_or_string(text: str) -> Any:
    name, _, member = text.partition(".")
    return getattr(getattr(enums, name, None), member, text)


class Options(OptionsDict):
    """Everything a model, a data loader or an executor can be told; frozen once one of them uses it."""

    def __init__(self) -> None:
        self._popart = _PopartOptions()
        self._precision = _PrecisionOptions(self._popart)
        self._training = _TrainingOptions(self._popart)
        self._tensor_locations = _TensorLocationOptions()
        self._distributed = _DistributedOptions()
        self._jit = _JitOptions()
        self._execution_strategy: _IExecutionStrategy = PipelinedExecution()
        self._progress_bar = ProgressBar()
        self._show_compilation_progress_bar = True
        self._relax_optimizer_checks = False
        self._module_namescope_enabled = True
        self._source_location_excludes = ["install/poptorch", "site-packages/torch", "site-packages/poptorch"]
        super().__init__(
            device_iterations=1,
            replication_factor=1,
            input_group_size=1,
            input_cgt=enums.CommGroupType.Consecutive,
            auto_round_num_ipus=False,
            available_memory_proportion={},
            broadcast_buffers=True,
            output_mode=enums.OutputMode.Default.value,
            output_return_period=1,
            anchored_tensors={},
            connection_type=enums.ConnectionType.Always.value,
            sync_pattern=enums.SyncPattern.Full.value,
            log_dir=".",
            max_repeat_logs=4,
        )
        cache = os.environ.get("POPTORCH_CACHE_DIR", "")
        if cache:
            logger.debug("POPTORCH_CACHE_DIR: executables are cached in %s", cache)
            self.enableExecutableCaching(cache)
        try:
            self.from_json(os.environ.get("POPTORCH_DEFAULT_OPTIONS", "{}"))
        except Exception as error:
            error.add_note("It comes from the environment variable POPTORCH_DEFAULT_OPTIONS.")
            raise

    def from_json(self, string: str) -> Options:
        """Call the option methods that a JSON object names: {"Training.gradientAccumulation": 4}."""
        example = '{"Training.gradientAccumulation": 4}'
        try:
            calls = json.loads(string)
        except json.JSONDecodeError as error:
            said = f"Options.from_json takes a JSON object such as {example}: {error.msg}"
            raise json.JSONDecodeError(said, error.doc, error.pos) from error
        if not isinstance(calls, dict):
            raise ValueError(f"Options.from_json takes a JSON object such as {example}, not {string}")
        for option, value in calls.items():
            method: Any = self
            for attribute in option.split("."):
                method = getattr(method, attribute)
            if isinstance(value, list):
                method(*value)
            else:
                method(_enum_or_string(value) if isinstance(value, str) else value)
        return self

    def loadFromFile(self, filepath: str) -> Options:
        """Call the option methods that a file lists, one Python call a line; # starts a comment.

        Raises ConfigFileError where a line is no valid Python.
        """
        with open(filepath) as file:
            lines = [line.strip() for line in file]
        calls = "\n".join(f"options.{line}" for line in lines if line and not line.startswith("#"))
        import bert_ipu.simulator.poptorch as poptorch  # here, because the package imports this module

        try:
            exec(compile(calls, filepath, "exec"), {}, {"poptorch": poptorch, "options": self})
        except SyntaxError as error:
            raise ConfigFileError(
                f"SyntaxError at line {error.lineno} of {os.path.basename(filepath)}: {error.msg}\n> {error.text}"
            ) from error
        return self

    # -- groups --------------------------------------------------------------------------------

    @property
    def TensorLocations(self) -> _TensorLocationOptions:
        """Where tensors are kept."""
        return self._tensor_locations

    @property
    def Distributed(self) -> _DistributedOptions:
        """Which of several processes this is."""
        return self._distributed

    @property
    def Jit(self) -> _JitOptions:
        """What is left of the tracer's options."""
        return self._jit

    @property
    def Precision(self) -> _PrecisionOptions:
        """How numbers are computed."""
        return self._precision

    @property
    def Training(self) -> _TrainingOptions:
        """What only training models use."""
        return self._training

    @property
    def _Popart(self) -> _PopartOptions:
        return self._popart

    # -- batching and placement ----------------------------------------------------------------

    def deviceIterations(self, device_iterations: int) -> Options:
        """Weight updates (or inference micro-batches) per call of the model."""
        self.set(device_iterations=device_iterations)
        return self

    def replicationFactor(self, replication_factor: int) -> Options:
        """Copies of the model that work on different data."""
        self.set(replication_factor=replication_factor)
        return self

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: enums.CommGroupType) -> Options:
        """Let groups of replicas get the same inputs."""
        groups = enums.CommGroupType
        if input_group_type == groups.All:
            raise ValueError(
                "input_group_type is All: group the inputs as Consecutive or Orthogonal, or not at all"
            )
        if input_group_type == groups.NoGrouping:
            input_group_size, input_group_type = 1, groups.Consecutive
        if self.replication_factor % input_group_size:
            raise ValueError(
                f"input_group_size {input_group_size} does not divide replicationFactor {self.replication_factor}"
            )
        self.set(input_group_size=input_group_size, input_cgt=input_group_type)
        return self

    def setExecutionStrategy(self, strategy: _IExecutionStrategy) -> Options:
        """How stages share the IPUs."""
        require(strategy, _IExecutionStrategy)
        self._execution_strategy = strategy
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Options:
        """Take the next power of two of IPUs where the model needs another number."""
        self.set(auto_round_num_ipus=auto_round_num_ipus)
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: dict[str, float]) -> Options:
        """Memory that convolutions and matrix products may use, by IPU: {"IPU0": 0.5}."""
        for name in available_memory_proportion:
            assert re.fullmatch(r"IPU\d+", name), (
                f"{name!r} names no IPU; these are called IPU0, IPU1 and so on"
            )
        self.set(
            available_memory_proportion={int(ipu[3:]): p for ipu, p in available_memory_proportion.items()}
        )
        return self

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Options:
        """Give all replicas the same buffers; otherwise each has its own."""
        self.set(broadcast_buffers=broadcast_buffers)
        return self

    def updatableNamedBuffers(self, buffers: list[str]) -> Options:
        """Buffers that `copyNamedBuffersToDevice` may write."""
        self._Popart.set("updatableNamedBuffers", buffers)
        return self

    # -- outputs -------------------------------------------------------------------------------

    def outputMode(self, output_mode: enums.OutputMode, output_return_period: int | None = None) -> Options:
        """Which micro-batches' outputs come back; EveryN needs a period."""
        require(output_mode, enums.OutputMode)
        period = output_return_period or 0
        if output_mode == enums.OutputMode.EveryN:
            assert period > 0, (
                f"OutputMode.EveryN needs an output_return_period of 1 or more, not {output_return_period}"
            )
        elif period:
            logger.info("outputMode: %s needs no output_return_period", output_mode)
        self.set(output_mode=output_mode.value, output_return_period=period or 1)
        return self

    def defaultOutputMode(self) -> bool:
        """Whether the output mode is still the kind of model's own."""
        return self.output_mode == enums.OutputMode.Default  # type: ignore[no-any-return]

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: enums.OutputMode | None = None,
        output_return_period: int | None = 1,
    ) -> None:
        """Bring a tensor of the program back with every call, under a name of your own."""
        period = output_return_period if output_mode == enums.OutputMode.EveryN else 1
        follows_outputs = output_mode is None
        self.anchored_tensors[short_name] = [long_name, follows_outputs, output_mode, period]

    # -- device --------------------------------------------------------------------------------

    def useIpuModel(self, use_model: bool) -> Options:
        """Choose between Graphcore's IPU Model and a device; the simulator stands for either."""
        self.createOrSet(use_model=use_model)
        return self

    def connectionType(self, connection_type: enums.ConnectionType) -> Options:
        """When to attach to a device."""
        require(connection_type, enums.ConnectionType)
        self.set(connection_type=connection_type.value)
        return self

    def syncPattern(self, sync_pattern: enums.SyncPattern) -> Options:
        """Which IPUs synchronise; changes no result."""
        require(sync_pattern, enums.SyncPattern)
        self.set(sync_pattern=sync_pattern.value)
        return self

    def useIpuId(self, ipu_id: int) -> Options:
        """Use one certain device."""
        require(ipu_id, int)
        self.createOrSet(ipu_id=ipu_id)
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:
        """Compile only, for a device that is not there."""
        self.connectionType(enums.ConnectionType.Never)
        self.createOrSet(ipu_version=ipu_version)
        return self

    # -- numerics and data ---------------------------------------------------------------------

    def randomSeed(self, random_seed: int) -> Options:
        """Seed the device's random numbers, and torch's here."""
        require(random_seed, int)
        self.createOrSet(random_seed=random_seed)
        torch.manual_seed(random_seed)
        return self

    def enableStableNorm(self, enabled: bool) -> Options:
        """Compute norms in two passes."""
        self._Popart.set("enableStableNorm", enabled)
        return self

    def enableSyntheticData(self, enabled: bool) -> Options:
        """Run without data from the host."""
        self._Popart.set("syntheticDataMode", 2 if enabled else 0)
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Options:
        """Log unexpected optimizer attributes at debug level only."""
        self._relax_optimizer_checks = relax
        return self

    # -- cache, logs, profile ------------------------------------------------------------------

    def enableExecutableCaching(self, path: str | None) -> Options:
        """Keep compiled programs in a folder and take them from there; None switches that off."""
        if path is not None:
            self._Popart.set("cachePath", path)
        self._Popart.set("enableEngineCaching", path is not None)
        return self

    def logDir(self, log_dir: str) -> Options:
        """Where logs are written."""
        self.set(log_dir=log_dir)
        return self

    def maxRepeatLogs(self, max_lines: int | None) -> Options:
        """How often one log line may repeat; None for no limit."""
        self.set(max_repeat_logs=_NO_LIMIT if max_lines is None else max_lines)
        return self

    def modelName(self, name: str) -> Options:
        """The model's name in profiles."""
        self.createOrSet(model_name=name)
        return self

    def logCycleCount(self, log_cycle_count: bool) -> Options:
        """Count the cycles of each call."""
        self._Popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def enableProfiling(self, profile_dir: str | None = None) -> Options:
        """Write a profile of compilation and execution to a folder."""
        report = {
            "debug.allowOutOfMemory": "true",
            "autoReport.directory": profile_dir or ".",
            "autoReport.all": "true",
        }
        environment = os.environ.get("POPLAR_ENGINE_OPTIONS", "")
        if any(option in environment for option in report):
            logger.warning("Profiling is also set in POPLAR_ENGINE_OPTIONS, which wins: check its content.")
        self._Popart.setEngineOptions({**self._Popart.options.get("engineOptions", {}), **report})
        return self

    def showCompilationProgressBar(self, show: bool = True) -> Options:
        """Show how far a compilation has come."""
        self._show_compilation_progress_bar = show
        return self

    def disableModuleNamescope(self) -> Options:
        """Leave module paths out of the names of operators."""
        self._module_namescope_enabled = False
        return self

    def sourceLocationExcludes(self, excludes: list[str]) -> Options:
        """Paths that never count as an operator's place in the source."""
        self._source_location_excludes = excludes
        return self

    def appendToLocationExcludes(self, *excludes: str) -> Options:
        """Add to the paths of `sourceLocationExcludes`."""
        self._source_location_excludes = [*self._source_location_excludes, *excludes]
        return self

    # -- copies --------------------------------------------------------------------------------

    def toDict(self) -> dict[str, Any]:
        """All options in one flat dict, as the compiler takes them."""
        assert not self.defaultOutputMode(), "an executor has chosen the output mode"
        out = self.update({**self._execution_strategy.backendOptions(), **self._popart.options})
        for group in (self._training, self._distributed, self._tensor_locations):
            out = group.update(out)
        if self._show_compilation_progress_bar:
            out["compilation_progress_bar_fn"] = self._progress_bar
        return out

    def clone(self) -> Options:
        """A deep copy that is not frozen."""
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        groups = [name for name in dir(type(self)) if isinstance(getattr(type(self), name), property)]
        shown = {**self._values, **{name: getattr(self, name) for name in groups}}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def micro_batches_of_a_call(options: Options) -> int:
    """Micro-batches of different inputs that one call of a model takes: replicas of an input group share theirs."""
    input_groups: int = options.replication_factor // options.input_group_size
    return options.device_iterations * input_groups * options.Training.gradient_accumulation  # type: ignore[no-any-return]
