"""A GPU for machines without one: tensors whose device is cuda:0, whose values lie in memory of their own.

torch takes them for a GPU's, so that composite operators choose the parts they have on one, Python's indexing and
`float(tensor)` ask the dispatcher, and no pointer to their values can be had.  What reaches a kernel is computed on the
CPU, and noted.  It is an error when a kernel gets operands of two devices, or an operator has no kernel for CUDA
(torch's `native_functions.yaml`) or none for the operands' dtype (torch's own tests of operators).
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchgen
import yaml
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bert_ipu.simulator.native.build import cache_root, compiler

aten = torch.ops.aten

CUDA = torch.device("cuda", 0)

_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>) }
"""
"""What torch's C++ code asks to switch to a device before it works there; a build for the CPU has none for CUDA."""


@functools.cache
def _register_guard() -> None:
    folder = Path(torch.__file__).parent
    library = cache_root() / "tests" / f"cuda_guard_{torch.__version__}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        source, made = (library.with_suffix(f".{os.getpid()}{end}") for end in (".cpp", ".so"))
        source.write_text(_GUARD)
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{folder / 'include'}", f"-L{folder / 'lib'}", "-lc10"]
        subprocess.run([compiler(), str(source), "-o", str(made), *flags], check=True, timeout=120)
        made.rename(library)
        source.unlink()
    ctypes.CDLL(str(library))


class GpuTensor(Tensor):
    """A tensor on the pretended GPU; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> GpuTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=CUDA
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} is called on a tensor of the pretended GPU outside of it")

    def data_ptr(self) -> int:
        raise AssertionError("the host takes a pointer to memory of the GPU")

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"GpuTensor({self.held!r})"


@dataclass
class PretendedGpu(TorchDispatchMode):
    """Computes what tensors of the GPU are given to."""

    calls: dict[OpOverload, set[tuple[torch.dtype, ...]]] = field(default_factory=dict)
    """The kernels that were called, with dtypes of their operands."""
    waits: list[str] = field(default_factory=list)
    """Copies from and to the host, and values that the host looked at: at each it waits for the GPU."""

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    __hash__ = object.__hash__

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = given.get("device")
        makes = device is not None and torch.device(device).type == "cuda"
        if not makes and not any(isinstance(operand, GpuTensor) for operand in operands):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name in ("to", "_to_copy"):
            return self._converted(func, given)
        if name != "item" and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        if name in ("item", "_local_scalar_dense"):
            self.waits.append(name)
            return func(given["self"].held)
        if name == "copy_":
            return self._copied(given["self"], given["src"])
        _check_devices(func, operands)
        self._note(func, operands)
        if device is not None:
            kwargs = {**kwargs, "device": "cpu"}
        held = {id(operand.held): operand for operand in operands if isinstance(operand, GpuTensor)}
        results = _SUBSTITUTES.get(func, func)(*tree_map(_unwrapped, args), **tree_map(_unwrapped, kwargs))
        return tree_map(lambda leaf: _wrapped(leaf, held), results)

    def _note(self, func: OpOverload, operands: list[Tensor]) -> None:
        assert has_cuda_kernel(func), f"{func} has no kernel for CUDA"
        self.calls.setdefault(func, set()).add(tuple(operand.dtype for operand in operands))

    def _converted(self, func: OpOverload, given: dict[str, Any]) -> Tensor:
        """`Tensor.to` and its kin."""
        x, like = given["self"], given.get("other")
        like = x if like is None else like
        device, dtype = torch.device(given.get("device") or like.device), given.get("dtype") or like.dtype
        same = device.type == x.device.type and dtype == x.dtype
        if same and not given.get("copy") and func is not aten._to_copy.default:
            return x
        if device.type != x.device.type:
            self.waits.append(str(func))
        made = _unwrapped(x).to(dtype=dtype, copy=True)
        return GpuTensor(made) if device.type == "cuda" else made

    def _copied(self, target: Tensor, source: Tensor) -> Tensor:
        if target.device.type != source.device.type:
            self.waits.append("copy_")
        _unwrapped(target).copy_(_unwrapped(source))
        return target


def _is_composite(func: OpOverload) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _check_devices(func: OpOverload, operands: list[Tensor]) -> None:
    """A kernel takes tensors of one device; numbers, which have no dimensions, may be the host's."""
    strangers = [x for x in operands if not isinstance(x, GpuTensor) and x.dim()]
    assert not strangers, f"{func} gets operands of the host: {[tuple(x.shape) for x in strangers]}"


