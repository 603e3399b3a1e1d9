"""A call's arguments in the order of the signature, and the check that they match those compiled for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ..errors import poptorch_error
from ._logging import logger
from .structure import flattenTensorStructure, reconstructTensorStructure

_ONE_KIND = (
    "\nA compiled model takes inputs of one kind only: destroy() it before this call to compile it anew, or "
    "make a second inferenceModel or trainingModel."
)


class Arguments:
    """Positional arguments with their names, and keyword arguments."""

    def __init__(self) -> None:
        self.args: list[Any] = []
        self.names: list[str] = []
        self.kwargs: dict[str, Any] = {}

    def append(self, name: str, value: Any) -> None:
        """Add a positional argument."""
        self.names.append(name)
        self.args.append(value)

    def tensors(self, canonical: Arguments | None = None) -> list[torch.Tensor]:
        """All tensors, in the order of `canonical` where given."""
        args, kwargs = (None, None) if canonical is None else (canonical.args, canonical.kwargs)
        return flattenTensorStructure(self.args, args) + flattenTensorStructure(self.kwargs, kwargs)

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor, under the name of the argument that holds it."""
        for name, value in (*zip(self.names, self.args), *self.kwargs.items()):
            for tensor in flattenTensorStructure(value):
                yield name, tensor

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Arguments:
        """The same arguments with every tensor replaced."""
        mapped = Arguments()
        mapped.names = list(self.names)
        mapped.args = reconstructTensorStructure(self.args, map(function, flattenTensorStructure(self.args)))
        mapped.kwargs = reconstructTensorStructure(
            self.kwargs, map(function, flattenTensorStructure(self.kwargs))
        )
        return mapped

    def validate(self, given: Arguments) -> None:
        """Raise Error unless `given` has the structure, shapes, dtypes and values of these arguments."""
        if len(given.args) != len(self.args):
            raise poptorch_error(
                f"Number of positional arguments mismatch: expected {len(self.args)} arguments but got "
                f"{len(given.args)}.{_ONE_KIND}"
            )
        for name, compiled, value in zip(self.names, self.args, given.args):
            _match(name, compiled, value)
        _match_keys("the named arguments", self.kwargs, given.kwargs)
        for name, compiled in self.kwargs.items():
            _match(name, compiled, given.kwargs[name])


def _match(name: str, compiled: Any, given: Any) -> None:
    _same("Type", name, type(compiled), type(given))
    if isinstance(compiled, torch.Tensor):
        _same("Data type", name, compiled.dtype, given.dtype)
        _same("Shape", name, compiled.shape, given.shape)
    elif isinstance(compiled, (tuple, list)):
        _same("Length", name, len(compiled), len(given))
        for index, element in enumerate(compiled):
            _match(f"{name}[{index}]", element, given[index])
    elif isinstance(compiled, dict):
        _match_keys(name, compiled, given)
        for key, value in compiled.items():
            _match(f"{name}[{key}]", value, given[key])
    elif tensors := flattenTensorStructure(compiled):
        _match(name, tensors, flattenTensorStructure(given))
    else:
        _same("Value", name, compiled, given)


def _same(what: str, name: str, compiled: Any, given: Any) -> None:
    if not _equal(compiled, given):
        raise poptorch_error(f"{what} mismatch for {name}: expected {compiled} but got {given}.{_ONE_KIND}")


def _equal(compiled: Any, given: Any) -> bool:
    """Equality of anything: an array is equal where all its elements are, tensors in unknown objects never."""
    try:
        return compiled is given or bool(np.all(compiled == given))
    except (RuntimeError, ValueError):
        return False


def _match_keys(name: str, compiled: dict[str, Any], given: dict[str, Any]) -> None:
    for what, keys in (
        ("Unexpected", given.keys() - compiled.keys()),
        ("Missing", compiled.keys() - given.keys()),
    ):
        if keys:
            listed = ", ".join(sorted(map(str, keys)))
            raise poptorch_error(f"{name} are not those compiled for. {what} arguments: {listed}.{_ONE_KIND}")


class ArgumentParser:
    """Orders calls' arguments by a model's signature.

    Raises TypeError for something that cannot be called.
    """

    def __init__(self, model: Any) -> None:
        if not callable(model):
            raise TypeError(f"A model is a torch.nn.Module or a function, not {type(model)}.")
        self._signature = _signature(model.forward if isinstance(model, torch.nn.Module) else model)
        self._warned_not_contiguous = False

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        given = self._bind(args, kwargs)
        parsed = Arguments()
        for name, parameter in self._signature.parameters.items():
            value = given[name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                for index, each in enumerate(value):
                    parsed.append(f"*{name}[{index}]", each)
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                parsed.kwargs.update(value)
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                parsed.kwargs[name] = value
            else:
                parsed.append(name, value)
        return self._contiguous(parsed)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The value of every parameter. Raises AssertionError for an argument too many, Error for one too few."""
        try:
            bound = self._signature.bind_partial(*args, **kwargs)
        except TypeError as error:
            raise AssertionError(f"{error}: the model's forward takes {self._signature}") from None
        bound.apply_defaults()
        for name in self._signature.parameters:
            if name not in bound.arguments:
                raise poptorch_error(
                    f"Mandatory parameter {name} missing: the model's forward takes {self._signature}"
                )
        return bound.arguments

    def _contiguous(self, parsed: Arguments) -> Arguments:
        for tensor in parsed.tensors():
            if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
                raise poptorch_error(
                    f"Inputs must be dense tensors, not {tensor.type()} of layout {tensor.layout}: convert it by "
                    "`to_dense()`, `dequantize()` or padding."
                )
        if all(tensor.is_contiguous() for tensor in parsed.tensors()):
            return parsed
        if not self._warned_not_contiguous:
            logger.warning(
                "An input is not contiguous in memory, and is copied at each call; `contiguous()` before saves that."
            )
            self._warned_not_contiguous = True
        return parsed.map(torch.Tensor.contiguous)

    def warn_about_dicts(self, parsed: Arguments) -> None:
        """Say once per compilation that dicts among the inputs are only partly supported."""
        if any(_holds_dict(value) for value in (*parsed.args, *parsed.kwargs.values())):
            logger.warning(
                "An input is a dict: on an IPU a forward may look up its literal keys, and no more. A tuple has no "
                "such limit."
            )


def _signature(function: Any) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # a builtin without a signature
        return inspect.Signature(_ANY_ARGUMENTS)


_ANY_ARGUMENTS = [
    inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
    inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
]


def _holds_dict(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, (tuple, list)) and any(map(_holds_dict, value)))
