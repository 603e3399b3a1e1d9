"""The IPU's dtypes: what the host's become on entry."""

from __future__ import annotations

import torch

_DEMOTED = {torch.float64: torch.float32, torch.int64: torch.int32}

SUPPORTED = frozenset(
    {
        torch.float32,
        torch.float16,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    }
)


def device_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a host tensor has on the IPU.  Source: PopTorch's `toCompilerType`.

    Raises TypeError for dtypes the IPU lacks (complex, bfloat16, ...).
    """
    demoted = _DEMOTED.get(dtype, dtype)
    if demoted not in SUPPORTED:
        raise TypeError(
            f"The IPU has no {dtype}; convert the tensor to one of {', '.join(sorted(map(str, SUPPORTED)))}"
        )
    return demoted


_aten = torch.ops.aten

INT64_INDEX = frozenset(
    {
        _aten.gather.default,
        _aten.scatter.src,
        _aten.scatter.value,
        _aten.scatter_add.default,
        _aten.scatter_reduce.two,
        _aten.take.default,
        _aten.nll_loss_forward.default,
        _aten.nll_loss_backward.default,
        _aten.nll_loss2d_forward.default,
        _aten.nll_loss2d_backward.default,
        _aten.cross_entropy_loss.default,
        _aten.multi_margin_loss.default,
        _aten.multilabel_margin_loss_forward.default,
        _aten.index_fill.int_Scalar,
        _aten.index_copy.default,
    }
)
"""ATen operators that accept int64 indices only: the int32 of the device is widened for them."""
