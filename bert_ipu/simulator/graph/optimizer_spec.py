"""An optimizer as the compiler needs it, and the scalars of the weight update as formulas of its hyper-parameters.

Scalars are PopART's (`willow/src/compoundscalarhelper.cpp`), and so are their names; attributes have the names under
which PopTorch hands them to PopART.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

import torch

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph.ir import Reduction, ScalarSource

KINDS = (
    "SGD1",
    "SGD2",
    "ADAM",
    "ADAMW",
    "ADAMW_NO_BIAS",
    "RMSPROP",
    "RMSPROP_CENTERED",
    "LAMB",
    "LAMB_NO_BIAS",
)
"""PopTorch's kinds of optimizers. SGD1 keeps velocity and accumulator in one tensor (`use_combined_accum`), SGD2 has
two."""


@dataclass(frozen=True)
class HyperParameter:
    """A value of an optimizer: compiled in where constant, fed by the host before each run otherwise."""

    value: float
    constant: bool = True


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer's kind, its hyper-parameters by parameter group, and the types of its states."""

    kind: str
    groups: tuple[Mapping[str, HyperParameter], ...]
    group_of: Mapping[str, int]
    """Group of each parameter to update, by the parameter's name."""
    loss_scaling: HyperParameter = HyperParameter(1.0)
    accum_type: torch.dtype = torch.float32
    accl1_type: torch.dtype = torch.float32
    accl2_type: torch.dtype = torch.float32
    max_grad_norm: float = math.inf
    tf_variant: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"optimizer kind {self.kind!r} is none of {', '.join(KINDS)}")

    @staticmethod
    def from_description(described: Mapping[str, Any], group_of: Mapping[str, int]) -> OptimizerSpec:
        """From PopTorch's description: `optimizer_type`, own attributes, `defaults`, `groups`.

        In `defaults` and each group, an attribute is (value, is it constant).
        """
        first = "velocityAccumType" if "velocityAccumType" in described else "firstOrderMomentumAccumType"
        return OptimizerSpec(
            kind=described["optimizer_type"],
            groups=tuple({k: HyperParameter(*v) for k, v in group.items()} for group in described["groups"]),
            group_of=dict(group_of),
            loss_scaling=HyperParameter(*described["defaults"]["lossScaling"]),
            accum_type=_half_if(described.get("accumType")),
            accl1_type=_half_if(described.get(first)),
            accl2_type=_half_if(described.get("secondOrderMomentumAccumType")),
            max_grad_norm=described.get("maxGradNorm", math.inf),
            tf_variant=bool(described.get("useTfVariant", False)),
        )

    def hyper_parameter(self, group: int, name: str) -> HyperParameter:
        """One attribute of a group; what its optimizer does not have changes nothing."""
        if name == "velocityScaling" and self.kind == "SGD2":
            name = "lossScaling"  # PopTorch ties them for the separate variant.
        if name == "lossScaling":
            return self.loss_scaling
        return self.groups[group].get(name, HyperParameter(1.0 if name == "velocityScaling" else 0.0))

    def has_momentum(self, group: int) -> bool:
        """Whether a group has momentum, or may get some."""
        momentum = self.hyper_parameter(group, "momentum")
        return not momentum.constant or momentum.value != 0


def _half_if(half: Optional[bool]) -> torch.dtype:
    return torch.float16 if half else torch.float32


def check_supported(spec: OptimizerSpec) -> None:
    """Raises Error for an optimizer that PopART does not have."""
    combined = spec.kind == "SGD1" and any("momentum" in g and g["momentum"].value for g in spec.groups)
    if combined and math.isfinite(spec.max_grad_norm):
        raise poptorch_error(
            "max_grad_norm needs use_combined_accum=False: the combined variant has no gradient to clip."
        )


# -- scalars -----------------------------------------------------------------------------------


