"""Floating-point exceptions: invalid operations, division by zero and overflow stop the run.

The IPU has a flag of each in its control registers; here an operator is at fault when its results hold NaN or
infinity that its operands did not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.runtime.operators import operator_name

_COMPARISONS = frozenset({"gt", "ge", "lt", "le"})


@dataclass(frozen=True)
class Seen:
    """What an operator's operands hold."""

    nan: bool
    infinity: bool


def look(*operands: Any) -> Seen:
    """Whether tensors, or numbers, hold NaN or infinity; called before an operator may overwrite them."""
    values = [_look_at(torch.as_tensor(x)) for x in _flat(operands)]
    return Seen(any(seen.nan for seen in values), any(seen.infinity for seen in values))


def check(seen: Seen, target: Any, where: str, *results: Any) -> None:
    """Raises Error where an operator made NaN or infinity of operands without, or compared NaN."""
    made = look(*results)
    name = operator_name(target)
    if (made.nan and not seen.nan) or (seen.nan and name in _COMPARISONS):
        fault = "an invalid operation: NaN is made, or compared"
    elif made.infinity and not seen.infinity:
        fault = "an overflow or a division by zero: infinity is made of finite values"
    else:
        return
    raise poptorch_error(
        f"Floating-point exception in {name} ({where}): {fault}. "
        "Options.Precision.enableFloatingPointExceptions(False) lets such values pass."
    )


def _look_at(value: Tensor) -> Seen:
    if not value.is_floating_point() or not value.numel():
        return Seen(False, False)
    # One pass, a tenth of the time of isnan and isinf; where there is NaN both ends are NaN.
    lowest, highest = (end.item() for end in torch.aminmax(value))
    if math.isnan(lowest):
        return Seen(True, bool(torch.isinf(value).any()))
    return Seen(False, math.isinf(lowest) or math.isinf(highest))


def _flat(values: Any) -> list[Any]:
    if isinstance(values, (tuple, list)):
        return [leaf for value in values for leaf in _flat(value)]
    return [values] if isinstance(values, (Tensor, float)) else []
