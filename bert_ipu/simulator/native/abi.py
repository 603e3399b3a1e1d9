"""The C interface of the runtime, as Python sees it: handles, typed attributes, and errors.

Nothing here knows about models; `custom_ops.py` and `patterns.py` are the users.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bert_ipu.simulator.errors import Error
from bert_ipu.simulator.native.build import (
    INCLUDE,
    RUNTIME_NAME,
    BuildError,
    build_runtime,
    compiler,
    writable_folder,
)

API_VERSION = 1

DTYPES: dict[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "INT32": torch.int32,
    "UINT32": torch.uint32,
    "INT16": torch.int16,
    "UINT16": torch.uint16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NARROWED = {torch.int64: torch.int32, torch.float64: torch.float32}


class CustomOpError(Error):
    """A custom op, pattern or codelet failed; the message names it and says how."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "custom_op")


def runtime_is_loaded() -> bool:
    """Whether any library of custom ops was loaded into this process, by us or by `ctypes` itself."""
    try:
        ctypes.CDLL(RUNTIME_NAME, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def _load_runtime() -> tuple[ctypes.CDLL, Path]:
    """The runtime that a library of custom ops brought along, as one built by CMake does, else our own."""
    try:
        path = build_runtime()
    except BuildError as error:
        raise CustomOpError(f"the custom-op runtime cannot be built: {error}") from error
    try:  # a second copy would have registries of its own, which know none of the user's ops
        return ctypes.CDLL(RUNTIME_NAME, mode=os.RTLD_NOLOAD | ctypes.RTLD_GLOBAL), path
    except OSError:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL), path


@cache
def runtime() -> ctypes.CDLL:
    """Build and load the runtime, once; raises CustomOpError when it cannot be built."""
    library, path = _load_runtime()
    if library.popemu_api_version() != API_VERSION:
        raise CustomOpError(
            f"the loaded {RUNTIME_NAME} has C interface {library.popemu_api_version()}, Python expects "
            f"{API_VERSION}: build it, and the libraries that use it, again"
        )
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    codelets = writable_folder(path) / "codelets"
    codelets.mkdir(parents=True, exist_ok=True)
    library.popemu_configure(compiler().encode(), str(INCLUDE).encode(), str(codelets).encode())
    return library


_text, _ptr, _int, _long = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_texts, _longs, _ints = ctypes.POINTER(_text), ctypes.POINTER(_long), ctypes.POINTER(_int)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "popemu_api_version": (_int, []),
    "popemu_last_error": (_text, []),
    "popemu_free": (None, [_ptr]),
    "popemu_configure": (_int, [_text, _text, _text]),
    "popemu_load": (_int, [_text]),
    "popemu_registered_ops": (_ptr, []),
    "popemu_registered_patterns": (_ptr, []),
    "popemu_attributes_new": (_ptr, []),
    "popemu_attributes_free": (None, [_ptr]),
    "popemu_attributes_set_ints": (_int, [_ptr, _text, _longs, _int, _int]),
    "popemu_attributes_set_floats": (_int, [_ptr, _text, ctypes.POINTER(ctypes.c_float), _int, _int]),
    "popemu_attributes_set_strings": (_int, [_ptr, _text, _texts, _int, _int]),
    "popemu_ir_new": (_ptr, [_int]),
    "popemu_ir_free": (None, [_ptr]),
    "popemu_ir_add_tensor": (_int, [_ptr, _text, _text, _text, _longs, _int]),
    "popemu_ir_add_op": (
        _long,
        [_ptr, _text, _text, _int, _text, _ptr, _int, _ints, _texts, _int, _ints, _texts, _int],
    ),
    "popemu_ir_set_accumulation": (_int, [_ptr, _long]),
    "popemu_ir_set_anchors": (_int, [_ptr, _texts, _int]),
    "popemu_ir_constrain": (_int, [_ptr, _long, _long, _int]),
    "popemu_ir_describe": (_ptr, [_ptr]),
    "popemu_ir_describe_op": (_ptr, [_ptr, _long]),
    "popemu_ir_run_patterns": (_ptr, [_ptr, _text, _texts, _ints, _int]),
    "popemu_ir_grow_gradients": (_ptr, [_ptr, _long, _longs, _int, _int]),
    "popemu_compile": (_ptr, [_ptr, _long, _int]),
    "popemu_engine_free": (None, [_ptr]),
    "popemu_engine_cost": (_ptr, [_ptr]),
    "popemu_run": (_int, [_ptr, ctypes.POINTER(_ptr), ctypes.POINTER(_ptr), _int, ctypes.c_uint64]),
}


