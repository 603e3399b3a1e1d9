"""The patterns that `_Popart.setPatterns` may name: PopART's own, and those of loaded custom-op libraries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..custom_ops import registered_patterns
from ..errors import Error
from ..native.abi import runtime_is_loaded as native_runtime_is_loaded

# PopART 3.4: `PatternCreator` and `AddPatternName` in `willow/src`.
_NAMES = """
    AbsGradOp AdamDecompose AdaptiveDecompose AllReduceToIdentity Atan2Arg0GradOp Atan2Arg1GradOp
    ContiguateIpuCopyIndicesPattern ConvDataGrad ConvFlipWeightsDoubleFlip ConvFlipWeightsGradOp
    ConvTranspose CosGradOp CoshOp DecomposeBinaryConstScalar DivArg0GradOp DivArg1GradOp ExpGradOp
    ExpandCast Expm1GradOp FmodArg0GradOp InPlace InitAccumulate LSTMOp LambSerialisedWeight Log1pGradOp
    LogGradOp LoopScanOut MatMulLhsGradOp MatMulOp MatMulRhsGradOp MulArgGradOp NegativeOneScale
    NlllWithSoftmaxGradDirect OpToIdentity PackedDataBlock PadSum PostNRepl PowArg0GradOp PowArg1GradOp
    PreUniRepl RandomNormalLikeOpPattern RandomUniformLikeOpPattern ReciprocalGradOp
    RemoveUnnecessaryLossGradCast SGD0Decompose SGD1Decompose SGD2Decompose ScanToLoop SinGradOp
    Slice2SliceSubsample SoftmaxGradDirect SplitGather SplitGradOpToConcat SplitOp SqrtGradOp
    SubtractArg1GradOp SumToAdd TiedGather TiedGatherAccumulate TransposeToIdentityOrReshapePattern
    UpdateInplacePrioritiesForIpu UpsampleToResize ViewSimplifyPattern ZerosLikeOpPattern
"""
_OF_POPART = frozenset(_NAMES.split())


def check_names(names: Iterable[str]) -> None:
    """Raise Error for a name that is no pattern's, with those that look like it."""
    known = {*_OF_POPART, *(registered_patterns() if native_runtime_is_loaded() else ())}
    for name in names:
        if name not in known:
            alike = difflib.get_close_matches(name, known)
            meant = f" Did you mean {' or '.join(alike)}?" if alike else ""
            raise Error(
                f"Unknown pattern {name}.{meant} It is neither one of PopART's nor of a loaded custom-op library.",
                "popart_exception",
            )
