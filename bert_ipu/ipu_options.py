"""IpuConfig to poptorch.Options, for training and for evaluation."""
from __future__ import annotations

from typing import Any, Dict

import popdist
import popdist.poptorch
import poptorch
import torch

from bert_ipu.config import RunConfig
from bert_ipu.custom_ops import pattern_switches

# For speed and memory on hardware, as graphcore/examples nlp/bert/pytorch/ipu_options.py sets them.  Numbers
# are PopART's: AccumulateOuterFragmentSchedule.OverlapMemoryOptimized, SubgraphCopyingStrategy.JustInTime.
TRAINING_SESSION_OPTIONS: Dict[str, Any] = {
    "disableGradAccumulationTensorStreams": True,
    "accumulateOuterFragmentSettings.schedule": 3,
    "accumulateOuterFragmentSettings.excludedVirtualGraphs": ["0"],
    "subgraphCopyingStrategy": 1,
    "scheduleNonWeightUpdateGradientConsumersEarly": True,
}
# TiedGather: the word embedding's lookup takes the slices of the decoder that shares its weight.
TRAINING_PATTERNS = {"TiedGather": True, "TiedGatherAccumulate": True, "UpdateInplacePrioritiesForIpu": True}


def training_options(config: RunConfig, compile_only: bool = False) -> Any:
    """What a call of the training model does: device iterations * replicas * accumulation micro-batches.

    Outputs come back summed over them, which is least to send; train.step divides.
    """
    ipu = config.ipu
    options = _placement_options(config, compile_only)
    options.deviceIterations(ipu.device_iterations)
    options.outputMode(poptorch.OutputMode.Sum)
    options.Training.gradientAccumulation(ipu.gradient_accumulation)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    if config.optim.auto_loss_scaling:
        options.Training.setAutomaticLossScaling(True)
    options.TensorLocations.setOptimizerLocation(
        poptorch.TensorLocationSettings()
        .useOnChipStorage(not ipu.optimizer_state_offchip)
        .useReplicatedTensorSharding(ipu.replicated_tensor_sharding))
    for name, value in TRAINING_SESSION_OPTIONS.items():
        options._Popart.set(name, value)
    options._Popart.setPatterns({**TRAINING_PATTERNS, **pattern_switches(config.custom_ops)})
    return options


def evaluation_options(config: RunConfig, device_iterations: int) -> Any:
    """The same placement without gradients; each of the micro-batches of a call returns its outputs."""
    options = _placement_options(config, compile_only=False)
    options.deviceIterations(device_iterations)
    options.outputMode(poptorch.OutputMode.All)
    switches = pattern_switches(config.custom_ops)
    if switches:
        options._Popart.setPatterns(switches)
    return options


def _placement_options(config: RunConfig, compile_only: bool) -> Any:
    """What training and evaluation share: replicas, pipeline, precision, memory, seed."""
    ipu = config.ipu
    if popdist.isPopdistEnvSet():
        options = popdist.poptorch.Options(ipus_per_replica=ipu.ipus_per_replica)
        options.showCompilationProgressBar(popdist.getInstanceIndex() == 0)
    else:
        options = poptorch.Options()
        options.replicationFactor(ipu.replication_factor)
    # AutoIncrement lets the pipeline come back to IPU 0 for the heads, as a stage of its own.
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    options.setAvailableMemoryProportion({f"IPU{n}": share for n, share in enumerate(ipu.memory_proportions)})
    options.randomSeed(config.train.seed)
    options.Precision.enableStochasticRounding(ipu.stochastic_rounding and ipu.precision == "float16")
    if ipu.half_partials and ipu.precision == "float16":
        options.Precision.setPartialsType(torch.float16)
    if ipu.synthetic_data:
        options.enableSyntheticData(True)
    if ipu.executable_cache_dir:
        options.enableExecutableCaching(ipu.executable_cache_dir)
    if ipu.profile_dir:
        options.enableProfiling(ipu.profile_dir)
    if compile_only:
        options.useOfflineIpuTarget()
    return options