def last_error() -> str:
    """What the last failed call of this thread said."""
    message: bytes = runtime().popemu_last_error()
    return message.decode(errors="replace")


def check(status: int) -> None:
    """Raise CustomOpError for a failed status."""
    if status:
        raise CustomOpError(last_error())


def fetch_json(address: int | None) -> Any:
    """Parse and free a text that the runtime allocated; raise when there is none."""
    if not address:
        raise CustomOpError(last_error())
    try:
        return json.loads(ctypes.string_at(address).decode())
    finally:
        runtime().popemu_free(address)


def boundary_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a tensor has on the device: 64-bit types are narrowed; raises CustomOpError."""
    narrowed = _NARROWED.get(dtype, dtype)
    if narrowed not in _NAMES:
        raise CustomOpError(f"{dtype} does not exist on the device; allowed: {', '.join(map(str, _NAMES))}")
    return narrowed


class EngineHandle:
    """Owns one recorded program."""

    def __init__(self, address: int, keeps: object) -> None:
        self.address = address
        self._keeps = keeps
        self._free = runtime().popemu_engine_free

    def cost(self) -> list[list[Any]]:
        """[name, cycles, bytes] of every step."""
        entries: list[list[Any]] = fetch_json(runtime().popemu_engine_cost(self.address))
        return entries

    def __del__(self) -> None:
        self._free(self.address)


class IrHandle:
    """Owns one graph of ops and tensors on the C++ side."""

    def __init__(self, *, training: bool) -> None:
        self._library = runtime()
        self._address = self._library.popemu_ir_new(int(training))

    def add_tensor(self, tensor_id: str, kind: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Add a tensor; kind is 'activation', 'variable', 'constant' or 'stream'."""
        extents = (_long * len(shape))(*shape)
        name = _NAMES[dtype].encode()
        check(
            self._library.popemu_ir_add_tensor(
                self._address, tensor_id.encode(), kind.encode(), name, extents, len(shape)
            )
        )

    def add_op(
        self,
        domain: str,
        op_type: str,
        version: int,
        inputs: Mapping[int, str],
        outputs: Mapping[int, str] | None = None,
        *,
        name: str = "",
        attributes: Mapping[str, Any],
        isolate: bool = False,
    ) -> int:
        """Create an op, connect it and run its setup(); returns its id."""
        in_slots, in_ids = _slots(inputs)
        out_slots, out_ids = _slots(outputs or {})
        with _Attributes(attributes) as typed:
            op_id: int = self._library.popemu_ir_add_op(
                self._address, domain.encode(), op_type.encode(), version, name.encode(), typed.address,
                len(inputs), in_slots, in_ids, len(outputs or {}), out_slots, out_ids, int(isolate),
            )  # fmt: skip
        if op_id < 0:
            raise CustomOpError(last_error())
        return op_id

    def set_anchors(self, tensor_ids: Sequence[str]) -> None:
        """Name the tensors that must survive every pattern."""
        check(self._library.popemu_ir_set_anchors(self._address, _strings(tensor_ids), len(tensor_ids)))

    def set_accumulation(self, factor: int) -> None:
        """Say over how many micro-batches gradients are accumulated."""
        check(self._library.popemu_ir_set_accumulation(self._address, factor))

    def constrain(self, before: int, after: int, *, tied: bool = False) -> None:
        """Require that one op runs before another."""
        check(self._library.popemu_ir_constrain(self._address, before, after, int(tied)))

    def describe(self) -> dict[str, Any]:
        """Every op and tensor, in the order of op ids."""
        graph: dict[str, Any] = fetch_json(self._library.popemu_ir_describe(self._address))
        return graph

    def describe_op(self, op: int) -> dict[str, Any]:
        """One op's inputs, outputs and attributes."""
        info: dict[str, Any] = fetch_json(self._library.popemu_ir_describe_op(self._address, op))
        return info

    def run_patterns(self, phase: str, settings: Mapping[str, bool]) -> list[dict[str, Any]]:
        """Run the patterns to a fixed point; returns the edits in order."""
        switches = (_int * len(settings))(*(int(on) for on in settings.values()))
        names = _strings(list(settings))
        edits: list[dict[str, Any]] = fetch_json(
            self._library.popemu_ir_run_patterns(
                self._address, phase.encode(), names, switches, len(settings)
            )
        )
        return edits

    def grow_gradients(self, op: int, live_outputs: Sequence[int], *, isolate: bool) -> list[dict[str, Any]]:
        """Create the gradient ops of `op` in this graph."""
        live = (_long * len(live_outputs))(*live_outputs)
        grads: list[dict[str, Any]] = fetch_json(
            self._library.popemu_ir_grow_gradients(self._address, op, live, len(live_outputs), int(isolate))
        )
        return grads

    def compile(self, op: int, *, isolate: bool) -> EngineHandle:
        """Record the program of one op."""
        address = self._library.popemu_compile(self._address, op, int(isolate))
        if not address:
            raise CustomOpError(last_error())
        return EngineHandle(address, keeps=self)

    def __del__(self) -> None:
        self._library.popemu_ir_free(self._address)


