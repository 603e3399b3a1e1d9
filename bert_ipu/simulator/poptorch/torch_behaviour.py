"""What torch does differently while a forward is captured: where it makes tensors, and which values it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

from ..errors import poptorch_error
from ..graph.capture import Capture, current
from ..graph.captured_tensor import IPU, CapturedTensor
from ._logging import logger

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Treatment = Callable[[Capture, Any, Args, Kwargs], Any]


class IpuByDefault(TorchFunctionMode):
    """Inside a forward, parameters and buffers are on the IPU, and torch's factories make tensors there by default."""

    def __torch_function__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        capture, treatment = current(), _TREATMENTS.get(func)
        if capture is None or treatment is None:
            return func(*args, **(kwargs or {}))
        return treatment(capture, func, args, kwargs or {})


def _is_on_ipu(value: Any, capture: Capture) -> bool:
    return isinstance(value, CapturedTensor) or capture.declares(value)


def _place(answer: Any) -> Treatment:
    """On which device a tensor is: parameters and buffers are on the IPU there, and do not know."""

    def treatment(capture: Capture, func: Any, args: Args, kwargs: Kwargs) -> Any:
        return answer if capture.declares(args[0]) else func(*args, **kwargs)

    return treatment


def _set_data(capture: Capture, func: Any, args: Args, kwargs: Kwargs) -> Any:
    if any(_is_on_ipu(tensor, capture) for tensor in args):
        raise poptorch_error(
            f"`.data` of a tensor is assigned{capture.place()}. In a forward the tensor would not be written: use "
            "`tensor.copy_(value)`, inside of `torch.no_grad()` where no gradient should go through it."
        )
    return func(*args, **kwargs)