def _unwrapped(value: Any) -> Any:
    return value.held if isinstance(value, GpuTensor) else value


def _wrapped(value: Any, held: dict[int, GpuTensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    operand = held.get(id(value))
    if operand is None:
        return GpuTensor(value)
    assert operand.shape == value.shape, "an operator changes the shape of its operand"
    return operand


# -- what CUDA computes otherwise ----------------------------------------------------------------


def _layer_norm(x: Tensor, shape: list[int], weight: Any, bias: Any, eps: float) -> tuple[Tensor, ...]:
    """On a GPU mean and deviation are float32 whatever the operands are, which are of one dtype."""
    assert {y.dtype for y in (x, weight, bias) if y is not None} == {x.dtype}, (
        "CUDA wants operands of one dtype"
    )
    out, mean, rstd = aten.native_layer_norm(
        x.float(), shape, *(None if y is None else y.float() for y in (weight, bias)), eps
    )
    return out.to(x.dtype), mean, rstd


def _layer_norm_backward(
    grad: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor, weight: Any, bias: Any, mask: list[bool]
) -> tuple[Tensor, ...]:  # fmt: skip
    assert mean.dtype == rstd.dtype == torch.float32, "the GPU's statistics are float32"
    wide = (None if y is None else y.float() for y in (weight, bias))
    made = aten.native_layer_norm_backward(grad.float(), x.float(), shape, mean, rstd, *wide, mask)
    return tuple(None if y is None else y.to(x.dtype) for y in made)


def _batch_norm(operator: Callable[..., Any]) -> Callable[..., Any]:
    """CUDA's statistics, running ones too, are float32 beside operands of any dtype."""

    def computed(x: Tensor, *args: Any) -> tuple[Any, ...]:
        first, *others = operator(x.float(), *(y.float() if isinstance(y, Tensor) else y for y in args))
        return first.to(x.dtype), *others

    return computed


_SUBSTITUTES: dict[OpOverload, Callable[..., Any]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    **{
        operator: _batch_norm(operator)
        for operator in (
            aten._native_batch_norm_legit_functional.default,
            aten._native_batch_norm_legit.no_stats,
            aten.native_batch_norm_backward.default,
        )
    },
}
"""What stands for a kernel whose results, or whose being there, are CUDA's alone."""


# -- which kernels CUDA has ----------------------------------------------------------------------

_EVERYWHERE = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
"""Dispatch keys whose kernels run on any device, in terms of other operators; a build for the CPU has them, too."""


@functools.cache
def _declared() -> dict[str, dict[str, Any]]:
    """torch's own list of its operators: by name and overload, what is declared of each."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {entry["func"].split("(")[0]: entry for entry in entries}


@functools.cache
def has_cuda_kernel(func: OpOverload) -> bool:
    """Whether a build of torch for CUDA has what computes an operator on a GPU."""
    entry = _declared().get(func.name().removeprefix("aten::"), {})
    if "structured_delegate" in entry:
        entry = _declared()[entry["structured_delegate"]]
    if "ufunc_inner_loop" in entry:
        return True  # torch generates kernels for CPU and CUDA from one loop
    if any("CUDA" in keys.split(", ") for keys in entry.get("dispatch", {})):
        return True
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    # A structured operator's functional form is written for any device, in terms of the kernel asked for above.
    return "structured" not in entry and any(has(func.name(), key) for key in _EVERYWHERE)


# -- pretending ----------------------------------------------------------------------------------


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """Within the block torch has a GPU, cuda:0."""
    _register_guard()
    gpu = PretendedGpu()
    answers: dict[str, Any] = {
        "_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0,
        "get_device_capability": (8, 0),
    }  # fmt: skip
    answering = {name: lambda *_, value=value: value for name, value in answers.items()}
    with mock.patch.multiple(torch.cuda, **answering), gpu:
        yield gpu
