"""What a model and its options mean to the compiler and to the engine: a `CompileRequest`, `ExecutionSettings`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import poptorch_error
from ..graph.ir import Reduction, ReplicaGroups
from ..graph.loss_scaling import AutomaticLossScaling
from ..graph.optimizer_spec import OptimizerSpec
from ..graph.patterns import PatternPass
from ..graph.request import Anchor, CompileRequest, Patterns, parameters_and_buffers
from ..native.abi import runtime_is_loaded as native_runtime_is_loaded
from ..runtime import collectives
from ..runtime.settings import ExecutionSettings, Products
from ._logging import compiler_logger
from .arguments import Arguments
from .enums import (
    CommGroupType,
    MeanReductionStrategy,
    OutputMode,
    ReductionType,
    VariableRetrievalMode,
)
from .options import Options

_MODES = {
    OutputMode.All: "all",
    OutputMode.Final: "final",
    OutputMode.Sum: "sum",
    OutputMode.EveryN: "every_n",
}

# As PopTorch's log has them.
_ANCHOR_RETURNS = {
    OutputMode.All: "ALL",
    OutputMode.Final: "FINAL",
    OutputMode.Sum: "Sum",
    OutputMode.EveryN: "EVERYN",
}


@dataclass(frozen=True)
class Subject:
    """A model as it is to be compiled, with all that the user has said about it."""

    model: Any
    inputs: Arguments
    """One micro-batch."""
    training: bool
    optimizer: torch.optim.Optimizer | None
    optimizer_description: dict[str, Any]
    options: Options
    replica_groups: Mapping[str, tuple[CommGroupType, int, VariableRetrievalMode]]


def compile_request(subject: Subject, forward: Callable[..., Any]) -> CompileRequest:
    """What the compiler is asked for; `forward` takes the tensors of one micro-batch, flat."""
    options = subject.options
    is_module = isinstance(subject.model, torch.nn.Module)
    optimizer = None
    if subject.optimizer is not None:
        optimizer = OptimizerSpec.from_description(subject.optimizer_description, _optimizer_groups(subject))
    return CompileRequest(
        forward=forward,
        module=subject.model if is_module else torch.nn.Module(),
        args=tuple(subject.inputs.tensors()),
        training=subject.training,
        optimizer=optimizer,
        loss_scaling=_automatic_loss_scaling(options) if optimizer is not None else None,
        reduction=_reduction(options, subject.optimizer_description.get("optimizer_type")),
        groups=_replica_groups(subject),
        shared_buffers=options.broadcast_buffers and options.input_group_size < options.replication_factor,
        strided_channel_groups=options._Popart.options.get("groupNormStridedChannelGrouping", False),
        module_scopes=options._module_namescope_enabled,
        anchors=_anchors(options),
        patterns=_patterns(options),
    )


def _patterns(options: Options) -> Patterns | None:
    """The patterns of loaded custom-op libraries, as the options switch them; None where none is loaded."""
    if not native_runtime_is_loaded():
        return None
    popart = options._Popart.options
    return PatternPass(popart.get("patterns", {}), popart.get("patterns_level", 2))


def _anchors(options: Options) -> tuple[Anchor, ...]:
    found = []
    for short, (long, _, mode, period) in options.anchored_tensors.items():
        compiler_logger.debug(
            "Anchor: %s %s/%d", long, _ANCHOR_RETURNS[mode], period if mode == OutputMode.EveryN else 1
        )
        found.append(Anchor(short, long, _MODES[mode], period))
    return tuple(found)


def _reduction(options: Options, optimizer: str | None) -> Reduction:
    """PopART's SGD with a combined accumulator (SGD1) takes its mean by scaling it, whatever the strategy."""
    training = options.Training
    running = training.meanAccumulationAndReplicationReductionStrategy == MeanReductionStrategy.Running
    return Reduction(
        accumulation=training.gradient_accumulation,
        replicas=options.replication_factor * options.Distributed.numProcesses,
        mean=training.accumulation_and_replication_reduction_type == ReductionType.Mean,
        running=running and optimizer != "SGD1",
    )


def _automatic_loss_scaling(options: Options) -> AutomaticLossScaling | None:
    """PopART's settings under PopART's names, where automatic loss scaling is enabled."""
    prefix = "automaticLossScalingSettings."
    given = {
        name[len(prefix) :]: value
        for name, value in options._Popart.options.items()
        if name.startswith(prefix)
    }
    if not given.pop("enabled", False):
        return None
    tracking = given.get("gradientTensorTrackingMethod", 0)
    if tracking == 2:
        raise poptorch_error(
            "automaticLossScalingSettings.gradientTensorTrackingMethod is 2, gradients of tensors that the user "
            "names in toTrackTensors, which PopTorch has no option for: set it to 0 (all) or 1 (of matrix "
            "multiplications and convolutions)."
        )
    return AutomaticLossScaling(
        bin_edge=given.get("binEdgeLocation", 0.125),
        proportion=given.get("thresholdUpperCountProportion", 1e-7),
        period=given.get("updatePeriod", 1),
        matmuls_only=tracking == 1,
    )


