"""Texts that are equal where Python values are: what the keys of cached executables are made of.

Anything a text cannot stand for (an open file, a lock, a generator) raises `NoFingerprint`, so that a program
which depends on it is compiled anew rather than taken for another.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import logging
import sys
import sysconfig
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

_MAX_VALUES = 500_000
"""A value that leads to more others is not described, so that making a key never takes long."""
_SHOWN = 80
"""Texts up to this long stand for themselves, so that messages can show them."""

_OURS = str(Path(__file__).resolve().parents[1])
_VERSIONED = (str(Path(torch.__file__).parent), _OURS, "<frozen")
_STANDARD_LIBRARY = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
_PLAIN = (
    bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range, slice,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_BUILTINS = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)
_MADE_BY_A_STATEMENT = 1 << 9
"""The flag Py_TPFLAGS_HEAPTYPE of a class: one without it is compiled into Python or an extension."""
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_CONTAINERS = (dict, OrderedDict, defaultdict, types.MappingProxyType)
_OWN_TABLES = ("_parameters", "_buffers", "_modules")


class NoFingerprint(Exception):
    """A value that no text can stand for; the message says where it is and what it is."""


def is_versioned(filename: str) -> bool:
    """Whether a file is torch's, Python's or the simulator's: the version of each stands for its contents."""
    if filename.startswith(_VERSIONED):
        return True
    return filename.startswith(_STANDARD_LIBRARY) and "-packages" not in filename


class Fingerprint:
    """Describes values; one met before by where that was, so that shared and cyclic ones keep their shape."""

    def __init__(self, parameters: Mapping[int, str] | None = None) -> None:
        """`parameters`: the names, by identity, of tensors whose values do not matter."""
        self._parameters = parameters or {}
        self._met: dict[int, tuple[str, Any]] = {}
        self._count = 0
        self._kinds: tuple[tuple[Any, Callable[[Any, str], Iterable[str]]], ...] = (
            (enum.Enum, lambda value, path: [f"{type(value).__qualname__}.{value.name}"]),
            (torch.Tensor, self._tensor),
            (torch.nn.Module, self._module),
            (types.ModuleType, lambda value, path: [f"module {value.__name__}"]),
            (logging.Logger, lambda value, path: [f"logger {value.name}"]),
            (type, self._class),
            (types.FunctionType, self._function),
            (types.MethodType, lambda value, path: self._sequence([value.__func__, value.__self__], path)),
            (_BUILTINS, _builtin),
            ((torch._ops.OpOverload, torch._ops.OpOverloadPacket), lambda value, path: [str(value)]),
            ((staticmethod, classmethod), lambda value, path: self._words(value.__func__, path)),
            (property, lambda value, path: self._sequence([value.fget, value.fset, value.fdel], path)),
        )

    def of(self, value: Any, path: str) -> str:
        """The text of a value; `path` says in messages where it is. Raises NoFingerprint."""
        text = "".join(self._words(value, path))
        if len(text) <= _SHOWN:
            return text
        return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"

    def _words(self, value: Any, path: str) -> Iterator[str]:
        self._count += 1
        if self._count > _MAX_VALUES:
            raise NoFingerprint(f"{path} leads to more than {_MAX_VALUES:,} values")
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            yield repr(value)
            return
        if id(value) in self._met:
            yield f"the same as {self._met[id(value)][0]}"
            return
        self._met[id(value)] = (path, value)
        if type(value) in _CONTAINERS:
            yield from self._mapping(value, path)
        elif type(value) in (list, tuple, deque):
            yield from self._sequence(value, path)
        elif type(value) in (set, frozenset):
            yield "set" + repr(sorted(Fingerprint(self._parameters).of(each, path) for each in value))
        else:
            describe = (words for kinds, words in self._kinds if isinstance(value, kinds))
            yield from next(describe, self._object)(value, path)

    def _sequence(self, value: Iterable[Any], path: str) -> Iterator[str]:
        yield f"{type(value).__qualname__}["
        for index, element in enumerate(value):
            yield from self._words(element, f"{path}[{index}]")
            yield ","
        yield "]"

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Iterator[str]:
        yield f"{type(value).__qualname__}{{"
        for key, element in value.items():
            yield from self._words(key, f"a key of {path}")
            yield ":"
            yield from self._words(element, f"{path}[{key!r}]")
            yield ","
        yield "}"

    def _tensor(self, value: torch.Tensor, path: str) -> Iterator[str]:
        kind = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        if id(value) in self._parameters:
            yield f"{kind} {self._parameters[id(value)]}"
        elif isinstance(value, FakeTensor) or value.is_meta:
            yield kind
        elif value.layout is not torch.strided or type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise NoFingerprint(f"{path} is a tensor of {type(value).__qualname__}, {value.layout}")
        else:
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            yield f"{kind} {hashlib.sha256(data.numpy().data).hexdigest()}"

    def _module(self, value: torch.nn.Module, path: str) -> Iterator[str]:
        yield from self._words(type(value), f"the class of {path}")
        for name, attribute in module_state(value):
            yield f" {name}="
            yield from self._words(attribute, f"{path}.{name}")
        for table in _OWN_TABLES:
            for name, held in getattr(value, table).items():
                yield f" {name}="
                yield from self._words(held, f"{path}.{name}")

    def _class(self, value: type, path: str) -> Iterator[str]:
        yield f"class {value.__module__}.{value.__qualname__}"
        if not value.__flags__ & _MADE_BY_A_STATEMENT or is_versioned_module(value.__module__):
            return
        for base in value.__bases__:
            yield from self._words(base, f"a base of {value.__qualname__}")
        for name, attribute in vars(value).items():
            if name.startswith("_abc_") or isinstance(attribute, _SLOTS):
                continue
            if _is_dunder(name) and not callable(attribute):
                continue
            yield f" {name}="
            yield from self._words(attribute, f"{value.__qualname__}.{name}")

    def _function(self, value: types.FunctionType, path: str) -> Iterator[str]:
        yield f"function {value.__module__}.{value.__qualname__}"
        if not is_versioned(value.__code__.co_filename):
            yield f" {code_digest(value.__code__)}"
        for what in (value.__defaults__, value.__kwdefaults__, value.__dict__ or None):
            if what is not None:
                yield from self._words(what, f"the defaults of {value.__qualname__}")
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            yield f" {name}="
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                yield "empty"
                continue
            yield from self._words(content, f"{name} of {value.__qualname__}")

    def _object(self, value: Any, path: str) -> Iterator[str]:
        """What pickle would rebuild the object from. Pickle refuses objects that are more than their state."""
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(wrapped, types.FunctionType):  # functools.cache and the like
            yield f"{type(value).__qualname__} of "
            yield from self._words(wrapped, path)
            return
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:
            name = f"{type(value).__module__}.{type(value).__qualname__}"
            raise NoFingerprint(f"{path} is a {name}, of which no copy can be made") from error
        if isinstance(reduced, str):
            yield f"{type(value).__module__}.{reduced}"
            return
        made_by, arguments, *rest = reduced
        yield from self._words(made_by, path)
        yield from self._words(tuple(arguments), path)
        for part in rest:
            yield from self._words(list(part) if isinstance(part, Iterator) else part, path)