class _Group:
    """Gives a formula the hyper-parameters of one group, and notes whether all that it asks for are constant."""

    def __init__(self, spec: OptimizerSpec, group: int, reduction: Reduction) -> None:
        self._spec, self._group = spec, group
        self.reduction = reduction
        self.constant = True

    def __call__(self, name: str) -> float:
        found = self._spec.hyper_parameter(self._group, name)
        self.constant = self.constant and found.constant
        return float(found.value)

    @property
    def undamped(self) -> float:
        return 1.0 - self("dampening")

    @property
    def combined_replicas(self) -> float:
        """Combined SGD keeps its velocity this many times larger: PopART's `rf`.

        It is summed over the replicas as a whole. What gradients add to it differs between replicas, but momentum and
        decay do not, so that the sum holds them once for each replica.
        """
        return float(self.reduction.replicas) if self.reduction.accumulation > 1 else 1.0

    @property
    def combined_gradient_factor(self) -> float:
        """What combined SGD multiplies gradients by, so that their sum is as many times larger as the velocity is."""
        r = self.reduction
        divisor = r.accumulation if r.mean else 1
        if r.accumulation > 1:
            return (1.0 if r.mean else float(r.replicas)) / divisor
        return (1.0 / r.replicas if r.mean else 1.0) / divisor


_FORMULAS: dict[str, Callable[[_Group], float]] = {
    "lossScaling": lambda h: h("lossScaling"),
    "gradientScaling": lambda h: 1.0 / (h("lossScaling") * h.reduction.divisor),
    "scaledLearningRate0": lambda h: (
        h("learningRate") * h.undamped / (h("lossScaling") * h.reduction.divisor)
    ),
    "weightDecayScaleFactor0": lambda h: 1.0 - h("learningRate") * h.undamped * h("weightDecay"),
    "scaledMomentum1": lambda h: h("momentum") / h.combined_replicas,
    "scaledLearningRate1": lambda h: h("learningRate") / (h("velocityScaling") * h.combined_replicas),
    "dampeningScaleFactor1": lambda h: (
        h.undamped * h("velocityScaling") * h.combined_gradient_factor / h("lossScaling")
    ),
    "scaledWeightDecay1": lambda h: h.undamped * h("weightDecay") * h("velocityScaling"),
    "nesterovGradScaleFactor1": lambda h: h("velocityScaling") * h.combined_replicas,
    "scaledMomentum2": lambda h: h("momentum"),
    "scaledLearningRate2": lambda h: h("learningRate") / h("velocityScaling"),
    "dampeningScaleFactor2": lambda h: (
        h.undamped * h("velocityScaling") / (h("lossScaling") * h.reduction.divisor)
    ),
    "nesterovGradScaleFactor2": lambda h: h("velocityScaling"),
    "sgdMomentum": lambda h: h("momentum"),
    "weightDecay": lambda h: h("weightDecay"),
    "learningRate": lambda h: h("learningRate"),
    "adamBeta1": lambda h: h("beta1"),
    "adamBeta2": lambda h: h("beta2"),
    "adamEps": lambda h: h("eps"),
    "maxWeightNorm": lambda h: h("maxWeightNorm"),
    "adaptiveAlpha": lambda h: h("alpha"),
    "adaptiveMomentum": lambda h: h("momentum"),
}
"""PopART's scalars, compound ones included, as functions of the hyper-parameters `h` of a group.

The digit of a compound one is that of its SGD: 0 without momentum, else 1 or 2 as in `KINDS`.
"""


def scalar(spec: OptimizerSpec, reduction: Reduction, source: ScalarSource) -> HyperParameter:
    """The value of one scalar, which is constant where all that it is computed from is."""
    group = _Group(spec, source.group, reduction)
    value = _FORMULAS[source.formula](group)
    return HyperParameter(value, group.constant)


def scalar_values(
    spec: OptimizerSpec, reduction: Reduction, sources: Mapping[str, ScalarSource]
) -> dict[str, float]:
    """New values of a program's SCALAR variables for an optimizer whose hyper-parameters changed."""
    return {name: scalar(spec, reduction, source).value for name, source in sources.items()}