def _to(capture: Capture, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`x.to(other)`, whose device torch would ask the wrapper of `other` for."""
    if len(args) > 1 and isinstance(args[1], torch.Tensor):
        device = IPU if _is_on_ipu(args[1], capture) else args[1].device
        args = (args[0], device, args[1].dtype, *args[2:])
    return func(*args, **kwargs)


def _placed(func: Any, kwargs: Kwargs) -> Kwargs:
    """The arguments of a factory, on the IPU where they name no device."""
    if "device" in kwargs:
        return kwargs
    logger.warning("torch.%s() names no device: its tensor is made on the IPU", func.__name__)
    return {**kwargs, "device": "ipu"}


def _factory(capture: Capture, func: Any, args: Args, kwargs: Kwargs) -> Any:
    follows_a_tensor = any(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values()))
    return func(*args, **(kwargs if follows_a_tensor else _placed(func, kwargs)))


def _tensor(capture: Capture, func: Any, args: Args, kwargs: Kwargs) -> Any:
    return _as_tensor(capture, func, args, _placed(func, kwargs))


def _as_tensor(capture: Capture, func: Any, args: Args, kwargs: Kwargs) -> Any:
    _check_lists(capture, func, args)
    if torch.device(kwargs.get("device") or "cpu").type != "ipu" or isinstance(args[0], torch.Tensor):
        return func(*args, **kwargs)
    # torch fills the tensor through the device's own code, which it has not got for an IPU.
    return func(*args, **{**kwargs, "device": "cpu"}).to("ipu")


def _check_lists(capture: Capture, func: Any, args: Args) -> None:
    """Raise Error for a list that holds tensors of the program."""
    lists = [data for data in args if isinstance(data, (list, tuple))]
    if any(isinstance(leaf, CapturedTensor) for leaf in tree_leaves(lists)):
        raise poptorch_error(
            f"{func.__name__}() of a list reads the values of tensors in it{capture.place()}, which are not known "
            "while the model is compiled: use `torch.stack`."
        )


def _new(capture: Capture, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`x.new(sizes or data)`, which asks no dispatcher where to make its tensor."""
    like, *values = args
    if not isinstance(like, CapturedTensor):
        return func(*args, **kwargs)
    sizes = values[0] if values and isinstance(values[0], torch.Size) else values
    if all(isinstance(size, int) for size in sizes):
        return like.new_empty(sizes)
    return _new_tensor(capture, func, args, kwargs)


def _new_tensor(capture: Capture, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`x.new_tensor(data)`, likewise."""
    like, *values = args
    if func is torch.Tensor.new_tensor:
        _check_lists(capture, func, args)
    if not isinstance(like, CapturedTensor):
        return func(*args, **kwargs)
    return torch.tensor(values[0], dtype=kwargs.get("dtype", like.dtype)).to("ipu")


def _index(capture: Capture, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Reading `x[index]` and writing to it."""
    if _is_on_ipu(args[0], capture):
        args = (args[0], _with_lists_on_ipu(args[1]), *args[2:])
    return func(*args, **kwargs)


def _with_lists_on_ipu(index: Any) -> Any:
    """An index whose lists of numbers are tensors on the IPU; torch would make them on the CPU."""
    if isinstance(index, tuple):
        return tuple(map(_with_lists_on_ipu, index))
    numbers = isinstance(index, list) and index and all(type(item) is int for item in index)
    return torch.tensor(index).to("ipu") if numbers else index


def _unravel_index(capture: Capture, func: Any, args: Args, kwargs: Kwargs) -> Any:
    if not _is_on_ipu(args[0], capture):
        return func(*args, **kwargs)
    with IpuByDefault():  # It makes a tensor of the shape.
        return torch.functional._unravel_index(*args, **kwargs).unbind(-1)  # type: ignore[attr-defined]


_FACTORIES = (
    *(torch.arange, torch.empty, torch.full, torch.full_like, torch.linspace, torch.logspace, torch.normal),
    *(torch.ones, torch.rand, torch.randint, torch.randn, torch.randperm, torch.range, torch.zeros),
    torch.zeros_like,
)
_TREATMENTS: dict[Any, Treatment] = {
    torch.Tensor.device.__get__: _place(IPU),  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: _place(False),  # type: ignore[attr-defined]
    torch.Tensor.is_ipu.__get__: _place(True),  # type: ignore[attr-defined]
    torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch.Tensor.to: _to,
    **dict.fromkeys(_FACTORIES, _factory),
    torch.tensor: _tensor,
    torch.as_tensor: _as_tensor,
    torch.Tensor.new: _new,
    torch.Tensor.new_tensor: _new_tensor,
    torch.Tensor.__getitem__: _index,
    torch.Tensor.__setitem__: _index,
    torch.unravel_index: _unravel_index,
}
"""Functions of torch that need to be told where tensors are, or see none of their values; all others run as they are.
"""


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


@contextmanager
def without_autocast() -> Iterator[None]:
    """Inside, `torch.autocast` does nothing, whether it is entered there or around; a warning says so once."""
    is_said = False

    def enter(context: Any) -> Any:
        if context._enabled:
            say()
        return context

    def say() -> None:
        nonlocal is_said
        if not is_said:
            logger.warning(
                "torch.autocast has no effect on the IPU: for half precision convert the model and its inputs by "
                "`half()`, or a tensor in the forward by `to(torch.half)`."
            )
        is_said = True

    if torch.is_autocast_enabled("cpu"):
        say()
    before = torch.autocast.__enter__, torch.autocast.__exit__
    with torch.autocast("cpu", enabled=False):
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]
        torch.autocast.__exit__ = lambda *_: None  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.autocast.__enter__, torch.autocast.__exit__ = before  # type: ignore[method-assign]


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


class Substitution(Protocol):
    """What a library exchanges in itself while a forward is captured."""

    def replace(self) -> None: ...
    def restore(self) -> None: ...


substitutions: list[Callable[[], Substitution]] = []
"""Those that libraries have registered; process-wide, as in PopTorch."""


@contextmanager
def torch_without_values() -> Iterator[None]:
    """Inside, torch's own Python does not look at values of tensors where it can do without: they are not known yet."""
    with ExitStack() as stack:
        stack.enter_context(_exchanged())
        for made in substitutions:
            substitution = made()
            stack.callback(substitution.restore)
            substitution.replace()
        yield


@contextmanager
def _exchanged() -> Iterator[None]:
    before = [getattr(owner, name) for owner, name, _ in _WHILE_CAPTURING]
    try:
        for owner, name, value in _WHILE_CAPTURING:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(_WHILE_CAPTURING, before):
            setattr(owner, name, value)
