"""PopTorch's private module of this name, as far as the package poptorch_geometric imports from it."""

from __future__ import annotations

from .structure import concatenated as combine_batch_tensors_gen

__all__ = ["combine_batch_tensors_gen"]
