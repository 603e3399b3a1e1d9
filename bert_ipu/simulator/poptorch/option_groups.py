"""The groups inside `poptorch.Options`: Jit, Precision, Training, PopART's, Distributed, locations."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch

from . import enums
from ._logging import logger
from .options_dict import FROZEN, OptionsDict, require


class _JitOptions(OptionsDict):
    """What is left of the options of PopTorch's former tracer."""

    def traceModel(self, trace_model: bool) -> _JitOptions:
        """Deprecated; True is no longer possible."""
        logger.warning(
            "[Deprecated] options.Jit.traceModel() has no effect: models are always captured by dispatch"
        )
        if trace_model:
            raise ValueError("options.Jit.traceModel takes False only: PopTorch has no tracer any more")
        return self


class _PrecisionOptions(OptionsDict):
    """How numbers are computed."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__()

    def halfFloatCasting(self, half_float_casting: enums.HalfFloatCastingBehavior) -> _PrecisionOptions:
        """Deprecated: half and float operands always compute in float."""
        logger.warning(
            "[Deprecated] options.Precision.halfFloatCasting() has no effect: half is always upcast to float"
        )
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> _PrecisionOptions:
        """Deprecated: running statistics keep the model's type."""
        if not isinstance(value, bool):
            raise ValueError(f"runningStatisticsAlwaysFloat takes a bool, not {value!r}")
        logger.warning(
            "[Deprecated] options.Precision.runningStatisticsAlwaysFloat() has no effect: it is always False"
        )
        return self

    def enableFloatingPointExceptions(self, enabled: bool) -> _PrecisionOptions:
        """Stop with an error at a division by zero, an overflow or an invalid operation."""
        require(enabled, bool)
        self._popart_options.set("enableFloatingPointChecks", enabled)
        return self

    def enableStochasticRounding(self, enabled: bool) -> _PrecisionOptions:
        """Round to float16 up or down at random, with the mean right."""
        self._popart_options.set("enableStochasticRounding", enabled)
        return self

    def setPartialsType(self, dtype: torch.dtype) -> _PrecisionOptions:
        """The type of partial sums in matrix multiplications and convolutions: torch.float or torch.half."""
        names = {torch.float32: "float", torch.float16: "half"}
        if dtype not in names:
            raise ValueError(f"setPartialsType takes torch.float or torch.half, not {dtype}")
        self._popart_options.set("partialsTypeMatMuls", names[dtype])
        self._popart_options.set("convolutionOptions", {"partialsType": names[dtype]})
        return self


class _TrainingOptions(OptionsDict):
    """What only training models use."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=enums.ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=enums.MeanReductionStrategy.Post,
        )

    def gradientAccumulation(self, gradient_accumulation: int) -> _TrainingOptions:
        """Micro-batches whose gradients make one weight update."""
        self.set(gradient_accumulation=gradient_accumulation)
        return self

    def accumulationAndReplicationReductionType(
        self, reduction_type: enums.ReductionType
    ) -> _TrainingOptions:
        """How gradients combine over micro-batches and replicas: Mean or Sum."""
        kinds = enums.ReductionType
        if not isinstance(reduction_type, kinds) or reduction_type not in (kinds.Mean, kinds.Sum):
            raise ValueError(
                f"Gradients combine by ReductionType.Mean or ReductionType.Sum, not by {reduction_type!r}"
            )
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        return self

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: enums.MeanReductionStrategy
    ) -> _TrainingOptions:
        """When a mean divides."""
        self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)
        return self

    def setAutomaticLossScaling(self, enabled: bool) -> _TrainingOptions:
        """Let the device adapt the loss scaling to the gradients it sees."""
        self._popart_options.set("automaticLossScalingSettings.enabled", enabled)
        return self

    def setConvolutionDithering(self, enabled: bool) -> _TrainingOptions:
        """Spread convolutions over tiles; changes no result."""
        self._popart_options.set("convolutionOptions", {"enableConvDithering": enabled})
        return self


class _PopartOptions:
    """PopART's session options, by PopART's names."""

    def __init__(self) -> None:
        self._is_frozen = False
        self.options: dict[str, Any] = {
            "instrumentWithHardwareCycleCounter": False,
            "rearrangeAnchorsOnHost": False,
        }

    def __deepcopy__(self, memory: dict[int, Any]) -> _PopartOptions:
        copied = _PopartOptions()
        memory[id(self)] = copied
        copied.options = copy.deepcopy(self.options, memory)
        return copied

    def checkIsFrozen(self, option: str | None = None) -> None:
        """Raise AttributeError if these options are in use."""
        if option != "_is_frozen" and self._is_frozen:
            raise AttributeError(FROZEN)

    def set(self, key: str, value: Any) -> _PopartOptions:
        """Set one option; names and types are checked when the model is compiled."""
        self.checkIsFrozen()
        self.options[key] = value
        return self

    def setEngineOptions(self, engine_options: dict[str, str]) -> _PopartOptions:
        """Poplar's engine options."""
        return self.set("engineOptions", engine_options)

    def setPatterns(self, patterns: dict[str, bool], level: int = 2) -> _PopartOptions:
        """Switch PopART's patterns on or off, starting from a level (0 none, 1 minimal, 2 default, 3 all)."""
        require(level, int)
        require(patterns, dict)
        return self.set("patterns_level", level).set("patterns", patterns)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"
        )


