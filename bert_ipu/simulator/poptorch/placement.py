"""Whether a program's operators lie on IPUs, stages and phases that the execution strategy can run."""

from __future__ import annotations

from torch import fx

from ..errors import poptorch_cpp_error
from ..graph import ops, overlapped_io
from ..graph.ir import Program
from .enums import OutputMode
from .options import Options, ParallelPhasedExecution
from .recording import NO_BLOCK
from .strategies import is_pipelined


def check_placement(program: Program, options: Options) -> None:
    """Raise Error for operators outside of blocks, or where the strategy cannot run them."""
    _check_blocks(program)
    _check_stage_order(program, options)
    _check_phases(program, options)
    _check_overlap(program, options)


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


def _check_blocks(program: Program) -> None:
    """Raise Error for an operator between blocks."""
    for node in program.operators():
        if node.meta.get("ipu") == NO_BLOCK.ipu and node.meta.get("pass") == "forward":
            raise poptorch_cpp_error(
                f"No active Block at {node.target} ({node.meta.get('source')}): it comes after one has ended and "
                "before another begins. Move it into one, or begin one before it."
            )


def _check_stage_order(program: Program, options: Options) -> None:
    """Raise Error where a pipeline stage reads what a later stage makes."""
    if not is_pipelined(options._execution_strategy):
        return
    for node in program.operators():
        stage = node.meta.get("stage")
        if node.meta.get("pass") != "forward" or stage is None:
            continue
        for source in node.all_input_nodes:
            earlier = source.meta.get("stage")
            if source.op == "call_function" and earlier is not None and earlier > stage:
                raise poptorch_cpp_error(
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


def _check_overlap(program: Program, options: Options) -> None:
    """Raise Error where inputs or results are to be transferred while an IPU computes, and the options forbid it."""
    if not overlapped_io.overlaps(program):
        return
    if is_pipelined(options._execution_strategy):
        raise poptorch_cpp_error(
            "Overlapped IO is not supported with poptorch.PipelinedExecution. If you are using only one IPU, please "
            "switch to poptorch.ShardedExecution."
        )
    if not options.TensorLocations.exists("numIOTiles"):
        raise poptorch_cpp_error(
            "No IO tiles allocated. You must allocate at least 32 IO tiles using "
            "poptorch.Options().TensorLocations.numIOTiles."
        )
    if options.output_mode not in (OutputMode.All.value, OutputMode.Sum.value):
        raise poptorch_cpp_error(
            f"outputMode is OutputMode.{OutputMode(options.output_mode).name}, and transfers that overlap with "
            "computing need poptorch.OutputMode.All or poptorch.OutputMode.Sum."
        )


def _check_phases(program: Program, options: Options) -> None:
    """Raise Error for a parallel phase on the other group's IPUs."""
    if not isinstance(options._execution_strategy, ParallelPhasedExecution):
        return
    for node in program.operators():
        ipu, phase = node.meta.get("ipu"), node.meta.get("phase")
        if node.meta.get("pass") == "forward" and ipu is not None and phase is not None and (ipu - phase) % 2:
            raise poptorch_cpp_error(
                f"Phase {phase} has block '{node.meta.get('block')}' on IPU {ipu}, but parallel phases of even number "
                "take IPUs of even number, and odd ones odd ones. Change the block's IPU, or use "
                "poptorch.SerialPhasedExecution."
            )


def check_pipeline(program: Program, options: Options) -> None:
    """Raise Error where a pipeline has more stages than micro-batches to fill it."""
    if not is_pipelined(options._execution_strategy):
        return
    forward = len(forward_ipus(program))
    if not program.training:
        if options.device_iterations < forward:
            raise poptorch_cpp_error(
                f"poptorch.Options().deviceIterations must be greater: it is {options.device_iterations}, and it takes "
                f"{forward} to fill the pipeline's {forward} stages."
            )
        return
    stages = 2 * forward - 1
    accumulation = options.Training.gradient_accumulation
    if accumulation < stages:
        raise poptorch_cpp_error(
            "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of "
            f"pipeline stages ({stages}) when using poptorch.PipelinedExecution. Please note that a model with "
            f"{forward} pipeline stages in PopTorch will have an additional {forward - 1} stages when training. "
            f"It is {accumulation}."
        )
