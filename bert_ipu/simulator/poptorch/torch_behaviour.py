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
    """Inside, Python decides nothing by the values of tensors, which are not known yet, where it can do without."""
    before = _set_behaviour(False, False, True, _said_to_be_causal)
    try:
        yield
    finally:
        _set_behaviour(*before)


def _set_behaviour(validate: bool, fast: bool, compiling: bool, detect: Any) -> tuple[bool, bool, bool, Any]:
    """Change what torch does, and return what it did before."""
    distribution = torch.distributions.Distribution
    before = (
        distribution._validate_args,
        torch.backends.mha.get_fastpath_enabled(),
        torch.compiler.is_compiling(),
        transformer._detect_is_causal_mask,
    )
    # As PopTorch: no looking whether arguments are in range.
    distribution.set_default_validate_args(validate)
    torch.backends.mha.set_fastpath_enabled(fast)  # Encoder layers would look for padding to leave out.
    torch.compiler._is_compiling_flag = compiling  # Libraries such as transformers ask before they look.
    transformer._detect_is_causal_mask = detect
    return before


def _said_to_be_causal(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True
