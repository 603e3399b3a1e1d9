"""Where a run's tensors are, and how torch computes there: float32 in float32, and the same in every run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from bert_ipu.simulator.errors import poptorch_error

_PRODUCTS = ("matmul", "conv", "rnn")
_BACKENDS = {"cpu": "mkldnn", "cuda": "cuda"}
"""What torch calls those who compute products, where it keeps how precise they are."""
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

Undo = Callable[[], object]


def open_device(name: str, instance: int = 0, instances: int = 1) -> torch.device:
    """The device that `SimulatorParams.device` names.

    "cuda" is torch's current GPU or, of a job's instances, each one's own: they take turns where there are fewer.
    Raises Error where torch has no such GPU.
    """
    device = torch.device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count <= (device.index or 0):
        has = f"has {count} of them, numbered from 0" if count else "finds none"
        build = "" if torch.version.cuda or torch.version.hip else "; this build of torch is for CPUs"
        raise poptorch_error(
            f'SimulatorParams(device="{name}") asks for a GPU, and torch {torch.__version__} {has}{build}. '
            'Choose another one, or device="cpu".'
        )
    # cuBLAS repeats its sums exactly only with a workspace of fixed size, which it reads before its first product.
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    if device.index is None:
        index = instance % count if instances > 1 else torch.cuda.current_device()
        device = torch.device("cuda", index)
    return device


@contextmanager
def device_code(device: torch.device) -> Iterator[None]:
    """Operators are called below autograd: nothing is recorded, and each call is cheaper.

    Whatever the user has chosen for other parts of the program, which counts again afterwards: products of float32
    are float32's, as on the device, where torch lets cuDNN's convolutions round their operands to TF32; nothing is cast
    by autocast; what is made without a dtype or device is float32 on the CPU, which kernels rely on; and a GPU computes
    the same in every run, or a warning of torch names the operator that does not.
    """
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd(), torch._C.DisableTorchFunction():
        undo = _multiply_in_float32(_BACKENDS[device.type])
        if torch.get_default_dtype() != torch.float32:
            undo.append(partial(torch.set_default_dtype, torch.get_default_dtype()))
            torch.set_default_dtype(torch.float32)
        if torch.is_autocast_enabled(device.type):
            torch.set_autocast_enabled(device.type, False)
            undo.append(partial(torch.set_autocast_enabled, device.type, True))
        if device.type == "cuda":
            undo += _compute_repeatably()
        try:
            yield
        finally:
            for step in undo:
                step()


def _multiply_in_float32(backend: str) -> list[Undo]:
    undo: list[Undo] = []
    for product in _PRODUCTS:
        chosen = torch._C._get_fp32_precision_getter(backend, product)
        if chosen not in ("none", "ieee"):
            torch._C._set_fp32_precision_setter(backend, product, "ieee")
            undo.append(partial(torch._C._set_fp32_precision_setter, backend, product, chosen))
    # The older way to choose, which torch wants to agree with the newer one where a GPU multiplies.
    older = torch.get_float32_matmul_precision() if backend == "cuda" else "highest"
    if older != "highest":
        torch.set_float32_matmul_precision("highest")
        undo.insert(0, partial(torch.set_float32_matmul_precision, older))
    return undo


def _compute_repeatably() -> list[Undo]:
    chosen, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fills, tries = torch._C._get_deterministic_fill_uninitialized_memory(), torch._C._get_cudnn_benchmark()
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    # Filling costs a pass over all memory handed out; trying takes the algorithm that is quickest this time.
    torch._C._set_deterministic_fill_uninitialized_memory(False)
    torch._C._set_cudnn_benchmark(False)
    return [
        partial(torch._C._set_deterministic_algorithms, chosen, warn_only=warns),
        partial(torch._C._set_deterministic_fill_uninitialized_memory, fills),
        partial(torch._C._set_cudnn_benchmark, tries),
    ]