def _replica_groups(subject: Subject) -> dict[str, ReplicaGroups]:
    """The groups of `replicaGrouping`; where all replicas are one group, the parameter is like any other."""
    groups = {}
    replicas = subject.options.replication_factor * subject.options.Distributed.numProcesses
    for name, (arrangement, size, retrieval) in subject.replica_groups.items():
        parameter = parameters_and_buffers(subject.model)[name]
        if not parameter.dim():
            raise poptorch_error(
                f"replicaGrouping of {name}: a scalar has no first dimension to count the groups."
            )
        _check_grouping(name, arrangement, size, retrieval)
        if arrangement in (CommGroupType.All, CommGroupType.NoGrouping):
            size = replicas if arrangement == CommGroupType.All else 1
        if size == replicas:
            continue
        if not 0 < size < replicas or replicas % size:
            raise poptorch_error(
                f"replicaGrouping of {name}: groups of {size} replicas do not divide the {replicas} replicas."
            )
        if parameter.shape[0] != replicas // size:
            raise poptorch_error(
                f"replicaGrouping of {name}: groups of {size} make {replicas // size} groups of {replicas} replicas, "
                f"which the parameter's first dimension must count; its shape is {tuple(parameter.shape)}."
            )
        kind: Literal["consecutive", "orthogonal"] = (
            "orthogonal" if arrangement == CommGroupType.Orthogonal else "consecutive"
        )
        groups[name] = ReplicaGroups(kind, size, retrieval == VariableRetrievalMode.AllReplicas)
    return groups


def _check_grouping(name: str, arrangement: Any, size: Any, retrieval: Any) -> None:
    """Raise TypeError where PopTorch's bindings do: they take whole numbers, which its enumerations are."""
    given = {"comm_group_type": arrangement, "shards": size, "variable_retrieval_mode": retrieval}
    for parameter, value in given.items():
        if not isinstance(value, int):
            raise TypeError(
                f"replicaGrouping of {name}: {parameter} must be a whole number or a member of its enumeration, not "
                f"{value!r}"
            )
    for parameter, enumeration in (
        ("comm_group_type", CommGroupType),
        ("variable_retrieval_mode", VariableRetrievalMode),
    ):
        if given[parameter] not in list(enumeration):
            raise poptorch_error(
                f"replicaGrouping of {name}: {parameter} must be one of {', '.join(map(str, enumeration))}, not "
                f"{given[parameter]}."
            )


def _optimizer_groups(subject: Subject) -> dict[str, int]:
    """The optimizer's group of each parameter that it updates."""
    if subject.optimizer is None:
        return {}
    group_of = {
        id(parameter): index
        for index, group in enumerate(subject.optimizer.param_groups)
        for parameter in group["params"]
    }
    named = parameters_and_buffers(subject.model)
    strangers = group_of.keys() - {id(tensor) for tensor in named.values()}
    if strangers:
        raise KeyError(
            f"{len(strangers)} parameters of the optimizer are none of the model's: make the optimizer of the "
            "parameters of the model that is trained."
        )
    return {name: group_of[id(tensor)] for name, tensor in named.items() if id(tensor) in group_of}


def execution_settings(options: Options) -> ExecutionSettings:
    """What the engine is told besides the program."""
    popart = options._Popart.options
    instances = options.Distributed.numProcesses
    return ExecutionSettings(
        device_iterations=options.device_iterations,
        replication_factor=options.replication_factor,
        gradient_accumulation=options.Training.gradient_accumulation,
        output_mode=_MODES[OutputMode(options.output_mode)],  # type: ignore[arg-type]
        output_period=options.output_return_period,
        seed=options.random_seed if options.exists("random_seed") else torch.initial_seed(),
        instance=options.Distributed.processId,
        instances=instances,
        all_reduce=_all_reduce if instances > 1 else None,
        stochastic_rounding=popart.get("enableStochasticRounding", False),
        half_partials=_half_partials(popart),
        float_exceptions=popart.get("enableFloatingPointChecks", False),
    )


def _half_partials(popart: Mapping[str, Any]) -> frozenset[Products]:
    """Which products are summed in float16, unless a `poptorch.MultiConv` says otherwise."""
    chosen: dict[Products, str] = {
        "matmul": popart.get("partialsTypeMatMuls", ""),
        "convolution": popart.get("convolutionOptions", {}).get("partialsType", ""),
    }
    return frozenset(products for products, partials in chosen.items() if partials.lower() == "half")


def _all_reduce(tensors: Sequence[torch.Tensor]) -> None:
    """Sum over the instances, which are connected when the first sum is needed."""
    collectives.current_group().all_reduce(tensors)
