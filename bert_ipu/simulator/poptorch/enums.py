"""PopTorch's enumerations, with its values."""

from __future__ import annotations

import enum


class ConnectionType(enum.IntEnum):
    """When a device is acquired."""

    Always = 0
    OnDemand = 1
    Never = 2


class SyncPattern(enum.IntEnum):
    """Which IPUs wait for each other at a synchronisation."""

    Full = 0
    SinglePipeline = 1
    ReplicaAndLadder = 2


class AutoStage(enum.IntEnum):
    """How blocks get their stage when the strategy does not say."""

    SameAsIpu = 0
    AutoIncrement = 1


class Liveness(enum.IntEnum):
    """How long tensors stay on the chip in phased execution."""

    AlwaysLive = 0
    OffChipAfterFwd = 1
    OffChipAfterFwdNoOverlap = 2
    OffChipAfterEachPhase = 3


class CommGroupType(enum.IntEnum):
    """How replicas form groups."""

    All = 0
    Consecutive = 1
    Orthogonal = 2
    NoGrouping = 3


class VariableRetrievalMode(enum.IntEnum):
    """Which replicas' values of a variable are read back."""

    OnePerGroup = 0
    AllReplicas = 2


class OverlapMode(enum.Enum):
    """Which loop host input and output overlaps with compute."""

    NoOverlap = "no_overlap"
    OverlapAccumulationLoop = "overlap_accumulation_loop"
    OverlapDeviceIterationLoop = "overlap_device_iteration_loop"


class OutputMode(enum.IntEnum):
    """Which micro-batches' outputs come back to the host."""

    Final = 0
    EveryN = 1
    All = 2
    Sum = 3
    Default = 4


class DataLoaderMode(enum.IntEnum):
    """Whether a `DataLoader` fetches in the caller, in a worker, or in a worker that also re-batches."""

    Sync = 0
    Async = 1
    AsyncRebatched = 2


class SharingStrategy(enum.IntEnum):
    """How a data set reaches the worker process of an `AsynchronousDataAccessor`."""

    SharedMemory = 0
    FileSystem = 1
    Fork = 2
    ForkServer = 3


class ReductionType(enum.IntEnum):
    """How a loss, or gradients over accumulation and replicas, are reduced."""

    Sum = 0
    Mean = 1
    NoReduction = 2


class MeanReductionStrategy(enum.IntEnum):
    """When the division of a mean over micro-batches happens."""

    Running = 0
    Post = 1
    PostAndLoss = 2


class MatMulSerializationMode(enum.Enum):
    """Along which dimension a matrix product is cut into pieces."""

    InputChannels = "input_channels"
    ReducingDim = "reducing_dim"
    OutputChannels = "output_channels"
    Disabled = "none"


class MultiConvPlanType(enum.IntEnum):
    """Whether the convolutions of a multi-convolution run side by side."""

    Parallel = 0
    Serial = 1


class HalfFloatCastingBehavior(enum.IntEnum):
    """Deprecated: mixed operands always go to float32."""

    FloatDowncastToHalf = 0
    HalfUpcastToFloat = 1
    Default = 2
