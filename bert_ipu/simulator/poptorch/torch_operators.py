"""`torch.ops.poptorch`: operators that PopTorch registers with torch, those that Graphcore's programs call there."""

from __future__ import annotations

import torch

from . import recording

_TYPES = {"FLOAT": torch.float32, "FLOAT16": torch.float16}


def internal_cast(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """The tensor in another type, by PopART's name of it: FLOAT or FLOAT16."""
    return tensor.to(_TYPES[dtype])


def register() -> None:
    """Make the operators known to torch, once."""
    for operator in (recording.push_name_scope, recording.pop_name_scope, internal_cast):
        setattr(torch.ops.poptorch, operator.__name__, operator)