class _DistributedOptions(OptionsDict):
    """Which of several processes this one is."""

    def __init__(self) -> None:
        super().__init__(num_distributed_processes=1, distributed_process_id=0, ipuof_configs={})
        self.setEnvVarNames("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    def disable(self) -> _DistributedOptions:
        """Ignore the environment: there is one process."""
        return self.configureProcessId(0, 1)

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> _DistributedOptions:
        """Read the number of processes and this one's id from two environment variables."""
        number, count = os.environ.get(var_process_id, 0), os.environ.get(var_num_processes, 1)
        return self.configureProcessId(int(number), int(count))

    def configureProcessId(self, process_id: int, num_processes: int) -> _DistributedOptions:
        """This process is number `process_id` of `num_processes`."""
        self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)
        return self

    @property
    def processId(self) -> int:
        """This process's number."""
        return self.distributed_process_id  # type: ignore[no-any-return]

    @property
    def numProcesses(self) -> int:
        """How many processes there are."""
        return self.num_distributed_processes  # type: ignore[no-any-return]


class TensorLocationSettings(OptionsDict):
    """Where one kind of tensor is kept. Changes memory and time, no result."""

    def _record(self, name: str, value: Any, kind: type) -> TensorLocationSettings:
        require(value, kind)
        self.createOrSet(**{name: int(value)})
        return self

    def minElementsForOffChip(self, min_elements: int) -> TensorLocationSettings:
        """Smaller tensors stay on the chip."""
        return self._record("minElementsForOffChip", min_elements, int)

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> TensorLocationSettings:
        """Smaller tensors are not sharded over replicas."""
        return self._record("minElementsForReplicatedTensorSharding", min_elements, int)

    def useOnChipStorage(self, use: bool = True) -> TensorLocationSettings:
        """Keep on the chip, or off it; None leaves it to PopART."""
        if use is not None:
            return self._record("onChip", use, bool)
        self.deleteIfExists("onChip")
        return self

    def useReplicatedTensorSharding(self, use: bool = True) -> TensorLocationSettings:
        """Give each replica a share."""
        return self._record("useReplicatedTensorSharding", use, bool)

    def useIOTilesToLoad(self, use: bool = True) -> TensorLocationSettings:
        """Load through the IO tiles."""
        return self._record("useIOTilesToLoad", use, bool)

    def useIOTilesToStore(self, use: bool = True) -> TensorLocationSettings:
        """Store through the IO tiles."""
        return self._record("useIOTilesToStore", use, bool)


class _TensorLocationOptions(OptionsDict):
    """Where activations, weights, optimizer states and accumulators are kept."""

    def numIOTiles(self, num_tiles: int) -> _TensorLocationOptions:
        """Tiles set apart for input and output."""
        require(num_tiles, int)
        assert 32 <= num_tiles <= 192 and num_tiles % 2 == 0, (
            f"numIOTiles must be an even number between 32 and 192. Got {num_tiles}"
        )
        self.createOrSet(numIOTiles=num_tiles)
        return self

    def _set_location(self, name: str, location: TensorLocationSettings) -> _TensorLocationOptions:
        require(location, TensorLocationSettings)
        self.createOrSet(**{name: location.toDict()})
        return self

    def setActivationLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where activations are kept."""
        return self._set_location("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where weights are kept."""
        return self._set_location("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where optimizer states are kept."""
        return self._set_location("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where gradient accumulators are kept."""
        return self._set_location("location_accumulator", location)
