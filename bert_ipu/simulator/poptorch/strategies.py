"""Execution strategies: which stage, phase and IPU each block belongs to."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any

from ..graph.annotations import Placement
from . import enums, recording
from ._logging import logger

BlockId = str


class Stage:
    """Blocks that form one pipeline stage, or run side by side in one phase."""

    def __init__(self, *block_ids: BlockId) -> None:
        assert all(isinstance(block, str) for block in block_ids), (
            f"Block IDs are supposed to be strings but got {block_ids}"
        )
        self._blocks = block_ids
        self._stage_id = -1
        self._phase_id = -1
        self._ipu: int | None = None

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """The ids of the blocks."""
        return self._blocks

    def ipu(self, ipu: int) -> Stage:
        """Place the stage on an IPU."""
        assert isinstance(ipu, int)
        self._ipu = ipu
        return self

    def _setStage(self, stage: int | None) -> Stage:
        if stage is not None:
            self._stage_id = stage
        return self


class StageManager(abc.ABC):
    """Turns the start of a block into a stage, a phase and an IPU for the capture in progress."""

    def __init__(self) -> None:
        self._next_auto_id = 0
        self._current_ipu: int | None = None

    @abc.abstractmethod
    def getStage(self, block_id: BlockId) -> Stage:
        """The stage of a block."""

    def nextAutoId(self) -> BlockId:
        """The next id for a block without a name."""
        self._next_auto_id += 1
        return str(self._next_auto_id - 1)

    def resetAutoId(self) -> None:
        """Number unnamed blocks from 0 again."""
        self._next_auto_id = 0

    def beginStage(self, user_id: BlockId | None, ipu_id: int | None) -> None:
        """Put what follows in the captured program on the block's stage."""
        user_id = user_id or self.nextAutoId()
        self._current_ipu = ipu_id
        stage = self.getStage(user_id)
        ipu = stage._ipu if stage._ipu is not None else ipu_id
        if ipu is None:
            logger.debug("No IPU specified for block %s: default to stage_id %d", user_id, stage._stage_id)
            ipu = stage._stage_id
        logger.debug(
            "Starting block id=%s stage=%d phase=%d ipu=%d", user_id, stage._stage_id, stage._phase_id, ipu
        )
        recording.place(Placement(ipu, stage._stage_id, stage._phase_id, user_id))


class _ListedStages(StageManager):
    """Stages that the strategy lists."""

    def __init__(self, block_map: dict[BlockId, Stage]) -> None:
        super().__init__()
        self._block_map = block_map

    def getStage(self, block_id: BlockId) -> Stage:
        assert block_id in self._block_map, (
            f"Unknown Block '{block_id}' list of expected Blocks: {list(self._block_map)}"
        )
        return self._block_map[block_id]


class _AutomaticStages(StageManager):
    """Stages numbered as blocks first appear, or as the blocks' IPUs."""

    def __init__(self, auto_stage: enums.AutoStage) -> None:
        super().__init__()
        self._next_id = 1
        self._block_map: dict[BlockId, Stage] = {}
        self._auto_stage = auto_stage

    def getStage(self, block_id: BlockId) -> Stage:
        if block_id not in self._block_map:
            self._block_map[block_id] = Stage(block_id)._setStage(self._new_stage_id(block_id))
        return self._block_map[block_id]

    def _new_stage_id(self, block_id: BlockId) -> int:
        if self._auto_stage == enums.AutoStage.SameAsIpu:
            assert self._current_ipu is not None, (
                f"poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block {block_id}"
            )
            return self._current_ipu
        self._next_id += 1
        return self._next_id - 1


current_stages: StageManager | None = None
"""The stage manager of the model that is being captured."""


class _IExecutionStrategy:
    """What the strategies share: the map from blocks to stages."""

    def __init__(self, stages_manager: StageManager, block_map: dict[BlockId, Stage]) -> None:
        self._block_map = block_map
        self._stages_manager = stages_manager

    def stage(self, block_id: BlockId) -> Stage:
        """The stage of a block."""
        assert block_id in self._block_map, f"Unknown block {block_id}"
        return self._block_map[block_id]

    def onStartTracing(self) -> None:
        """Let blocks find their stages here until `onEndTracing`."""
        global current_stages
        current_stages = self._stages_manager

    def onEndTracing(self) -> None:
        """Let blocks do nothing again."""
        global current_stages
        current_stages = None

    def backendOptions(self) -> dict[str, Any]:
        """The options that tell the compiler of the strategy."""
        return {}


