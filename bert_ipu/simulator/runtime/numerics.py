"""How values of the device's dtypes are carried on the host, and rounded.

"ipu": an fp16 value is held in a float32 tensor and rounded to fp16 after each operator; arithmetic inside an
operator is fp32, as partial sums are on the IPU.  Matmuls in fp16 would be 10 to 1000 times slower here.
"fast": an fp16 value is held in bf16 and weights keep a float32 master copy; on CPUs whose bf16 products are slow it is
held in float32, and multiplied in fp16 where the CPU does that faster (`products.py`).
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import torch

from bert_ipu.simulator.params import SimulatorParams
from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.products import has_half_products
from bert_ipu.simulator.runtime.rounding import HALF_MAX
from bert_ipu.simulator.runtime.settings import ExecutionSettings, Products


@dataclass(frozen=True)
class Numerics:
    """The chosen way of carrying half precision."""

    mode: str
    half: torch.dtype
    """What carries fp16 between the operators of a micro-batch."""
    stochastic: bool = False
    traps: bool = False
    """Whether an operator that makes NaN or infinity stops the run."""
    overflow: float = math.inf
    """What a finite value that is too large for fp16 becomes when it is rounded."""
    half_products: bool = False
    """Whether fp16 values, carried in float32, are multiplied in fp16."""
    half_partials: frozenset[Products] = frozenset()
    """Which products of fp16 values are summed in fp16, where an operator says nothing of its own."""

    @property
    def rounds(self) -> bool:
        """Whether fp16 results are rounded to fp16."""
        return self.mode == "ipu"

    def activation(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that carries a value of `dtype` inside a micro-batch."""
        return self.half if dtype == torch.float16 else _narrow(dtype)

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that carries a variable of `dtype`, and everything of the optimizer."""
        return torch.float32 if dtype == torch.float16 else _narrow(dtype)


def _narrow(dtype: torch.dtype) -> torch.dtype:
    return {torch.float64: torch.float32, torch.int64: torch.int32}.get(dtype, dtype)


def choose_numerics(
    params: SimulatorParams, settings: ExecutionSettings, device: torch.device, kernels: Kernels | None
) -> Numerics:
    """The numerics of a run; "fast" takes bf16 only where the device multiplies it faster than float32.

    An IPU whose floating-point exceptions are on does not saturate (PopART's `setFloatingPointBehaviour`).
    """
    mode, traps = params.numerics, settings.float_exceptions
    if mode == "ipu":
        saturates = params.half_overflow == "saturate" and not traps
        overflow = HALF_MAX if saturates else math.inf
        rounding, partials = settings.stochastic_rounding, settings.half_partials
        return Numerics(mode, torch.float32, rounding, traps, overflow, half_partials=partials)
    if has_fast_bf16(device):
        return Numerics(mode, torch.bfloat16, traps=traps)
    half_products = kernels is not None and has_half_products(kernels)
    return Numerics(mode, torch.float32, traps=traps, half_products=half_products)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than float32 ones.

    On CPUs that is measured, once per process: some have the instructions (AVX512_BF16) at half the rate.
    """
    if device.type == "cuda":
        # From Ampere on; before, torch says bf16 is supported, and multiplies it by way of float32.
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    return _bf16_speed_up() > FASTER


FASTER = 1.2
"""How much faster bf16 must be to be worth its lost bits."""


@functools.cache
def _bf16_speed_up() -> float:
    """How many times faster than float32 matrices [256, 768] and [768, 768] of bf16 are multiplied.

    By the processor's time of one thread, in turns, and the best of many: threads that wait for each other while other
    programs run, such as the other instances of a job, would make it a matter of luck.
    """
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(16):
            for dtype in best:
                left = torch.ones(256, 768, dtype=dtype, device="cpu")
                right = torch.ones(768, 768, dtype=dtype, device="cpu")
                started = time.thread_time()
                torch.mm(left, right)
                best[dtype] = min(best[dtype], time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]
