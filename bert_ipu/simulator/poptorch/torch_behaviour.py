"""What torch does differently while a forward is captured: where it makes tensors, and which values it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

from ..errors import poptorch_error
from ..graph.capture import Capture, current
from ..graph.captured_tensor import IPU, CapturedTensor
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


_PLACES = {
    torch.Tensor.device.__get__: IPU,  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: False,  # type: ignore[attr-defined]
    torch.Tensor.is_ipu.__get__: True,  # type: ignore[attr-defined]
}
"""What parameters and buffers answer where code asks on which device they are."""


class IpuByDefault(TorchFunctionMode):
    """Inside a forward, parameters and buffers are on the IPU, and torch's factories make tensors there by default."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        capture = current()
        if func in _PLACES and capture is not None and capture.declares(args[0]):
            return _PLACES[func]
        if func == _SET_DATA and capture is not None and any(_is_on_ipu(tensor, capture) for tensor in args):
            raise poptorch_error(
                f"`.data` of a tensor is assigned{capture.place()}. In a forward the tensor would not be written: use "
                "`tensor.copy_(value)`, inside of `torch.no_grad()` where no gradient should go through it."
            )
        if func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], torch.Tensor):
            on_ipu = isinstance(args[1], CapturedTensor) or (
                capture is not None and capture.declares(args[1])
            )
            args = (args[0], IPU if on_ipu else args[1].device, args[1].dtype, *args[2:])
        if (
            is_recording()
            and func in _FACTORIES
            and "device" not in kwargs
            and not _follows_a_tensor(func, args, kwargs)
        ):
            logger.warning("No device set in torch.%s(): forcing to IPU", func.__name__)
            kwargs = {**kwargs, "device": "ipu"}
        if func in _FROM_LISTS and capture is not None and _lists_tensors(args):
            raise poptorch_error(
                f"{func.__name__}() of a list reads the values of tensors in it{capture.place()}, which are not known "
                "while the model is compiled: use `torch.stack`."
            )
        if func in _INDEXING and capture is not None and _is_on_ipu(args[0], capture):
            args = (args[0], _on_ipu(args[1]), *args[2:])
        if func is torch.unravel_index and capture is not None and _is_on_ipu(args[0], capture):
            with self:  # It makes a tensor of the shape.
                return torch.functional._unravel_index(*args, **kwargs).unbind(-1)  # type: ignore[attr-defined]
        if func in (torch.Tensor.new, torch.Tensor.new_tensor) and isinstance(args[0], CapturedTensor):
            return _made_like(func, *args, **kwargs)
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "ipu":
            # torch fills the tensor through the device's own code, which it has not got for an IPU.
            return func(*args, **{**kwargs, "device": "cpu"}).to("ipu")
        return func(*args, **kwargs)


def _is_on_ipu(tensor: torch.Tensor, capture: Capture) -> bool:
    return isinstance(tensor, CapturedTensor) or capture.declares(tensor)


_FROM_LISTS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)


def _lists_tensors(args: tuple[Any, ...]) -> bool:
    lists = [data for data in args if isinstance(data, (list, tuple))]
    return any(isinstance(leaf, CapturedTensor) for leaf in tree_leaves(lists))


_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


def _on_ipu(index: Any) -> Any:
    """An index whose lists of numbers are tensors on the IPU; torch would make them on the CPU."""
    if isinstance(index, tuple):
        return tuple(map(_on_ipu, index))
    numbers = isinstance(index, list) and index and all(type(item) is int for item in index)
    return torch.tensor(index).to("ipu") if numbers else index


def _made_like(func: Any, like: torch.Tensor, *values: Any, **kwargs: Any) -> torch.Tensor:
    """`like.new(sizes or data)` and `like.new_tensor(data)`, which ask no dispatcher where to make theirs."""
    sizes = values[0] if values and isinstance(values[0], torch.Size) else values
    if func is torch.Tensor.new and all(isinstance(size, int) for size in sizes):
        return like.new_empty(sizes)
    return torch.tensor(values[0], dtype=kwargs.get("dtype", like.dtype)).to("ipu")


def _follows_a_tensor(func: Any, args: Any, kwargs: Any) -> bool:
    return func is not torch.tensor and any(isinstance(a, torch.Tensor) for a in (*args, *kwargs.values()))


def _said_to_be_causal(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True


class _CalledAtOnce:
    """For the reentrant kind of `torch.utils.checkpoint`: the compiler chooses what is kept and what computed again."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _around_the_call(
    function: Callable[..., Any], preserve_rng_state: bool, context_fn: Callable[[], Any], *_: Any, **__: Any
) -> Iterator[None]:
    """For the other kind of it: enters the first of its two contexts, for the forward; nothing is called again."""
    forward, _recompute = context_fn()
    with forward:
        yield


_WHILE_CAPTURING: tuple[tuple[Any, str, Any], ...] = (
    # Distributions would look whether values are in range; PopTorch turns that off, too.
    (torch.distributions.Distribution, "_validate_args", False),
    # Encoder layers would look for padding.
    (torch.backends.mha, "_is_fastpath_enabled", False),
    # Libraries such as transformers ask this before they look at values.
    (torch.compiler, "_is_compiling_flag", True),
    # Of a mask whose values are not known, what the caller says of it counts.
    (transformer, "_detect_is_causal_mask", _said_to_be_causal),
    # torch would save the random numbers of a module `torch.ipu`, and warns of inputs without gradients.
    (checkpoint, "CheckpointFunction", _CalledAtOnce),
    (checkpoint, "_checkpoint_without_reentrant_generator", _around_the_call),
)
"""What is exchanged in torch meanwhile: the object, its attribute, and the value that stands there."""


@contextmanager
def torch_without_values() -> Iterator[None]:
    """Inside, torch's own Python does not look at values of tensors where it can do without: they are not known yet."""
    before = [getattr(owner, name) for owner, name, _ in _WHILE_CAPTURING]
    try:
        for owner, name, value in _WHILE_CAPTURING:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(_WHILE_CAPTURING, before):
            setattr(owner, name, value)