class Phase:
    """Stages, or the block ids of one stage, that run in one phase."""

    def __init__(self, *arg: BlockId | Stage) -> None:
        if all(isinstance(each, Stage) for each in arg):
            self.stages: Any = arg
            return
        assert all(isinstance(each, str) for each in arg), (
            "All arguments must either be block IDs (strings) or Stages: " + str([type(each) for each in arg])
        )
        self.stages = [Stage(*arg)]  # type: ignore[arg-type]

    def stage(self, idx: int) -> Stage:
        """The phase's stage number `idx`."""
        return self.stages[idx]  # type: ignore[no-any-return]

    def ipus(self, *ipus: int) -> None:
        """Place each stage on an IPU."""
        assert len(ipus) == len(self.stages), (
            f"Phase contains {len(self.stages)} stages but you provided {len(ipus)} ipus"
        )
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)


def _as_stage(blocks: BlockId | Stage | Iterable[BlockId]) -> Stage:
    if isinstance(blocks, Stage):
        return blocks
    if isinstance(blocks, str):
        return Stage(blocks)
    return Stage(*blocks)


def _add_blocks(block_map: dict[BlockId, Stage], stage: Stage, kind: str, number: int) -> None:
    for block in stage.blocks:
        assert block not in block_map, f"{block} associated with more than one stage"
        place = f" on IPU {stage._ipu}" if stage._ipu is not None else ""
        logger.debug("block %s added to %s %d%s", block, kind, number, place)
        block_map[block] = stage


class PipelinedExecution(_IExecutionStrategy):
    """Stages work on different micro-batches at the same time."""

    def __init__(self, *args: Any) -> None:
        block_map: dict[BlockId, Stage] = {}
        auto_stage = enums.AutoStage.SameAsIpu
        if len(args) == 1 and isinstance(args[0], enums.AutoStage):
            auto_stage, args = args[0], ()
        for stage_id, blocks in enumerate(args):
            _add_blocks(block_map, _as_stage(blocks)._setStage(stage_id), "stage", stage_id)
        super().__init__(_ListedStages(block_map) if block_map else _AutomaticStages(auto_stage), block_map)

    def backendOptions(self) -> dict[str, Any]:
        return {"execution_mode": 0}


class ShardedExecution(PipelinedExecution):
    """Stages take turns: one IPU works at a time."""

    def backendOptions(self) -> dict[str, Any]:
        return {"execution_mode": 1}


def is_pipelined(strategy: _IExecutionStrategy) -> bool:
    """Whether stages work side by side; sharded execution, a kind of pipelined one to PopTorch, takes turns."""
    return isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution)


class _IPhasedExecution(_IExecutionStrategy):
    """What the phased strategies share: phases in order."""

    def __init__(self, *phases: Phase | list[Stage] | list[BlockId]) -> None:
        assert phases, (
            "There is currently no AutoStage for PhasedExecution, please explicitly specify the phases"
        )
        self._tensors_liveness = enums.Liveness.AlwaysLive
        self._separate_backward_phase = False
        self._phases: list[Phase] = []
        block_map: dict[BlockId, Stage] = {}
        for phase_id, each in enumerate(phases):
            phase = each if isinstance(each, Phase) else Phase(*(each if isinstance(each, list) else [each]))
            self._phases.append(phase)
            for stage in phase.stages:
                stage._phase_id = phase_id
                _add_blocks(block_map, stage, "phase", phase_id)
        super().__init__(_ListedStages(block_map), block_map)

    def phase(self, phase: int) -> Phase:
        """Phase number `phase`."""
        assert isinstance(phase, int) and phase >= 0, "Phases are identified by positive integers"
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> _IPhasedExecution:
        """Give the backward pass phases of its own, or turn around in the last forward phase."""
        assert isinstance(use, bool)
        self._separate_backward_phase = use
        return self

    def backendOptions(self) -> dict[str, Any]:
        return {
            "execution_mode": 2,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": self._tensors_liveness.value,
        }


class ParallelPhasedExecution(_IPhasedExecution):
    """Phases alternate between two groups of IPUs."""

    def backendOptions(self) -> dict[str, Any]:
        return {**super().backendOptions(), "serial_phases_execution": False}

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> ParallelPhasedExecution:
        """Send activations to off-chip memory between the passes."""
        assert isinstance(off_chip, bool)
        self._tensors_liveness = enums.Liveness.OffChipAfterFwd if off_chip else enums.Liveness.AlwaysLive
        return self


class SerialPhasedExecution(_IPhasedExecution):
    """All phases run on one group of IPUs."""

    def setTensorsLiveness(self, liveness: enums.Liveness) -> SerialPhasedExecution:
        """Say when activations leave the chip."""
        assert isinstance(liveness, enums.Liveness)
        self._tensors_liveness = liveness
        return self

    def backendOptions(self) -> dict[str, Any]:
        return {**super().backendOptions(), "serial_phases_execution": True}
