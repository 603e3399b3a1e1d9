"""What a training model does to the user's own model: a weight that is read is fetched from the device first.

As PopTorch does, the classes of the model and of its parameters and buffers are swapped, per instance, for
subclasses that ask their training model to bring the host's copy up to date. Copies and pickles are plain.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import poptorch_error


class Owner(Protocol):
    """The training model whose device holds the newest weights."""

    _host_weights_version: int

    def copyWeightsToHostIfNeeded(self) -> bool: ...

    def destroy(self) -> None: ...


def isWrapped(obj: Any) -> bool:
    """Whether an object's class was swapped by a training model."""
    return hasattr(type(obj), "_poptorch_plain_class")


def unwrap(obj: Any) -> Any:
    """Give an object its own class back."""
    if isWrapped(obj):
        obj.__class__ = type(obj)._poptorch_plain_class
    return obj


class Wrapper:
    """The three classes that one training model gives to its model, parameters and buffers."""

    def __init__(self, model: torch.nn.Module, owner: Owner) -> None:
        reference = weakref.ref(owner)

        def synchronise() -> None:
            found = reference()
            if found is not None:
                found.copyWeightsToHostIfNeeded()

        self.model_class = _model_class(type(model), reference, synchronise)
        self.parameter_class = _tensor_class(torch.nn.Parameter, synchronise)
        self.buffer_class = _tensor_class(torch.Tensor, synchronise)

    def wrap(self, model: torch.nn.Module) -> None:
        """Swap the classes of the model and its tensors. Raises Error for a buffer of an unusual class."""
        for parameter in model.parameters():
            parameter.__class__ = self.parameter_class  # type: ignore[assignment]
        for buffer in model.buffers():
            if type(buffer) not in (torch.Tensor, self.buffer_class):
                raise poptorch_error(f"A buffer of the model is a {type(buffer)}, and must be a plain torch.Tensor.")
            buffer.__class__ = self.buffer_class
        model.__class__ = self.model_class


def unwrap_model(model: torch.nn.Module) -> None:
    """Give a model and its tensors their own classes back."""
    unwrap(model)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        unwrap(tensor)


_SET_ASIDE: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The class that `unwrapModelIfNecessary` took from each object."""


def unwrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Give a model and its tensors their own classes back until `rewrapModelIfNecessary`.

    PopTorch keeps both for itself; Optimum Graphcore calls them around the generation of text while it trains.
    """
    for obj in [*model.parameters(), *model.buffers(), model]:
        if isWrapped(obj):
            _SET_ASIDE[obj] = type(obj)
            unwrap(obj)


def rewrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Undo `unwrapModelIfNecessary`."""
    for obj in [*model.parameters(), *model.buffers(), model]:
        if obj in _SET_ASIDE:
            obj.__class__ = _SET_ASIDE[obj]
            del _SET_ASIDE[obj]


@contextmanager
def unwrapped(model: Any) -> Iterator[None]:
    """The model without its wrapping, while it is compiled."""
    objects = [model]
    if isinstance(model, torch.nn.Module):
        objects = [*model.parameters(), *model.buffers(), model]
    classes = [(obj, type(obj)) for obj in objects if isWrapped(obj)]
    try:
        for obj, _ in classes:
            unwrap(obj)
        yield
    finally:
        for obj, wrapped_class in classes:
            obj.__class__ = wrapped_class


def _model_class(
    plain: type, reference: weakref.ref[Owner], synchronise: Callable[[], None]
) -> type[torch.nn.Module]:
    class PoptorchModel(plain):  # type: ignore[misc]
        _poptorch_plain_class = plain

        def copyWeightsToHostIfNeeded(self) -> bool:
            owner = reference()
            return owner is not None and owner.copyWeightsToHostIfNeeded()

        def destroy(self) -> None:
            owner = reference()
            if owner is not None:
                owner.destroy()

        @property
        def _host_weights_version(self) -> int | None:
            owner = reference()
            return None if owner is None else owner._host_weights_version

        def __getattribute__(self, name: str) -> Any:
            if name in ("_parameters", "_buffers", "forward"):
                synchronise()
            return super().__getattribute__(name)

        def __copy__(self) -> Any:
            return _shallow_copy(self, type(self))

        def __reduce_ex__(self, protocol: Any) -> Any:
            synchronise()
            return _same, (_shallow_copy(self, plain),)

    PoptorchModel.__name__ = f"Poptorch{plain.__name__}"
    return PoptorchModel


def _same(obj: Any) -> Any:
    return obj


def _shallow_copy(obj: Any, cls: type) -> Any:
    copied = cls.__new__(cls)  # type: ignore[call-overload]
    copied.__dict__.update(obj.__dict__)
    return copied


def _tensor_class(plain: type[torch.Tensor], synchronise: Callable[[], None]) -> type[torch.Tensor]:
    class PoptorchTensor(plain):  # type: ignore[misc, valid-type]
        _poptorch_plain_class = plain

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            synchronise()
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            if id(self) not in memo:
                memo[id(self)] = copy.deepcopy(_plain_alias(self), memo)
            return memo[id(self)]

        def __copy__(self) -> Any:
            return _plain_alias(self)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _same, (_plain_alias(self),)

    def _plain_alias(tensor: torch.Tensor) -> torch.Tensor:
        synchronise()
        with torch._C.DisableTorchFunctionSubclass():
            alias = tensor.detach()
            return torch.nn.Parameter(alias, tensor.requires_grad) if plain is torch.nn.Parameter else alias

    PoptorchTensor.__name__ = "PoptorchParameter" if plain is torch.nn.Parameter else "PoptorchBuffer"
    return PoptorchTensor
