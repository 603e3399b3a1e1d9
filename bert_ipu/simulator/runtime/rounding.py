"""Rounding of float32 values to fp16, to the nearest or stochastically; `kernels/rounding.cpp` does the same.

What a finite value beyond fp16's range becomes is `overflow`: 65504 on an IPU, infinity in IEEE 754.  Infinity and
NaN stay what they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.random import GROUP, ROUNDING, ROUNDS_OF_ROUNDING, Draws, words_in_torch

HALF_MAX = 65504.0
HALF_SMALLEST_NORMAL = 2.0**-14
SPAN = 2 * GROUP
"""Elements that one group of words rounds."""


def round_half(x: Tensor, kernels: Kernels | None, overflow: float) -> Tensor:
    """float32 x rounded to the nearest fp16 value, in place where x is dense."""
    if kernels is None or x.device.type != "cpu" or not x.is_contiguous():
        rounded = x.half().float()
        into = x if x.is_contiguous() else None
        return torch.where(x.isfinite(), rounded.clamp(-overflow, overflow), rounded, out=into)
    kernels.round_half(x.data_ptr(), x.data_ptr(), x.numel(), overflow)
    return x


def round_half_stochastic(x: Tensor, draws: Draws, op: int, overflow: float) -> Tensor:
    """float32 x rounded to one of its two fp16 neighbours, with the probability of its distance; in place if
    dense.

    x: [K * n, ...] or [K, ...] for K streams.
    """
    elements = x.numel() // draws.streams
    x = x.contiguous()
    if draws.kernels is not None and x.device.type == "cpu":
        draws.kernels.round_half_stochastic(
            x.data_ptr(),
            draws.streams,
            elements,
            overflow,
            draws.key_pointer,
            op | ROUNDING,
            draws.places_pointer,
        )
        return x
    return x.copy_(_round_half_stochastic_in_torch(x, draws, op, overflow))


def _round_half_stochastic_in_torch(x: Tensor, draws: Draws, op: int, overflow: float) -> Tensor:
    """The same function as the kernel, element by element."""
    elements = x.numel() // draws.streams
    spans = halves_of_spans(draws, op | ROUNDING, range(-(-elements // SPAN)), x.device)
    random16 = spans.reshape(draws.streams, -1)[:, :elements].reshape(x.shape)
    return rounded_by(x, random16, overflow)


def rounded_by(x: Tensor, random16: Tensor, overflow: float) -> Tensor:
    """Each element rounded up or down by its 16 random bits."""
    magnitude = x.abs()
    bits = magnitude.view(torch.int32) + (random16 >> 3).to(torch.int32)
    normal = (bits & ~0x1FFF).view(torch.float32)
    units = magnitude * 2.0**24
    whole = units.floor()
    subnormal = (whole + (random16 < ((units - whole) * 65536.0).floor())) * 2.0**-24
    rounded = torch.where(magnitude < HALF_SMALLEST_NORMAL, subnormal, normal)
    rounded = torch.where(rounded > HALF_MAX, overflow, rounded)
    return torch.where(x.isfinite(), torch.copysign(rounded, x), x)


def halves_of_spans(draws: Draws, op: int, spans: range, device: torch.device) -> Tensor:
    """[streams, spans, 128]: of the 64 words of each group, the low halves, then the high ones."""
    words = words_in_torch(draws, op, len(spans) * GROUP, device, ROUNDS_OF_ROUNDING, spans.start)
    words = words.view(draws.streams, len(spans), GROUP)
    return torch.cat([words & 0xFFFF, words >> 16], dim=2)
