"""Execution strategies: which stage, phase and IPU each block belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..graph.annotations import Placement
from . import enums, recording
from ._logging import logger
from .options_dict import require

BlockId = str


class Stage:
    """Blocks that form one pipeline stage, or run side by side in one phase."""

    def __init__(self, *block_ids: BlockId) -> None:
        _check_names(block_ids)
        self._blocks = block_ids
        self._stage_id = self._phase_id = -1
        self._ipu: int | None = None

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """The ids of the blocks."""
        return self._blocks

    def ipu(self, ipu: int) -> Stage:
        """Place the stage on an IPU."""
        require(ipu, int)
        self._ipu = ipu
        return self


def _check_names(block_ids: Iterable[Any]) -> None:
    for block in block_ids:
        assert isinstance(block, str), f"A block is listed by its name, a string, not by {block!r}"


class BlockPlacer:
    """Puts each block that begins on its stage: one of those that a strategy lists, or else a new one."""

    def __init__(self, listed: dict[BlockId, Stage], automatic: enums.AutoStage | None = None) -> None:
        """`automatic` says how new stages are numbered; without it every block must be listed."""
        self._stages = dict(listed)
        self._automatic = automatic
        self._unnamed = 0

    def next_name(self) -> BlockId:
        """The name of the next block that has none: a number."""
        self._unnamed += 1
        return str(self._unnamed - 1)

    def restart_names(self) -> None:
        """Number unnamed blocks from 0 again."""
        self._unnamed = 0

    def begin(self, block_id: BlockId | None, ipu_id: int | None) -> None:
        """Put what follows in the captured program on the block's stage."""
        name = block_id or self.next_name()
        stage = self._stages.get(name) or self._add_stage(name, ipu_id)
        chosen = (stage._ipu, ipu_id, stage._stage_id)
        ipu = next(each for each in chosen if each is not None)
        logger.debug(
            "block %s begins: stage %d, phase %d, IPU %d", name, stage._stage_id, stage._phase_id, ipu
        )
        recording.place(Placement(ipu, stage._stage_id, stage._phase_id, name))

    def _add_stage(self, name: BlockId, ipu_id: int | None) -> Stage:
        assert self._automatic is not None, (
            f"Block '{name}' is in none of the strategy's stages, which have {', '.join(self._stages)}"
        )
        stage = Stage(name)
        if self._automatic == enums.AutoStage.SameAsIpu:
            assert ipu_id is not None, (
                f"Block '{name}' has no IPU to number its stage by: give it an ipu_id, or use "
                "poptorch.AutoStage.AutoIncrement"
            )
            stage._stage_id = ipu_id
        else:
            stage._stage_id = len(self._stages) + 1
        self._stages[name] = stage
        return stage


current_placer: BlockPlacer | None = None
"""What places the blocks of the model that is being captured."""


class _IExecutionStrategy:
    """What the strategies share: the stages of the blocks that they list."""

    def __init__(self, stages_manager: BlockPlacer, block_map: dict[BlockId, Stage]) -> None:
        self._placer = stages_manager
        self._listed = block_map

    def stage(self, block_id: BlockId) -> Stage:
        """The stage of a block."""
        assert block_id in self._listed, (
            f"Block {block_id} is not listed; listed are: {', '.join(self._listed)}"
        )
        return self._listed[block_id]

    def onStartTracing(self) -> None:
        """Let blocks find their stages here until `onEndTracing`."""
        global current_placer
        current_placer = self._placer

    def onEndTracing(self) -> None:
        """Let blocks do nothing again."""
        global current_placer
        current_placer = None

    def backendOptions(self) -> dict[str, Any]:
        """The options that tell the compiler of the strategy."""
        return {}


class Phase:
    """Stages, or the block ids of one stage, that run in one phase."""

    def __init__(self, *arg: BlockId | Stage) -> None:
        given: Any = arg
        is_of_stages = all(isinstance(each, Stage) for each in given)
        self.stages: Sequence[Stage] = given if is_of_stages else [Stage(*given)]

    def stage(self, idx: int) -> Stage:
        """The phase's stage number `idx`."""
        return self.stages[idx]

    def ipus(self, *ipus: int) -> None:
        """Place each stage on an IPU."""
        assert len(ipus) == len(self.stages), f"{len(ipus)} IPUs are given for {len(self.stages)} stages"
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)


