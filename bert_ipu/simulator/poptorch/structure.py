"""Nested containers of tensors: flatten, rebuild, and the parsers users register for their classes."""

from __future__ import annotations

import abc
import importlib
import importlib.util
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

from ..errors import poptorch_error

custom_arg_parsers: dict[type, ICustomArgParser] = {}
"""Parser of each registered class; process-wide, as in PopTorch."""


class ICustomArgParser(abc.ABC):
    """Teaches PopTorch a class whose instances hold tensors."""

    @abc.abstractmethod
    def yieldTensors(self, struct: Any) -> Iterable[torch.Tensor]:
        """Yield the tensors of `struct`, always in the same order."""

    @abc.abstractmethod
    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        """Build an object like `original_structure` with tensors taken from `tensor_iterator`."""


def registerCustomArgParser(arg_data_type: type, arg_parser: ICustomArgParser | None) -> None:
    """Use `arg_parser` for instances of `arg_data_type`; None forgets it."""
    if not isinstance(arg_data_type, type):
        raise poptorch_error(f"A parser is registered for a class, not for {arg_data_type!r}.")
    if arg_parser is None:
        custom_arg_parsers.pop(arg_data_type, None)
        return
    if not isinstance(arg_parser, ICustomArgParser):
        raise poptorch_error(
            f"The parser of {arg_data_type} is {arg_parser!r}, and must be of a class derived from "
            "poptorch.ICustomArgParser."
        )
    custom_arg_parsers[arg_data_type] = arg_parser


def registerGeometricCustomArgParsers() -> None:
    """Load the package poptorch_geometric where it is installed: it registers parsers of PyTorch Geometric's data."""
    if importlib.util.find_spec("poptorch_geometric") is not None:
        with suppress(ImportError):  # As in PopTorch: most programs want nothing of it.
            importlib.import_module("poptorch_geometric")


def getCustomParser(instance: Any) -> ICustomArgParser | None:
    """The parser of the instance's class, or of its nearest base class that has one."""
    classes = type(instance).__mro__ if custom_arg_parsers else ()
    return next((custom_arg_parsers[each] for each in classes if each in custom_arg_parsers), None)


def flattenTensorStructure(tensors: Any, canonical_structure: Any = None) -> list[torch.Tensor]:
    """The tensors in `tensors`, depth first; dicts in the key order of `canonical_structure` where given."""
    return list(_leaves(tensors, tensors if canonical_structure is None else canonical_structure))


def _leaves(value: Any, order: Any) -> Iterator[torch.Tensor]:
    """The tensors in `value`, those of a dict as the dict at the same place of `order` has them."""
    parser = getCustomParser(value)
    if parser is not None:
        yield from parser.yieldTensors(value)
    elif isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for key in order if isinstance(value, dict) else range(len(value)):
            yield from _leaves(value[key], order[key])


def hidden_tensors(value: Any) -> Iterator[tuple[Any, torch.Tensor]]:
    """Tensors that an object inside `value` holds where `flattenTensorStructure` does not look, with the object."""
    if getCustomParser(value) is not None or isinstance(value, torch.Tensor):
        return
    if isinstance(value, (dict, list, tuple)):
        for element in value.values() if isinstance(value, dict) else value:
            yield from hidden_tensors(element)
        return
    held = value if isinstance(value, (set, frozenset, deque)) else getattr(value, "__dict__", {}).values()
    yield from ((value, tensor) for tensor in held if isinstance(tensor, torch.Tensor))


def reconstructTensorStructure(
    structure: Any, values: Iterable[Any], filter_fn: Callable[[torch.Tensor], bool] = lambda t: True
) -> Any:
    """A copy of `structure` whose tensors that pass `filter_fn` are the next of `values`."""
    return _rebuild(structure, iter(values), filter_fn)


def _rebuild(value: Any, values: Iterator[Any], wanted: Callable[[torch.Tensor], bool]) -> Any:
    parser = getCustomParser(value)
    if parser is not None:
        return parser.reconstruct(value, values)
    if isinstance(value, defaultdict):
        rebuilt = {key: _rebuild(element, values, wanted) for key, element in value.items()}
        return defaultdict(value.default_factory, rebuilt)
    if isinstance(value, dict):
        return type(value)({key: _rebuild(element, values, wanted) for key, element in value.items()})
    if isinstance(value, (list, tuple)):
        elements = [_rebuild(element, values, wanted) for element in value]
        return type(value)(*elements) if hasattr(value, "_fields") else type(value)(elements)
    if isinstance(value, torch.Tensor) and wanted(value):
        return next(values)
    return value


def concatenated(batches: Sequence[Sequence[torch.Tensor]]) -> Iterator[torch.Tensor]:
    """The tensors of one batch, each with those of the others after it along dimension 0."""
    for tensors in zip(*batches):
        yield torch.cat(tensors)


def combined_batches(batches: Iterable[Any], count: int, drop_last: bool) -> Iterator[Any]:
    """Join every `count` batches along dimension 0; what is left over comes last unless dropped."""
    pending: list[list[torch.Tensor]] = []
    batch = None
    for batch in batches:
        pending.append(flattenTensorStructure(batch))
        if len(pending) == count:
            yield reconstructTensorStructure(batch, concatenated(pending))
            pending = []
    if pending and not drop_last:
        yield reconstructTensorStructure(batch, concatenated(pending))
