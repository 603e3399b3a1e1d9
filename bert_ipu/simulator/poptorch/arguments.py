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

_MISMATCH = (
    "\nThe inputs passed now don't match the inputs used to compile the model.\n"
    "To compile for the new inputs create a new inferenceModel / trainingModel or call destroy() and try "
    "again."
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
                f"Number of positional arguments mismatch: expected {len(self.args)} arguments "
                f"but got {len(given.args)}.{_MISMATCH}"
            )
        for name, compiled, value in zip(self.names, self.args, given.args):
            _match(name, compiled, value)
        _match_keys("named arguments", self.kwargs, given.kwargs)
        for name, compiled in self.kwargs.items():
            _match(name, compiled, given.kwargs[name])


def _match(name: str, compiled: Any, given: Any) -> None:
    if type(compiled) is not type(given):
        raise poptorch_error(
            f"Type mismatch for {name}: expected {type(compiled)} but got {type(given)}.{_MISMATCH}"
        )
    if isinstance(compiled, torch.Tensor):
        _match_tensors(name, compiled, given)
    elif isinstance(compiled, (tuple, list)):
        if len(compiled) != len(given):
            raise poptorch_error(
                f"Length mismatch for {name}: expected {len(compiled)} elements but got "
                f"{len(given)}.{_MISMATCH}"
            )
        for index, element in enumerate(compiled):
            _match(f"{name}[{index}]", element, given[index])
    elif isinstance(compiled, dict):
        _match_keys(name, compiled, given)
        for key, value in compiled.items():
            _match(f"{name}[{key}]", value, given[key])
    else:
        tensors = flattenTensorStructure(compiled)
        if tensors:
            _match(name, tuple(tensors), tuple(flattenTensorStructure(given)))
        elif not _equal(compiled, given):
            raise poptorch_error(
                f"Value mismatch for {name}: expected {compiled} but got {given}.{_MISMATCH}"
            )


def _equal(compiled: Any, given: Any) -> bool:
    """Equality of anything: an array is equal where all its elements are, tensors in unknown objects never."""
    try:
        return compiled is given or bool(np.all(compiled == given))
    except (RuntimeError, ValueError):
        return False


def _match_tensors(name: str, compiled: torch.Tensor, given: torch.Tensor) -> None:
    if compiled.dtype != given.dtype:
        raise poptorch_error(
            f"Data type mismatch for {name}: expected {compiled.dtype} but got {given.dtype}.{_MISMATCH}"
        )
    if compiled.shape != given.shape:
        raise poptorch_error(
            f"Shape mismatch for {name}: expected {compiled.shape} but got {given.shape}.{_MISMATCH}"
        )


def _match_keys(name: str, compiled: dict[str, Any], given: dict[str, Any]) -> None:
    problems = {
        "Unexpected arguments": given.keys() - compiled.keys(),
        "Missing arguments": compiled.keys() - given.keys(),
    }
    details = [f"{what}: {', '.join(sorted(map(str, keys)))}" for what, keys in problems.items() if keys]
    if details:
        raise poptorch_error(f"Keys mismatch for {name}: {'. '.join(details)}.{_MISMATCH}")


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_ANY_ARGUMENTS = [
    inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
    inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
]


class ArgumentParser:
    """Orders calls' arguments by a model's signature.

    Raises TypeError for something that cannot be called.
    """

    def __init__(self, model: Any) -> None:
        if not callable(model):
            raise TypeError(f"Expected a torch.nn.Module or a callable, not {type(model)}")
        self._parameters = _parameters(model.forward if isinstance(model, torch.nn.Module) else model)
        self._names = [parameter.name for parameter in self._parameters]
        self._variadic = any(parameter.kind in _VARIADIC for parameter in self._parameters)
        self._warned_not_contiguous = False

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        self._check_counts(args, kwargs)
        parsed = Arguments()
        after_variadic = False
        for index, parameter in enumerate(self._parameters):
            name = parameter.name
            if parameter.kind == inspect.Parameter.VAR_KEYWORD:
                parsed.kwargs.update(
                    {key: value for key, value in kwargs.items() if key not in self._names[:index]}
                )
            elif parameter.kind == inspect.Parameter.VAR_POSITIONAL:
                after_variadic = True
                for offset, value in enumerate(args[index:]):
                    parsed.append(f"*{name}[{offset}]", value)
            elif index < len(args) and not after_variadic:
                assert name not in kwargs, f"Parameter {name} was passed more than once"
                parsed.append(name, args[index])
            else:
                value = self._named(parameter, kwargs)
                if after_variadic:
                    parsed.kwargs[name] = value
                else:
                    parsed.append(name, value)
        return self._contiguous(parsed)

    @staticmethod
    def _named(parameter: inspect.Parameter, kwargs: dict[str, Any]) -> Any:
        if parameter.name in kwargs:
            return kwargs[parameter.name]
        if parameter.default is inspect.Parameter.empty:
            raise poptorch_error(f"Mandatory parameter {parameter.name} missing")
        return parameter.default

    def _check_counts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._variadic:
            return
        given = len(args) + len(kwargs)
        assert given <= len(self._names), (
            f"Too many arguments provided: expected {self._names} ({len(self._names)}) but got {given}"
        )
        for name in kwargs:
            assert name in self._names, f"{name} is not a valid parameter. Allowed values are {self._names}"

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
                "At least one input tensor is not contiguous: it is copied to contiguous memory at each call."
            )
            self._warned_not_contiguous = True
        return parsed.map(torch.Tensor.contiguous)

    def warn_about_dicts(self, parsed: Arguments) -> None:
        """Say once per compilation that dicts among the inputs are only partly supported."""
        if any(_holds_dict(value) for value in (*parsed.args, *parsed.kwargs.values())):
            logger.warning(
                "Dicts as inputs only have partial support: only literal keys can be accessed. Consider tuples."
            )


def _parameters(function: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin without a signature
        return _ANY_ARGUMENTS


def _holds_dict(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, (tuple, list)) and any(map(_holds_dict, value)))
