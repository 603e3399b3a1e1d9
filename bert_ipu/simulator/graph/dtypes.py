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
        raise TypeError(f"Unsupported tensor input type from pytorch: {str(dtype).removeprefix('torch.')}")
    return demoted
