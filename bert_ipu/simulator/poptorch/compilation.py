"""From a model, its inputs and its options to a session: captures the forward once and compiles it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..compiler import Anchor, CompileRequest, Patterns, compile_program
from ..errors import poptorch_error
from ..executables.cache import Key, describe_differences
from ..executables.container import Contents, UnusableFile
from ..graph import capture
from ..graph.annotations import Placement
from ..graph.captured import CapturedTensor
from ..graph.ir import Program, Reduction, ReplicaGroups
from ..graph.loss_scaling import AutomaticLossScaling
from ..graph.optimizers import OptimizerSpec
from ..graph.patterns import PatternPass
from ..installation import current_params
from ..native.abi import runtime_is_loaded as native_runtime_is_loaded
from ..runtime import collectives
from ..runtime.engine import Executable
from ..runtime.settings import ExecutionSettings, Products
from . import devices, session_options, wrapping
from ._logging import compiler_logger, logger
from .arguments import Arguments
from .captured_program import CapturedProgram, read_captured
from .enums import (
    CommGroupType,
    ConnectionType,
    MeanReductionStrategy,
    OutputMode,
    ReductionType,
    VariableRetrievalMode,
)
from .executable_caching import Watching, cache_folder, cached_program
from .executable_key import FITTING, fitting_key
from .options import Options
from .recording import place
from .session import Session
from .structure import flattenTensorStructure, reconstructTensorStructure
from .torch_behaviour import IpuByDefault, torch_without_values

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
class Compiled:
    """A program, and the session that runs it."""

    session: Session
    captured: CapturedProgram


@dataclass(frozen=True)
class Subject:
    """What is compiled."""

    model: Any
    inputs: Arguments
    """One micro-batch."""
    training: bool
    optimizer: torch.optim.Optimizer | None
    optimizer_description: dict[str, Any]
    options: Options
    replica_groups: Mapping[str, tuple[CommGroupType, int, VariableRetrievalMode]]


def is_on_ipu(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to a captured program."""
    return isinstance(tensor, CapturedTensor)


def named_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; none for a function."""
    if not isinstance(model, torch.nn.Module):
        return {}
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def check_initialised(model: Any) -> None:
    """Raise Error for a parameter or buffer of a lazy module, which has no shape before the module's first call."""
    for name, tensor in named_tensors(model).items():
        if torch.nn.parameter.is_lazy(tensor):
            raise poptorch_error(
                f"{name} belongs to a lazy module and has no shape yet: call the model with an example on the CPU "
                "before it is run or trained on the IPU."
            )


def compile_model(subject: Subject) -> Compiled:
    """Capture and compile. Raises what the forward raises, and Error for what the IPU cannot do."""
    return _on_device(subject, _program)


def load_model(subject: Subject, filename: str, contents: Contents) -> Compiled:
    """Take the program of a file. Raises Error where it was compiled for another model or other settings."""

    def program(subject: Subject) -> CapturedProgram:
        request = _request(subject, _Captured(subject.model, subject.inputs))
        before = {part: json.loads(contents.headers["key"]).get(part, {}) for part in FITTING}
        differences = describe_differences(before, fitting_key(subject, request))
        if differences:
            raise poptorch_error(
                f"Invalid file {filename}: its executable was compiled for another model or other options: "
                f"{'; '.join(differences[:4])}. Load it for what it was compiled for, or compile again."
            )
        try:
            return read_captured(contents, named_tensors(subject.model), subject.optimizer_description)
        except UnusableFile as error:
            raise poptorch_error(f"Invalid file {filename}: {error}") from error

    return _on_device(subject, program)


def key_for_loading(subject: Subject) -> Key:
    """What `load_model` compares."""
    with wrapping.unwrapped(subject.model):
        return fitting_key(subject, _request(subject, _Captured(subject.model, subject.inputs)))


