"""What to say where code asks for a tensor's value, which a capture does not have: who asks, and what to do instead.

Some functions of torch's own Python ask, too; each of those has an answer of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from types import CodeType
from typing import Optional

from torch._ops import OpOverload
from torch.nn import AdaptiveLogSoftmaxWithLoss, functional
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from bert_ipu.simulator.errors import Error, poptorch_error
from bert_ipu.simulator.graph.captured_tensor import DynamicShapeError
from bert_ipu.simulator.graph.sources import Origin, describe, is_foreign

_CHECKS = frozenset({functional.gaussian_nll_loss.__code__})
"""They ask for values in order to refuse some. A device refuses none."""

_MOMENTUM = (
    "give the layer a `momentum`, since with None the weight of a batch depends on how many there were"
)
_INSTEAD = {
    _BatchNorm.forward.__code__: _MOMENTUM,
    SyncBatchNorm.forward.__code__: _MOMENTUM,
    AdaptiveLogSoftmaxWithLoss.forward.__code__: (
        "take `torch.nn.functional.nll_loss` of the layer's `log_prob`, which is the same loss"
    ),
    AdaptiveLogSoftmaxWithLoss.predict.__code__: "take the `argmax` of the layer's `log_prob`",
}


def is_check() -> bool:
    """Whether the value is asked for by code of torch that only refuses some values."""
    return _asking(_CHECKS) is not None


def no_value(func: OpOverload, origin: Origin) -> Error:
    """The error of an operator that wants a value on the host."""
    return poptorch_error(
        f"{describe(func, origin)} needs a tensor's value on the host, which is not known while the model is compiled "
        "(a Python `if`, `bool()`, `int()` or `.item()` of a tensor): "
        + _instead(
            "use `torch.where`, `poptorch.cond` or `poptorch.for_loop`, or compute it before the model is called"
        )
    )


def dynamic_shape(func: OpOverload, origin: Origin) -> DynamicShapeError:
    """The error of an operator whose result's shape is not known."""
    return DynamicShapeError(
        f"{describe(func, origin)} has a result whose shape depends on its input's values. Shapes on the IPU are "
        "static: " + _instead("use masks or `torch.where` and a fixed size instead")
    )


def _instead(generally: str) -> str:
    asking = _asking(_INSTEAD)
    return f"{_INSTEAD[asking] if asking else generally}."


def _asking(codes: Collection[CodeType]) -> Optional[CodeType]:
    """Which of these functions runs between the operator and the user's code."""
    frame = sys._getframe(1)
    while frame is not None and is_foreign(frame.f_code):
        if frame.f_code in codes:
            return frame.f_code
        frame = frame.f_back  # type: ignore[assignment]
    return None
