"""Nested containers of tensors, a call's arguments or results, as JSON and back, without pickle."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .serialization import NotSerializable


def write_structure(
    value: Any, on_device: Callable[[torch.Tensor], bool], kept: dict[str, torch.Tensor]
) -> Any:
    """A structure as JSON. Tensors for which `on_device` holds leave shape and dtype; the others go to `kept`.

    Raises NotSerializable for anything but containers, tensors and plain values.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        if on_device(value):
            return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape)]}
        name = f"kept {len(kept)}"
        kept[name] = value.detach().clone()
        return {"kept": name}
    if isinstance(value, dict):
        entries = [[key, write_structure(entry, on_device, kept)] for key, entry in value.items()]
        if not all(isinstance(key, (str, int)) for key, _ in entries):
            raise NotSerializable("a dict has keys that are neither names nor numbers")
        return {"dict": [_class_name(value, dict), entries]}
    if isinstance(value, (list, tuple)):
        elements = [write_structure(element, on_device, kept) for element in value]
        return {"sequence": [_class_name(value, type(value)), elements]}
    raise NotSerializable(f"it holds an object of {type(value).__module__}.{type(value).__qualname__}")


def read_structure(value: Any, kept: Mapping[str, torch.Tensor]) -> Any:
    """What was written; tensors of the device come back without data, on the device "meta"."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        dtype, shape = content
        return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
    if kind == "kept":
        return kept[content]
    name, entries = content
    cls = _class(name)
    if kind == "dict":
        return cls({key: read_structure(entry, kept) for key, entry in entries})
    elements = [read_structure(element, kept) for element in entries]
    return cls(*elements) if hasattr(cls, "_fields") else cls(elements)


_BUILTIN = {"dict": dict, "list": list, "tuple": tuple, "OrderedDict": OrderedDict}


def _class_name(value: Any, kind: type) -> str:
    cls = type(value)
    if _BUILTIN.get(cls.__name__) is cls:
        return cls.__name__
    name = f"{cls.__module__}:{cls.__qualname__}"
    if _resolve(name) is not cls:
        raise NotSerializable(f"it holds a {cls.__qualname__}, which cannot be found by its name")
    return name


def _class(name: str) -> Any:
    found = _BUILTIN.get(name) or _resolve(name)
    if not (isinstance(found, type) and issubclass(found, (dict, list, tuple))):
        raise ValueError(f"{name} is no container that this program has")
    return found


def _resolve(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found
