"""The enumerations of PopART that PopTorch programs pass to `Options._Popart.set`.

Members and values: `willow/include/popart/{sessionoptions,tensorlocation,patterns/patterns,devicemanager,
commgroup,variablesettings}.hpp`. The rest of PopART, its builder and sessions, is not simulated.
"""

from __future__ import annotations

import enum


class AccumulateOuterFragmentSchedule(enum.IntEnum):
    """How the outer part of a step (the weight update) is ordered."""

    Scheduler = 0
    Serial = 1
    OverlapCycleOptimized = 2
    OverlapMemoryOptimized = 3


class AutodiffStitchStrategy(enum.IntEnum):
    """How a subgraph's backward pass gets values of its forward pass."""

    RecomputeMinimal = 0
    RecomputeAllNonInputs = 1
    AddFwdOutputs = 2
    SafeAddFwdOutputs = 3


class BatchSerializationBatchSchedule(enum.IntEnum):
    """The order of a serialised batch's parts."""

    Scheduler = 0
    Isomorphic = 1
    OverlapOnIo = 2
    OverlapOnCompute = 3


class BatchSerializationMethod(enum.IntEnum):
    """How a batch is serialised."""

    UnrollDynamic = 0
    UnrollStatic = 1
    Loop = 2


class BatchSerializationTransformContext(enum.IntEnum):
    """When a batch is serialised."""

    Fwd = 0
    Bwd = 1


class CommGroupType(enum.IntEnum):
    """How replicas form groups."""

    All = 0
    Consecutive = 1
    Orthogonal = 2
    Ungrouped = 3


class DeviceConnectionType(enum.IntEnum):
    """When a device is acquired."""

    Always = 0
    OnDemand = 1
    Never = 2


class ExecutionPhaseIOSchedule(enum.IntEnum):
    """When a phase loads its tensors."""

    Preload = 0
    OnDemand = 1


class ExecutionPhaseSchedule(enum.IntEnum):
    """How loading, computing and storing of phases interleave."""

    Interleaving = 0
    Batch = 1
    BatchClusteredIO = 2


class GradientTensorTrackingMethod(enum.IntEnum):
    """Which gradients automatic loss scaling looks at."""

    AllNonViewChangingGradientTensors = 0
    ConvAndMatmulGradients = 1
    GradientsOfUserSpecifiedTensors = 2


class Instrumentation(enum.IntEnum):
    """Which loop's cycles are counted."""

    Outer = 0
    Inner = 1


class MeanReductionStrategy(enum.IntEnum):
    """When a mean over micro-batches divides."""

    Running = 0
    Post = 1


class MergeVarUpdateType(enum.IntEnum):
    """How weight updates are merged."""

    Off = 0
    All = 1
    AutoLoose = 2
    AutoTight = 3


class PatternsLevel(enum.IntEnum):
    """Which patterns are on to begin with."""

    NoPatterns = 0
    Minimal = 1
    Default = 2
    All = 3


class RecomputationType(enum.IntEnum):
    """What the backward pass computes again instead of keeping it."""

    NoRecompute = 0
    Standard = 1
    NormOnly = 2
    Pipeline = 3
    RecomputeAll = 4


class ReductionType(enum.IntEnum):
    """How gradients are reduced."""

    Sum = 0
    Mean = 1
    NoReduction = 2


class ReplicatedTensorSharding(enum.IntEnum):
    """Whether each replica keeps a share of a tensor."""

    Off = 0
    On = 1


class SubgraphCopyingStrategy(enum.IntEnum):
    """When a subgraph's inputs are copied."""

    OnEnterAndExit = 0
    JustInTime = 1


class SyncPattern(enum.IntEnum):
    """Which IPUs synchronise."""

    Full = 0
    SinglePipeline = 1
    ReplicaAndLadder = 2


class SyntheticDataMode(enum.IntEnum):
    """What stands in for the host's data."""

    Off = 0
    Zeros = 1
    RandomNormal = 2
    RandomUniform = 3


class TensorStorage(enum.IntEnum):
    """On the chip or off it."""

    OnChip = 0
    OffChip = 1


class TileSet(enum.IntEnum):
    """The tiles for computing, and those for input and output."""

    Compute = 0
    IO = 1


class VariableRetrievalMode(enum.IntEnum):
    """Which replicas' values of a variable are read back."""

    OnePerGroup = 0
    AllReduceReplicas = 1
    AllReplicas = 2


class VirtualGraphMode(enum.IntEnum):
    """What places operators on IPUs."""

    Off = 0
    Manual = 1
    Auto = 2
    ExecutionPhases = 3
