"""PopART's session options: which names there are, and what values they take.

Names, kinds and enumerations' sizes are those of PopTorch 3.4's `popart_compiler/source/SessionOptions.cpp`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import SimulatorUnsupported, poptorch_cpp_error
from . import popart_patterns
from ._logging import compiler_logger

Options = Mapping[str, Any]
"""All options by name."""

_BOOLS = frozenset(
    [
        "auto_round_num_ipus",
        "use_model",
        "serial_phases_execution",
        "separate_backward_phase",
        "broadcast_buffers",
        "enableExplicitIR",
        "enableInplaceAmbiguityChecking",
        "enableLoadAndOffloadRNGState",
        "batchSerializationSettings.concatOnVirtualGraphChange",
        "batchSerializationSettings.concatOnExecutionPhaseChange",
        "batchSerializationSettings.concatOnPipelineStageChange",
        "strictOpVersions",
        "opxAliasChecking",
        "opxModifyChecking",
        "dotOpNames",
        "exportPoplarComputationGraph",
        "exportPoplarVertexGraph",
        "separateCallOpPdfs",
        "enableOutlining",
        "enableOutliningCopyCostPruning",
        "rearrangeAnchorsOnHost",
        "rearrangeStreamsOnHost",
        "enablePrefetchDatastreams",
        "enableNonStableSoftmax",
        "enableReplicatedGraphs",
        "enableGradientAccumulation",
        "instrumentWithHardwareCycleCounter",
        "enablePipelining",
        "disableGradAccumulationTensorStreams",
        "disableOptimizerStateTensorStreams",
        "compileEngine",
        "constantWeights",
        "enableEngineCaching",
        "enableMergeExchange",
        "enableFloatingPointChecks",
        "enableStochasticRounding",
        "ensureFp32LossScaleTensor",
        "explicitRecomputation",
        "enableExplicitMainLoops",
        "useHostCopyOps",
        "aliasZeroCopy",
        "delayVarUpdates",
        "enableFullyConnectedPass",
        "enableSerializedMatmuls",
        "enableStableNorm",
        "decomposeGradSum",
        "enableDistributedReplicatedGraphs",
        "groupHostSync",
        "automaticLossScalingSettings.enabled",
        "enableSupportedDataTypeCasting",
        "groupNormStridedChannelGrouping",
        "scheduleNonWeightUpdateGradientConsumersEarly",
        "replicatedCollectivesSettings.prepareScheduleForMergingCollectives",
        "replicatedCollectivesSettings.mergeAllReduceCollectives",
    ]
)
_INTEGERS = frozenset(
    [
        "device_iterations",
        "num_distributed_processes",
        "distributed_process_id",
        "ipu_version",
        "ipu_id",
        "gradient_accumulation",
        "output_return_period",
        "replication_factor",
        "input_group_size",
        "input_cgt",
        "max_repeat_logs",
        "random_seed",
        "executionPhaseSettings.phases",
        "executionPhaseSettings.stages",
        "batchSerializationSettings.factor",
        "firstDotOp",
        "finalDotOp",
        "numIOTiles",
        "mergeVarUpdateMemThreshold",
        "looseThresholdAtPeak",
        "accumulationFactor",
        "swapLimitScheduler",
        "globalReplicationFactor",
        "globalReplicaOffset",
        "defaultBufferingDepth",
        "defaultPrefetchBufferingDepth",
        "compilationProgressTotal",
        "transitiveClosureOptimizationThreshold",
        "automaticLossScalingSettings.updatePeriod",
    ]
)
# Enumerations: the number of their members (`willow/include/popart/sessionoptions.hpp` and PopTorch's own).
_ENUMERATIONS = {
    "execution_mode": 3,
    "tensors_liveness": 4,
    "output_mode": 4,
    "connection_type": 3,
    "sync_pattern": 3,
    "accumulation_and_replication_reduction_type": 3,
    "accumulationAndReplicationReductionType": 3,
    "meanAccumulationAndReplicationReductionStrategy": 3,
    "accumulateOuterFragmentSettings.schedule": 4,
    "autodiffSettings.stitchStrategy": 4,
    "batchSerializationSettings.transformContext": 2,
    "batchSerializationSettings.method": 3,
    "batchSerializationSettings.batchSchedule": 4,
    "autoRecomputation": 5,
    "mergeVarUpdate": 4,
    "virtualGraphMode": 4,
    "syntheticDataMode": 4,
    "subgraphCopyingStrategy": 2,
    "automaticLossScalingSettings.gradientTensorTrackingMethod": 3,
    "patterns_level": 4,
}
_STRINGS = frozenset(
    [
        "log_dir",
        "saveInitializersToFile",
        "model_name",
        "logDir",
        "cachePath",
        "partialsTypeMatMuls",
        "customCodeletCompileFlags",
        "serializedPoprithmsShiftGraphsDir",
        "kahnTieBreaker",
    ]
)
_FLOATS = frozenset(
    [
        "outlineSequenceBreakCost",
        "outlineThreshold",
        "timeLimitScheduler",
        "automaticLossScalingSettings.thresholdUpperCountProportion",
        "automaticLossScalingSettings.binEdgeLocation",
    ]
)
_CONTAINERS = frozenset(
    [
        "accumulateOuterFragmentSettings.excludedVirtualGraphs",
        "dotChecks",
        "hardwareInstrumentations",
        "customCodelets",
        "engineOptions",
        "reportOptions",
        "convolutionOptions",
        "matmulOptions",
        "lstmOptions",
        "gclOptions",
        "updatableNamedBuffers",
    ]
)
_LOCATION_SETTINGS = frozenset(
    [
        "minElementsForOffChip",
        "minElementsForReplicatedTensorSharding",
        "onChip",
        "useReplicatedTensorSharding",
        "useIOTilesToLoad",
        "useIOTilesToStore",
    ]
)
# Dealt with elsewhere: read together with another option, or only by PopTorch's Python.
_SKIPPED = frozenset({"patterns_level", "anchored_tensors", "compilation_progress_bar_fn", "ipuof_configs"})


def _known(name: str, names: Iterable[str], kind: str) -> None:
    if name not in names:
        alike = difflib.get_close_matches(name, names)
        meant = f"; did you mean {' or '.join(alike)}?" if alike else ""
        raise poptorch_cpp_error(
            f"Unknown {kind} option {name}: no option of PopART has this name and takes such a value{meant}"
        )


def _check_integer(name: str, value: int) -> None:
    _known(name, _INTEGERS | _ENUMERATIONS.keys(), "uint64")
    if value < 0 or value >= _ENUMERATIONS.get(name, 1 << 64):
        count = _ENUMERATIONS.get(name)
        allowed = "0 or more" if count is None else f"from 0 to {count - 1}"
        raise poptorch_cpp_error(f"Option {name} is {value}, and must be {allowed}")


def _check_element(name: str, element: Any) -> None:
    """An element of one of PopART's containers of strings, in which whole numbers are written out."""
    if not isinstance(element, (str, int)):
        raise poptorch_cpp_error(
            f"Option {name} has an element {element!r} of type {type(element).__name__}, and takes strings."
        )
    if name == "hardwareInstrumentations" and int(element) not in (0, 1):
        raise poptorch_cpp_error(
            f"hardwareInstrumentations has {element}, and takes 0 (outer) and 1 (inner)."
        )