class _Attributes:
    """Typed attributes for the length of one call."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self._attributes = attributes

    def __enter__(self) -> _Attributes:
        self.address = runtime().popemu_attributes_new()
        try:
            for key, value in self._attributes.items():
                self._set(key, value)
        except BaseException:
            runtime().popemu_attributes_free(self.address)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        runtime().popemu_attributes_free(self.address)

    def _set(self, key: str, value: Any) -> None:
        is_list = isinstance(value, (list, tuple))
        values = list(value) if is_list else [value]
        if not values:
            raise CustomOpError(f"attribute {key!r} is an empty list, whose type cannot be told")
        first = values[0]
        library, name, count = runtime(), key.encode(), len(values)
        if not all(isinstance(v, (int, float) if isinstance(first, float) else type(first)) for v in values):
            raise CustomOpError(f"attribute {key!r} mixes types: {values!r}")
        if isinstance(first, int):
            array = (_long * count)(*(_checked_int64(key, v) for v in values))
            check(library.popemu_attributes_set_ints(self.address, name, array, count, int(is_list)))
        elif isinstance(first, float):
            floats = (ctypes.c_float * count)(*(_checked_float32(v) for v in values))
            check(library.popemu_attributes_set_floats(self.address, name, floats, count, int(is_list)))
        elif isinstance(first, str):
            check(
                library.popemu_attributes_set_strings(
                    self.address, name, _strings(values), count, int(is_list)
                )
            )
        else:
            raise CustomOpError(
                f"attribute {key!r} is {type(first).__name__}; "
                "allowed: int, float, str, or a list of one of these"
            )


def _checked_int64(key: str, value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise CustomOpError(f"attribute {key!r}: {value} does not fit in 64 bits")
    return value


def _checked_float32(value: float) -> float:
    limit = torch.finfo(torch.float32).max
    if value > limit and value != float("inf"):
        raise CustomOpError(f"{value:g} is too high for a Popart float attribute.")
    if value < -limit and value != float("-inf"):
        raise CustomOpError(f"{value:g} is too low for a Popart float attribute.")
    return value


def _slots(connections: Mapping[int, str]) -> tuple[Any, Any]:
    return (_int * len(connections))(*connections), _strings(list(connections.values()))


def _strings(values: Sequence[str]) -> Any:
    return (_text * len(values))(*(value.encode() for value in values))