def module_state(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """A module's attributes besides its parameters, buffers and children, and its empty tables of hooks."""
    for name, value in vars(module).items():
        if name not in _OWN_TABLES and not (name.startswith("_") and value in ({}, None, set())):
            yield name, value


def code_digest(code: types.CodeType) -> str:
    """A digest of what a function does, not of where it stands."""
    found = hashlib.sha256(code.co_code)
    for names in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
        found.update(repr(names).encode())
    found.update(repr((code.co_argcount, code.co_kwonlyargcount, code.co_flags)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(code_digest(constant).encode())
        elif isinstance(constant, frozenset):
            found.update(repr(sorted(map(repr, constant))).encode())
        else:
            found.update(repr(constant).encode(errors="surrogatepass"))
    return found.hexdigest()[:16]


def digest_of_file(path: str) -> str:
    """The digest of a file's contents. Raises OSError."""
    status = Path(path).stat()
    return _digest_of_version(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _digest_of_version(path: str, size: int, changed_ns: int) -> str:
    """Read once for each size and time of change."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


@functools.cache
def is_versioned_module(name: str) -> bool:
    """The same of a module, by its name."""
    module = sys.modules.get(name)
    filename = getattr(module, "__file__", None)
    if filename is None:
        return name in sys.builtin_module_names or name == "builtins"
    return is_versioned(filename)


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _builtin(value: Any, path: str) -> list[str]:
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, (types.ModuleType, type)):
        raise NoFingerprint(f"{path} is {value.__qualname__} of a {type(owner).__qualname__}")
    return [f"builtin {getattr(value, '__module__', '')}.{value.__qualname__}"]