def _as_stage(blocks: BlockId | Stage | Iterable[BlockId]) -> Stage:
    if isinstance(blocks, Stage):
        return blocks
    return Stage(*([blocks] if isinstance(blocks, str) else blocks))


def _stages_by_block(stages: Iterable[Stage]) -> dict[BlockId, Stage]:
    listed: dict[BlockId, Stage] = {}
    for stage in stages:
        for block in stage.blocks:
            assert block not in listed, f"Block {block} is listed in two stages"
            listed[block] = stage
    return listed


class PipelinedExecution(_IExecutionStrategy):
    """Stages work on different micro-batches at the same time."""

    def __init__(self, *args: Any) -> None:
        automatic = enums.AutoStage.SameAsIpu
        if len(args) == 1 and isinstance(args[0], enums.AutoStage):
            (automatic,), args = args, ()
        stages = [_as_stage(blocks) for blocks in args]
        for number, stage in enumerate(stages):
            stage._stage_id = number
        listed = _stages_by_block(stages)
        super().__init__(BlockPlacer(listed, None if listed else automatic), listed)

    def backendOptions(self) -> dict[str, Any]:
        return {"execution_mode": 0}


class ShardedExecution(PipelinedExecution):
    """Stages take turns: one IPU works at a time."""

    def backendOptions(self) -> dict[str, Any]:
        return {"execution_mode": 1}


def is_pipelined(strategy: _IExecutionStrategy) -> bool:
    """Whether stages work side by side; sharded execution, a kind of pipelined one to PopTorch, takes turns."""
    return isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution)


def _as_phase(given: Phase | Stage | BlockId | list[Any]) -> Phase:
    if isinstance(given, Phase):
        return given
    return Phase(*given) if isinstance(given, list) else Phase(given)


class _IPhasedExecution(_IExecutionStrategy):
    """What the phased strategies share: phases in order."""

    def __init__(self, *phases: Phase | list[Stage] | list[BlockId]) -> None:
        assert phases, (
            f"{type(self).__name__} needs its phases listed: poptorch.Phase, or lists of stages or blocks"
        )
        self._tensors_liveness = enums.Liveness.AlwaysLive
        self._separate_backward_phase = False
        self._phases = [_as_phase(each) for each in phases]
        for number, phase in enumerate(self._phases):
            for stage in phase.stages:
                stage._phase_id = number
        listed = _stages_by_block(stage for phase in self._phases for stage in phase.stages)
        super().__init__(BlockPlacer(listed), listed)

    def phase(self, phase: int) -> Phase:
        """Phase number `phase`."""
        assert isinstance(phase, int) and phase >= 0, f"Phases are numbered from 0; {phase!r} is none"
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> _IPhasedExecution:
        """Give the backward pass phases of its own, or turn around in the last forward phase."""
        require(use, bool)
        self._separate_backward_phase = use
        return self

    def backendOptions(self) -> dict[str, Any]:
        return {
            "execution_mode": 2,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": self._tensors_liveness.value,
        }


class ParallelPhasedExecution(_IPhasedExecution):
    """Phases of even number have one group of IPUs, the others another."""

    def backendOptions(self) -> dict[str, Any]:
        return {**super().backendOptions(), "serial_phases_execution": False}

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> ParallelPhasedExecution:
        """Send activations to off-chip memory between the passes."""
        require(off_chip, bool)
        self._tensors_liveness = enums.Liveness.OffChipAfterFwd if off_chip else enums.Liveness.AlwaysLive
        return self


class SerialPhasedExecution(_IPhasedExecution):
    """Phases follow each other on the same IPUs."""

    def setTensorsLiveness(self, liveness: enums.Liveness) -> SerialPhasedExecution:
        """Say when activations leave the chip."""
        require(liveness, enums.Liveness)
        self._tensors_liveness = liveness
        return self

    def backendOptions(self) -> dict[str, Any]:
        return {**super().backendOptions(), "serial_phases_execution": True}
