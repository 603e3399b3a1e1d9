"""The simulated IPUs: how many a program takes, whether they can be had, and whether its pipeline fills."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from torch import fx

from ..errors import Error
from ..graph import ops, overlapped_io
from ..graph.ir import Program
from ._logging import TRACE, compiler_logger
from .enums import ConnectionType, OutputMode
from .options import Options, ParallelPhasedExecution, PipelinedExecution, ShardedExecution
from .recording import NO_BLOCK

MAX_IPUS = 64
"""IPUs one process can have: a Pod64."""


def _error(message: str) -> Error:
    return Error(message, "poptorch_cpp_error")


def forward_ipus(program: Program) -> list[int]:
    """The IPUs the forward visits, in order: consecutive operators on one IPU count once.

    New values of buffers are stored behind all other operators, and count with those that made them.
    """
    visited: list[int] = []
    for node in program.operators():
        ipu = node.meta.get("ipu")
        computes = node.meta.get("pass") == "forward" and node.target is not ops.assign
        if computes and ipu is not None and visited[-1:] != [ipu]:
            visited.append(ipu)
    return visited or [0]


def check_blocks(program: Program) -> None:
    """Raise Error for an operator between blocks."""
    for node in program.operators():
        if node.meta.get("ipu") == NO_BLOCK.ipu and node.meta.get("pass") == "forward":
            raise _error(
                f"No active Block at {node.target} ({node.meta.get('source')}): it comes after one has ended and "
                "before another begins. Move it into one, or begin one before it."
            )


def check_stage_order(program: Program, options: Options) -> None:
    """Raise Error where a pipeline stage reads what a later stage makes."""
    strategy = options._execution_strategy
    if not isinstance(strategy, PipelinedExecution) or isinstance(strategy, ShardedExecution):
        return
    for node in program.operators():
        stage = node.meta.get("stage")
        if node.meta.get("pass") != "forward" or stage is None:
            continue
        for source in node.all_input_nodes:
            earlier = source.meta.get("stage")
            if source.op == "call_function" and earlier is not None and earlier > stage:
                raise _error(
                    f"The pipeline goes back from stage {earlier} to stage {stage}: {_described(node)} reads the "
                    f"result of {_described(source)}. Put the second block on a later stage, with "
                    "poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement) or a list of stages, or use "
                    "poptorch.ShardedExecution."
                )


def _described(node: fx.Node) -> str:
    block, place = node.meta.get("block"), node.meta.get("source")
    name = getattr(node.target, "name", None)
    name = name() if callable(name) else name or str(node.target)
    return f"{name} of block '{block}' ({place})"


def check_overlap(program: Program, options: Options) -> None:
    """Raise Error where inputs or results are to be transferred while an IPU computes, and the options forbid it."""
    if not overlapped_io.overlaps(program):
        return
    strategy = options._execution_strategy
    if isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution):
        raise _error(
            "Overlapped IO is not supported with poptorch.PipelinedExecution. If you are using only one IPU, please "
            "switch to poptorch.ShardedExecution."
        )
    if not options.TensorLocations.exists("numIOTiles"):
        raise _error(
            "No IO tiles allocated. You must allocate at least 32 IO tiles using "
            "poptorch.Options().TensorLocations.numIOTiles."
        )
    if options.output_mode not in (OutputMode.All.value, OutputMode.Sum.value):
        raise _error(
            f"outputMode is OutputMode.{OutputMode(options.output_mode).name}, and transfers that overlap with "
            "computing need poptorch.OutputMode.All or poptorch.OutputMode.Sum."
        )


def check_phases(program: Program, options: Options) -> None:
    """Raise Error for a parallel phase on the other group's IPUs."""
    if not isinstance(options._execution_strategy, ParallelPhasedExecution):
        return
    for node in program.operators():
        ipu, phase = node.meta.get("ipu"), node.meta.get("phase")
        if node.meta.get("pass") == "forward" and ipu is not None and phase is not None and (ipu - phase) % 2:
            raise _error(
                f"Phase {phase} has block '{node.meta.get('block')}' on IPU {ipu}, but parallel phases of even number "
                "take IPUs of even number, and odd ones odd ones. Change the block's IPU, or use "
                "poptorch.SerialPhasedExecution."
            )


def check_pipeline(program: Program, options: Options) -> None:
    """Raise Error where a pipeline has more stages than micro-batches to fill it."""
    strategy = options._execution_strategy
    if not isinstance(strategy, PipelinedExecution) or isinstance(strategy, ShardedExecution):
        return
    forward = len(forward_ipus(program))
    if not program.training:
        if options.device_iterations < forward:
            raise _error(
                f"poptorch.Options().deviceIterations must be greater: it is {options.device_iterations}, and it takes "
                f"{forward} to fill the pipeline's {forward} stages."
            )
        return
    stages = 2 * forward - 1
    accumulation = options.Training.gradient_accumulation
    if accumulation < stages:
        raise _error(
            "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of "
            f"pipeline stages ({stages}) when using poptorch.PipelinedExecution. Please note that a model with "
            f"{forward} pipeline stages in PopTorch will have an additional {forward - 1} stages when training. "
            f"It is {accumulation}."
        )


