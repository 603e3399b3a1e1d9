"""What torch does differently while a forward is captured: where it makes tensors, and which values it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from ..graph.captured import CapturedTensor
from ._logging import logger
from .recording import is_recording

_FACTORIES = frozenset(
    getattr(torch, name)
    for name in [
        "arange",
        "empty",
        "full",
        "full_like",
        "linspace",
        "logspace",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "range",
        "tensor",
        "zeros",
        "zeros_like",
        "normal",
    ]
)


class IpuByDefault(TorchFunctionMode):
    """Inside a forward, torch's factories make IPU tensors unless told otherwise."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            is_recording()
            and func in _FACTORIES
            and "device" not in kwargs
            and not _follows_a_tensor(func, args, kwargs)
        ):
            logger.warning("No device set in torch.%s(): forcing to IPU", func.__name__)
            kwargs = {**kwargs, "device": "ipu"}
        if func in (torch.Tensor.new, torch.Tensor.new_tensor) and isinstance(args[0], CapturedTensor):
            return _made_like(func, *args, **kwargs)
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "ipu":
            # torch fills the tensor through the device's own code, which it has not got for an IPU.
            return func(*args, **{**kwargs, "device": "cpu"}).to("ipu")
        return func(*args, **kwargs)


def _made_like(func: Any, like: torch.Tensor, *values: Any, **kwargs: Any) -> torch.Tensor:
    """`like.new(sizes or data)` and `like.new_tensor(data)`, which ask no dispatcher where to make theirs."""
    sizes = values[0] if values and isinstance(values[0], torch.Size) else values
    if func is torch.Tensor.new and all(isinstance(size, int) for size in sizes):
        return like.new_empty(sizes)
    return torch.tensor(values[0], dtype=kwargs.get("dtype", like.dtype)).to("ipu")


def _follows_a_tensor(func: Any, args: Any, kwargs: Any) -> bool:
    return func is not torch.tensor and any(isinstance(a, torch.Tensor) for a in (*args, *kwargs.values()))


@contextmanager
def torch_without_values() -> Iterator[None]:
    """Inside, torch's own modules decide nothing by the values of tensors, which are not known yet."""
    # PopTorch does this too: distributions check that their arguments are in range.
    validates = torch.distributions.Distribution._validate_args
    # Encoder layers look for padding to leave out, and for masks that are causal, to take quicker ways to the
    # same results.
    fast = torch.backends.mha.get_fastpath_enabled()
    detect = transformer._detect_is_causal_mask
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = _said_to_be_causal
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.distributions.Distribution.set_default_validate_args(validates)


def _said_to_be_causal(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True
