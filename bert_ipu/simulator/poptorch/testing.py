"""Comparison of nested results, for users' tests."""

from __future__ import annotations

from typing import Any

import torch


def allclose(ref: Any, other: Any) -> bool:
    """Whether two tensors, or equally nested lists and tuples of them, are close."""
    if isinstance(ref, torch.Tensor):
        return torch.allclose(other, ref)
    if not isinstance(ref, (list, tuple)):
        raise TypeError(f"{type(ref)} is not supported: give tensors, or lists and tuples of them")
    same_kind = isinstance(other, list if isinstance(ref, list) else tuple)
    return same_kind and len(ref) == len(other) and all(map(allclose, ref, other))
