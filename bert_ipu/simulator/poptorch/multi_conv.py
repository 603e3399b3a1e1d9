"""`poptorch.MultiConv`: convolutions planned together; of what it sets, partial sums change results."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from ..errors import poptorch_error
from . import recording
from .enums import MultiConvPlanType
from .options_dict import require

_numbers = itertools.count()


def _per_convolution(name: str, value: Any, kind: type) -> Any:
    if value is None:
        return None
    values = value if isinstance(value, (list, tuple)) else (value,)
    assert values and all(isinstance(each, kind) for each in values), (
        f"{name} takes a {kind.__name__}, or one for each convolution, not {value!r}"
    )
    return values


class MultiConv:
    """A context whose independent convolutions run together."""

    def __init__(self) -> None:
        self._available_memory_proportions: Any = None
        self._partials_types: Any = None
        self._plan_type: MultiConvPlanType | None = None
        self._per_conv_reserved_tiles: int | None = None
        self._cycle_back_off: float | None = None
        self._enable_conv_ditherings: Any = None

    def availableMemoryProportions(self, value: float | list[float]) -> MultiConv:
        """Memory for each convolution's temporaries."""
        self._available_memory_proportions = _per_convolution("availableMemoryProportions", value, float)
        return self

    def partialsTypes(self, value: torch.dtype | list[torch.dtype]) -> MultiConv:
        """The type of each convolution's partial sums: torch.float or torch.half."""
        dtypes = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if any(dtype not in (torch.float32, torch.float16) for dtype in dtypes):
            raise ValueError(f"Invalid partials types {value}: they are torch.float or torch.half")
        self._partials_types = dtypes
        return self

    def enableConvDithering(self, value: bool | list[bool]) -> MultiConv:
        """Spread convolutions over tiles."""
        values = value if isinstance(value, (list, tuple)) else (value,)
        if value is not None and not all(isinstance(each, bool) for each in values):
            raise ValueError(f"enableConvDithering takes a bool, or one for each convolution, not {value!r}")
        self._enable_conv_ditherings = None if value is None else values
        return self

    def planType(self, value: MultiConvPlanType) -> MultiConv:
        """Side by side or one after the other."""
        if value is not None and not isinstance(value, MultiConvPlanType):
            raise AssertionError(f"Invalid plan type {value!r}: it is a poptorch.MultiConvPlanType, or None")
        self._plan_type = value
        return self

    def perConvReservedTiles(self, value: int) -> MultiConv:
        """Tiles that each convolution gets at least."""
        require(value, int)
        self._per_conv_reserved_tiles = value
        return self

    def cycleBackOff(self, value: float) -> MultiConv:
        """How much longer than the fastest plan one may take."""
        require(value, float)
        self._cycle_back_off = value
        return self

    def __enter__(self) -> None:
        annotations = recording.current_annotations()
        if annotations is None:
            return
        if annotations.multi_conv is not None:
            raise poptorch_error(
                "Nested poptorch.MultiConv is not supported: leave one before entering the next."
            )
        annotations.multi_conv = next(_numbers)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        annotations = recording.current_annotations()
        if annotations is None:
            return
        number, annotations.multi_conv = annotations.multi_conv, None
        if type is not None:
            return
        convolutions = recording.convolutions_of(number)
        if not convolutions:
            raise poptorch_error(
                "Unexpected end_multi_conv: this poptorch.MultiConv has no convolution in it."
            )
        for name in ("available_memory_proportions", "enable_conv_ditherings", "partials_types"):
            given = getattr(self, f"_{name}")
            if given is not None and len(given) not in (1, len(convolutions)):
                raise poptorch_error(
                    f"This poptorch.MultiConv has {len(convolutions)} convolutions and {len(given)} values of "
                    f"{name}: give one for all, or one for each."
                )
        if self._partials_types is not None:
            partials = self._partials_types * (len(convolutions) // len(self._partials_types))
            for convolution, dtype in zip(convolutions, partials):
                convolution.meta["partials"] = dtype
