"""Gives torch's samplers the constructor that they had in torch 2.0, for which poptorch_geometric is written."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Sampler


def _constructor(sampler: Sampler[Any], data_source: Any = None) -> None:
    """Keeps nothing, as there."""


Sampler.__init__ = _constructor  # type: ignore[method-assign]
