"""The PopTorch 3.4 interface of the simulator: the same names, signatures, defaults and errors.

models      `models`, `executor`, `compile_hooks`, `arguments`, `structure`, `session`, `devices`, `latency`,
            `wrapping`, `replica_grouping`
compiling   `compilation`, `compile_request`, `placement`, `torch_behaviour`; and keeping what was compiled:
            `captured_program`, `export`, `executable_caching`, `executable_key`
forward     what may be called in one: `ops`, `torch_operators`, `blocks`, `strategies`, `multi_conv`, `cpu_op`, `ctc`,
            by `recording`
options     `options`, `model_options`, `options_dict`, `option_groups`, `session_options`, `popart_patterns`, `enums`
optimizers  `optim`, `optimizer_attributes`, `optimizer_description`, `device_optimizer`
data        `dataloader`, `accessor`
rest        `printing`, `profiling`, `testing`, `poptorch_core`, `_impl`, `_logging`; for other packages:
            `_utils`, `_poplar_executor`
"""

from __future__ import annotations

from ..errors import Error, RecoverableError, SimulatorUnsupported, UnrecoverableError
from . import _impl, _logging, _poplar_executor, enums, ops, optim, options, poptorch_core, profiling, testing
from ._impl import createPoptorchError, isRunningOnIpu
from ._logging import configure as _configure_logging
from ._logging import setLogLevel
from .accessor import AsynchronousDataAccessor
from .blocks import BeginBlock, Block, BlockFunction, LegacyBeginBlockFn, NameScope, removeBlocks
from .compile_hooks import registerPostCompileHook, registerPreCompileHook
from .cpu_op import CPU
from .dataloader import DataLoader
from .enums import (
    AutoStage,
    CommGroupType,
    ConnectionType,
    DataLoaderMode,
    HalfFloatCastingBehavior,
    Liveness,
    MatMulSerializationMode,
    MeanReductionStrategy,
    MultiConvPlanType,
    OutputMode,
    OverlapMode,
    ReductionType,
    SharingStrategy,
    SyncPattern,
    VariableRetrievalMode,
)
from .executor import PoplarExecutor
from .models import (
    VERSION,
    inferenceModel,
    ipuHardwareIsAvailable,
    ipuHardwareVersion,
    load,
    trainingModel,
)
from .multi_conv import MultiConv
from .ops import (
    cond,
    ctc_beam_search_decoder,
    custom_op,
    dynamic_slice,
    dynamic_update,
    for_loop,
    fps,
    identity_loss,
    ipu_print_tensor,
    nearest,
    nop,
    recomputationCheckpoint,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from .options import (
    Attribute,
    ConfigFileError,
    Options,
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
    TensorLocationSettings,
)
from .printing import module_repr, print
from .structure import (
    ICustomArgParser,
    flattenTensorStructure,
    reconstructTensorStructure,
    registerCustomArgParser,
    registerGeometricCustomArgParsers,
)
from .torch_operators import register as _register_operators

__all__ = [
    "CPU",
    "AsynchronousDataAccessor",
    "Attribute",
    "AutoStage",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "CommGroupType",
    "ConfigFileError",
    "ConnectionType",
    "DataLoader",
    "DataLoaderMode",
    "Error",
    "HalfFloatCastingBehavior",
    "ICustomArgParser",
    "LegacyBeginBlockFn",
    "Liveness",
    "MatMulSerializationMode",
    "MeanReductionStrategy",
    "MultiConv",
    "MultiConvPlanType",
    "NameScope",
    "Options",
    "OutputMode",
    "OverlapMode",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "PoplarExecutor",
    "RecoverableError",
    "ReductionType",
    "SerialPhasedExecution",
    "ShardedExecution",
    "SharingStrategy",
    "SimulatorUnsupported",
    "Stage",
    "SyncPattern",
    "TensorLocationSettings",
    "UnrecoverableError",
    "VariableRetrievalMode",
    "__version__",
    "_impl",
    "_logging",
    "_poplar_executor",
    "cond",
    "createPoptorchError",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "enums",
    "flattenTensorStructure",
    "for_loop",
    "fps",
    "identity_loss",
    "inferenceModel",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "ipu_print_tensor",
    "isRunningOnIpu",
    "load",
    "module_repr",
    "nearest",
    "nop",
    "ops",
    "optim",
    "options",
    "poptorch_core",
    "print",
    "profiling",
    "recomputationCheckpoint",
    "reconstructTensorStructure",
    "registerCustomArgParser",
    "registerGeometricCustomArgParsers",
    "registerPostCompileHook",
    "registerPreCompileHook",
    "removeBlocks",
    "serializedMatMul",
    "setLogLevel",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
    "testing",
    "trainingModel",
]

__version__ = VERSION

_configure_logging()
_register_operators()
