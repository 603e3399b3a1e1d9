"""Normalisation of float16 values, carried in bf16, by parameters or running statistics in float32.

ATen's operators want one dtype, a GPU's more strictly than a CPU's; these compute in float32 where dtypes differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def in_one_dtype(operator: Callable[..., Any], statistics: tuple[int, ...]) -> Callable[..., Any]:
    """`operator`, of any floating-point operands; its first result has the dtype of the first operand.

    `statistics`: positions of what a GPU keeps in float32 whatever the other operands are.
    """

    def normalised(*args: Any) -> tuple[Any, ...]:
        on_gpu = args[0].device.type != "cpu"
        dtypes = {
            x.dtype
            for position, x in enumerate(args)
            if isinstance(x, Tensor) and not (on_gpu and position in statistics)
        }
        if len(dtypes) == 1:
            return tuple(operator(*args))
        first, *others = operator(*(x.float() if isinstance(x, Tensor) else x for x in args))
        return None if first is None else first.to(args[0].dtype), *others

    return normalised


STATISTICS: dict[Any, tuple[int, ...]] = {
    aten.native_layer_norm.default: (),
    aten.native_layer_norm_backward.default: (3, 4),
    aten.native_group_norm.default: (),
    aten._native_batch_norm_legit.no_stats: (),
    aten._native_batch_norm_legit_functional.default: (3, 4),
    aten._native_batch_norm_legit_no_training.default: (3, 4),
    aten.native_batch_norm_backward.default: (3, 4, 5, 6),
}
"""The operators, and which of their arguments are means and deviations."""

FUSED = frozenset({aten.native_layer_norm.default, aten.native_layer_norm_backward.default})
"""Those that a kernel computes with their neighbours where dtypes are the same (`fusion.py`)."""