def model_is_asked_for() -> bool:
    """Whether POPTORCH_IPU_MODEL asks for the IPU Model; options that say what to use come before it."""
    asked = os.environ.get("POPTORCH_IPU_MODEL", "0")
    if not asked.strip().isdecimal():
        raise _error(f"POPTORCH_IPU_MODEL is {asked!r}; set it to 1 for the IPU Model, or to 0.")
    return int(asked) != 0


IPU_VERSIONS = (1, 2, 21)
"""What `Options.useOfflineIpuTarget` may compile for."""


def _is_device(options: Options) -> bool:
    """Whether the target is a device, rather than the IPU Model or one that is only compiled for."""
    is_model = options.use_model if options.exists("use_model") else model_is_asked_for()
    offline = options.connection_type == ConnectionType.Never
    popart = options._Popart.options
    if (is_model or offline) and popart["instrumentWithHardwareCycleCounter"]:
        raise _error(
            "Cycle count logging is only supported on actual IPU hardware: leave logCycleCount() out for "
            f"{'the IPU model' if is_model else 'an offline target'}."
        )
    if is_model and popart.get("enableEngineCaching"):
        compiler_logger.warning(
            "Graphcore's IPU Model has no executable cache; the simulator keeps its programs anyway"
        )
    if not offline:
        return not is_model
    if is_model:
        raise _error(
            "useOfflineIpuTarget() and ConnectionType.Never compile for an IPU, but useIpuModel or POPTORCH_IPU_MODEL "
            "asks for the IPU Model: leave out one or the other."
        )
    if options.exists("ipu_id"):
        raise _error(
            f"useIpuId({options.ipu_id}) names a device, but the program is only compiled: leave it out, or "
            "useOfflineIpuTarget() and ConnectionType.Never."
        )
    if options.exists("ipu_version") and options.ipu_version not in IPU_VERSIONS:
        raise _error(
            f"useOfflineIpuTarget() was given version {options.ipu_version}; there are "
            f"{', '.join(map(str, IPU_VERSIONS))}."
        )
    return False


def reserved_ipus(program: Program, options: Options) -> int:
    """IPUs to reserve for all replicas: a power of 2 of a real device, whose rounding the options allow.

    Raises Error for too many, where rounding is off, and for a target that there is not.
    """
    needed: int = (max(forward_ipus(program)) + 1) * options.replication_factor
    if needed > MAX_IPUS:
        raise _error(
            f"Too many IPUs requested ({needed}). Experiments that need over {MAX_IPUS} run as several instances, "
            "with poprun; or use fewer stages or replicas."
        )
    if not _is_device(options):
        return needed
    reserved: int = 1 << (needed - 1).bit_length()
    if reserved != needed:
        if not options.auto_round_num_ipus:
            raise _error(
                f"The model specifies the use of {needed} IPUs, however PopTorch must reserve a minimum of {reserved} "
                "in order to allow the model to run, because PopTorch must reserve a power of 2 or maximum of 64 IPUs "
                "per process. Please reconfigure your model to use a different number of IPUs or set "
                "poptorch.Options().autoRoundNumIPUs(True)."
            )
        compiler_logger.warning(
            "The model uses %d IPUs; %d are reserved, the next power of 2, and the others stay idle.",
            needed,
            reserved,
        )
    return reserved


@dataclass
class DevicePool:
    """The devices of this process, and which of those asked for by their id are taken."""

    taken: set[int] = field(default_factory=set)
    _acquired: int = 0

    def acquire(self, ipus: int, ipu_id: int | None) -> int:
        """Take a device of so many IPUs, or a certain one; its id. Raises Error where that one is taken."""
        if ipu_id is None:
            number, self._acquired = self._acquired, self._acquired + 1
            compiler_logger.debug("Acquired %d IPU(s): running on device Id %d.", ipus, number)
        else:
            if ipu_id in self.taken:
                raise _error(
                    f"Failed to acquire device Id {ipu_id}: another model of this process is attached to it. Call "
                    "its detachFromDevice() or destroy(), or leave the choice of the device to PopTorch."
                )
            self.taken.add(ipu_id)
            number = ipu_id
            compiler_logger.debug("Acquired the device with id %d", number)
        compiler_logger.log(TRACE, "Attached to device %d", number)
        return number

    def release(self, number: int) -> None:
        """Give a device back."""
        compiler_logger.debug("Detached from device %d", number)
        self.taken.discard(number)


pool = DevicePool()
"""Devices are exclusive across all models of a process."""