def _on_device(subject: Subject, make: Callable[[Subject], CapturedProgram]) -> Compiled:
    """Make the program and the device that runs it."""
    check_initialised(subject.model)
    options = subject.options
    session_options.validate(options.toDict())
    _check_return_period(options)
    progress = options._progress_bar if options._show_compilation_progress_bar else _no_progress
    progress(0, 3)
    with wrapping.unwrapped(subject.model):
        captured = make(subject)
    program = captured.program
    progress(2, 3)
    params = current_params()
    if options.connection_type == ConnectionType.Never:
        params = dataclasses.replace(params, device="null")
    devices.check_blocks(program)
    devices.check_stage_order(program, options)
    ipus = devices.reserved_ipus(program, options)
    devices.check_pipeline(program, options)
    executable = Executable(program, _execution_settings(options), params)
    progress(3, 3)
    return Compiled(Session(program, executable, ipus, options), captured)


def _program(subject: Subject) -> CapturedProgram:
    """The program of a model, by its forward or from the cache."""
    captured = _Captured(subject.model, subject.inputs)
    request = _request(subject, captured)

    def compile_(watching: Watching = nullcontext) -> CapturedProgram:
        captured.watching = watching
        with torch_without_values(), _tracing(subject.options):
            program = compile_program(request)
        _warn_of_what_follows_the_loss(program)
        return CapturedProgram(program, captured.outputs_structure)

    folder = cache_folder(subject.options)
    return compile_() if folder is None else cached_program(folder, subject, request, compile_)


_ARITHMETIC = frozenset({"aten::add", "aten::sub", "aten::rsub", "aten::mul", "aten::div"})


def _warn_of_what_follows_the_loss(program: Program) -> None:
    """PopTorch minimises the result of the last loss function, whatever the forward computes from it."""
    for user in program.loss.users if program.loss is not None else ():
        schema = getattr(user.target, "_schema", None)
        if user.meta.get("pass") == "forward" and schema is not None and schema.name in _ARITHMETIC:
            logger.warning(
                "The result of the loss function at %s is minimised; what is computed from it at %s changes nothing in "
                "training. Wrap the value to minimise in poptorch.identity_loss.",
                program.loss.meta.get("source"),  # type: ignore[union-attr]
                user.meta.get("source"),
            )


@contextmanager
def _tracing(options: Options) -> Iterator[None]:
    options._execution_strategy.onStartTracing()
    try:
        yield
    finally:
        options._execution_strategy.onEndTracing()


def _no_progress(done: int, total: int) -> None:
    """The user wants no progress bar."""


class _Captured:
    """The forward as a function of flat tensors, with the structure of what it returned."""

    def __init__(self, model: Any, inputs: Arguments) -> None:
        self._model = model
        self._inputs = inputs
        self.outputs_structure: Any = None
        self.watching: Watching = nullcontext
        """Entered around the user's code."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = reconstructTensorStructure((self._inputs.args, self._inputs.kwargs), tensors)
        with IpuByDefault():
            with self.watching():
                returned = self._model(*args, **kwargs)
            result = _recognised(returned)
            place(Placement())  # what follows is no operator of the user's, to be in a block
            outputs = tuple(_narrowed(output) for output in self._outputs(result))
        self.outputs_structure = reconstructTensorStructure(
            result, map(_placeholder, flattenTensorStructure(result))
        )
        return outputs

    @staticmethod
    def _outputs(result: Any) -> Iterator[torch.Tensor]:
        for output in flattenTensorStructure(result):
            if is_on_ipu(output):
                yield output
            else:
                logger.warning("Output expected to be on the IPU but is on %s", output.device.type)


def _placeholder(tensor: torch.Tensor) -> torch.Tensor:
    """What stands in a result's structure for a tensor of the program: nothing that keeps the capture alive."""
    if not is_on_ipu(tensor):
        return tensor
    with capture.suspended():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _recognised(result: Any) -> Any:
    """What the forward returned, its parameters and buffers as tensors of the program."""
    current = capture.current()
    assert current is not None, "the forward is entered inside a capture"
    return reconstructTensorStructure(result, map(current.recognise, flattenTensorStructure(result)))


