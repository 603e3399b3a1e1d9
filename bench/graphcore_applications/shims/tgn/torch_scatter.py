"""Stands for torch_scatter, whose C++ wants a torch of its own: the one function that TGN calls."""

from __future__ import annotations

import torch
from torch import Tensor


def scatter_sum(src: Tensor, index: Tensor, dim: int, dim_size: int) -> Tensor:
    """The sum of what each element of `index`, float[len(index)], names along `dim`."""
    shape = [1] * src.dim()
    shape[dim] = -1
    sizes = list(src.shape)
    sizes[dim] = dim_size
    zeros = torch.zeros(sizes, dtype=src.dtype, device=src.device)
    return zeros.scatter_add_(dim, index.view(shape).expand_as(src), src)