def _check_proportions(name: str, given: Mapping[Any, Any], options: Options) -> None:
    """PopART's `Builder::setAvailableMemoryProportion`."""
    for ipu, proportion in given.items():
        if not isinstance(proportion, (int, float)) or not 0 < proportion <= 1:
            raise poptorch_cpp_error(
                f"setAvailableMemoryProportion() gives IPU{ipu} {proportion!r}, and may give more than 0 and at most 1."
            )


def _check_patterns(name: str, given: Mapping[Any, Any], options: Options) -> None:
    if "patterns_level" not in options:
        raise poptorch_cpp_error(
            "Option patterns changes those of a patterns_level: set both, by _Popart.setPatterns()."
        )
    _check_integer("patterns_level", options["patterns_level"])
    popart_patterns.check_names(given)


def _check_location(name: str, given: Mapping[Any, Any], options: Options) -> None:
    unknown = given.keys() - _LOCATION_SETTINGS
    if unknown:
        raise poptorch_cpp_error(f"{name} has {sorted(unknown)}; a location has {sorted(_LOCATION_SETTINGS)}")
    for key, setting in given.items():
        compiler_logger.debug("%s: %s is %s", name, key, setting)


def _check_map(name: str, given: Mapping[Any, Any], options: Options) -> None:
    """One of PopART's maps of strings; an empty one of any name changes nothing."""
    for key, setting in given.items():
        _known(name, _CONTAINERS, "map")
        _check_element(name, key)
        _check_element(name, setting)
        compiler_logger.debug("poptorch.Options set %s[%s] to %s", name, key, setting)
    if name == "lstmOptions" and str(given.get("partialsType", "")).lower() == "half":
        raise SimulatorUnsupported(
            "lstmOptions[partialsType]=half", "recurrent layers are simulated with float32 sums only."
        )


_MAPPINGS = {"available_memory_proportion": _check_proportions, "patterns": _check_patterns}
"""Checks of options that are mappings of their own kind."""


def _check_mapping(name: str, given: Mapping[Any, Any], options: Options) -> None:
    otherwise = _check_location if name.startswith("location_") else _check_map
    _MAPPINGS.get(name, otherwise)(name, given, options)


def _check_scalar(name: str, value: Any) -> None:
    if isinstance(value, bool):
        _known(name, _BOOLS, "bool")
    elif isinstance(value, float):
        _known(name, _FLOATS, "floating point")
    elif isinstance(value, int):
        _check_integer(name, value)
    elif isinstance(value, str):
        _known(name, _STRINGS, "string")
    else:
        raise poptorch_cpp_error(f"Unknown value type {type(value).__name__} for option {name}")


def _check_option(name: str, value: Any, options: Options) -> None:
    if isinstance(value, dict):
        _check_mapping(name, value, options)
        return
    if isinstance(value, (set, list, tuple)):
        for element in value:
            _known(name, _CONTAINERS, "set / vector")
            _check_element(name, element)
            compiler_logger.debug("poptorch.Options added %s to %s", element, name)
        return
    _check_scalar(name, value)
    shown = str(value).lower() if isinstance(value, bool) else int(value) if isinstance(value, int) else value
    compiler_logger.debug("poptorch.Options set %s to value %s", name, shown)


def validate(options: Options) -> None:
    """Check and log the dict of `Options.toDict`.

    Raises Error for a name that is no option or a value that is out of its range.
    """
    for name, value in options.items():
        if name not in _SKIPPED:
            _check_option(name, value, options)