def _narrowed(tensor: torch.Tensor) -> torch.Tensor:
    """The IPU has no 64-bit types: results come back as it has them."""
    narrower = {torch.int64: torch.int32, torch.float64: torch.float32}
    return tensor.to(narrower[tensor.dtype]) if tensor.dtype in narrower else tensor


def _request(subject: Subject, captured: _Captured) -> CompileRequest:
    options = subject.options
    is_module = isinstance(subject.model, torch.nn.Module)
    optimizer = None
    if subject.optimizer is not None:
        optimizer = OptimizerSpec.from_description(subject.optimizer_description, _optimizer_groups(subject))
    return CompileRequest(
        forward=captured.forward,
        module=subject.model if is_module else torch.nn.Module(),
        args=tuple(subject.inputs.tensors()),
        training=subject.training,
        optimizer=optimizer,
        loss_scaling=_automatic_loss_scaling(options) if optimizer is not None else None,
        reduction=_reduction(options),
        groups=_replica_groups(subject),
        strided_channel_groups=options._Popart.options.get("groupNormStridedChannelGrouping", False),
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


def _check_return_period(options: Options) -> None:
    """Raise Error where "every n-th batch" would be another one in each call (PopART's `DataFlow`).

    Anchored tensors may ask for it: PopTorch's own tests do (debug_tensors_test.py, test_tensor_modes).
    """
    period, iterations = options.output_return_period, options.device_iterations
    if options.output_mode == OutputMode.EveryN and iterations % period:
        raise poptorch_error(
            f"The return period ({period}) of results must be a factor of the number of batches per step, "
            f"poptorch.Options().deviceIterations({iterations})."
        )


def _reduction(options: Options) -> Reduction:
    training = options.Training
    return Reduction(
        accumulation=training.gradient_accumulation,
        replicas=options.replication_factor * options.Distributed.numProcesses,
        mean=training.accumulation_and_replication_reduction_type == ReductionType.Mean,
        running=training.meanAccumulationAndReplicationReductionStrategy == MeanReductionStrategy.Running,
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
    groups = {}
    options = subject.options
    if not options.broadcast_buffers and options.replication_factor > 1:
        buffers = subject.model.named_buffers() if isinstance(subject.model, torch.nn.Module) else ()
        groups = {name: ReplicaGroups("consecutive", 1) for name, _ in buffers}
    for name, (arrangement, size, retrieval) in subject.replica_groups.items():
        parameter = named_tensors(subject.model)[name]
        if not parameter.dim():
            raise poptorch_error("Scalars cannot be passed as per-replica weight tensor values")
        retrieve_all = retrieval == VariableRetrievalMode.AllReplicas
        if arrangement == CommGroupType.NoGrouping:
            groups[name] = ReplicaGroups("consecutive", 1, retrieve_all)
        elif arrangement == CommGroupType.All:
            groups[name] = ReplicaGroups("consecutive", subject.options.replication_factor, retrieve_all)
        else:
            kind = "consecutive" if arrangement == CommGroupType.Consecutive else "orthogonal"
            groups[name] = ReplicaGroups(kind, size, retrieve_all)  # type: ignore[arg-type]
    return groups


def _optimizer_groups(subject: Subject) -> dict[str, int]:
    """The optimizer's group of each parameter that it updates."""
    if subject.optimizer is None:
        return {}
    group_of = {
        id(parameter): index
        for index, group in enumerate(subject.optimizer.param_groups)
        for parameter in group["params"]
    }
    named = named_tensors(subject.model)
    return {name: group_of[id(tensor)] for name, tensor in named.items() if id(tensor) in group_of}


def _execution_settings(options: Options) -> ExecutionSettings:
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
