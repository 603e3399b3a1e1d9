"""Convolutions with partial sums of fp16: as products of matrices, whose depth is kernel positions times channels.

A convolution's three products are one function each, for a weight [O, C / groups, *kernel].  A transposed convolution
is the gradient of one for its input, so it needs no functions of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bert_ipu.simulator.runtime.depth_division import tiles_of_depth
from bert_ipu.simulator.runtime.half_partials import HalfPartials
from bert_ipu.simulator.runtime.random import Draws


@dataclass(frozen=True)
class _Convolution:
    """A convolution without its tensors; one number for each dimension of space."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    multiply: Callable[[Tensor, Tensor], Tensor]
    """Of [groups, M, K] and [groups, K, N]."""

    def result(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, O, *out] of x [B, C, *size]."""
        windows = _windows(x, weight.shape[2:], self.stride, self.dilation, [(p, p) for p in self.padding])
        return self._over_channels(windows, weight)

    def input_gradient(self, grad: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
        """[B, C, *size] of grad [B, O, *out]: each output of the kernel's positions that read an input."""
        kernel = weight.shape[2:]
        spread = _spread(grad, self.stride)
        before = [d * (k - 1) - p for d, k, p in zip(self.dilation, kernel, self.padding)]
        after = [
            n + d * (k - 1) - s - b
            for n, d, k, s, b in zip(size, self.dilation, kernel, spread.shape[2:], before)
        ]
        windows = _windows(spread, kernel, [1] * len(kernel), self.dilation, list(zip(before, after)))
        swapped = self._by_group(weight, 0).transpose(1, 2).flatten(0, 1)
        return self._over_channels(windows, swapped.flip(tuple(range(2, swapped.dim()))))

    def weight_gradient(self, x: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
        """[O, C / groups, *kernel]: the sum over batch and space."""
        windows = _windows(x, shape[2:], self.stride, self.dilation, [(p, p) for p in self.padding])
        windows = _cut(windows, grad.shape[2:])
        space = grad.dim() - 2
        left = self._by_group(grad, 1).movedim(0, 2).flatten(2)
        right = self._by_group(windows, 1).movedim((1, 2), (0, 1))
        right = right.flatten(2, 2 + space).movedim(2, 1).flatten(2)
        return self.multiply(left, right).reshape(shape)

    def _over_channels(self, windows: Tensor, weight: Tensor) -> Tensor:
        """Sums of windows [B, C, *out, *kernel] over channels and kernel, channels the faster."""
        space = weight.dim() - 2
        batch, out = windows.shape[0], windows.shape[2 : 2 + space]
        left = self._by_group(windows, 1).movedim((1, 2), (0, -1))
        left = left.reshape(self.groups, batch * math.prod(out), -1)
        right = self._by_group(weight, 0).movedim(2, -1).flatten(2).transpose(1, 2)
        sums = self.multiply(left, right)
        sums = sums.view(self.groups, batch, *out, sums.shape[2])
        return sums.movedim((0, -1), (1, 2)).flatten(1, 2)

    def _by_group(self, x: Tensor, dim: int) -> Tensor:
        """With a dimension of channels taken apart into groups and channels of each."""
        return x.view(*x.shape[:dim], self.groups, -1, *x.shape[dim + 1 :])


def _windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Tensor:  # fmt: skip
    """[B, C, *out, *kernel]: what each position of the kernel reads; negative padding cuts off."""
    x = torch.nn.functional.pad(x, [side for pair in reversed(padding) for side in pair])
    for dim, (k, s, d) in enumerate(zip(kernel, stride, dilation), 2):
        x = x.unfold(dim, d * (k - 1) + 1, s)[..., ::d]
    return x


def _spread(x: Tensor, stride: Sequence[int]) -> Tensor:
    """[B, C, *space] with stride - 1 zeros between neighbours."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    return spread


def _cut(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """[B, C, *space, ...] without the positions that a transposed convolution's output padding may add."""
    for dim, size in enumerate(sizes, 2):
        x = x.narrow(dim, 0, size)
    return x


def _rounding(partials: HalfPartials, draws: Draws | None) -> Callable[[Tensor, Tensor], Tensor]:
    def multiply(a: Tensor, b: Tensor) -> Tensor:
        tiles = tiles_of_depth(a.shape[0], a.shape[1], b.shape[2], a.shape[2])
        return partials.multiply(a, b, tiles, draws)

    return multiply


def convolution(
    partials: HalfPartials, draws: Draws | None, x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    output_padding: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """As aten.convolution, of one micro-batch; the bias is added to rounded sums."""
    each = _each(weight.dim() - 2)
    made = _Convolution(each(stride), each(padding), each(dilation), groups, _rounding(partials, draws))
    if not transposed:
        result = made.result(x, weight)
    else:
        size = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1 + more
            for n, s, p, d, k, more in zip(
                x.shape[2:], made.stride, made.padding, made.dilation, weight.shape[2:], each(output_padding)
            )
        ]
        result = made.input_gradient(x, weight, size)
    return result if bias is None else result + bias.view(-1, *[1] * (weight.dim() - 2))


def convolution_backward(
    partials: HalfPartials, draws: Draws | None, grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    output_padding: Sequence[int], groups: int, mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """As aten.convolution_backward: the gradients of x, weight and bias that the mask asks for."""
    each = _each(weight.dim() - 2)
    made = _Convolution(each(stride), each(padding), each(dilation), groups, _rounding(partials, draws))
    other = replace(made, multiply=_rounding(replace(partials, op=partials.op + 1), draws))
    for_x = for_weight = for_bias = None
    if mask[0]:
        size = x.shape[2:]
        for_x = (
            _cut(made.result(grad, weight), size) if transposed else made.input_gradient(grad, weight, size)
        )
    if mask[1]:
        wide, narrow = (grad, x) if transposed else (x, grad)
        for_weight = other.weight_gradient(wide, narrow, weight.shape)
    if mask[2]:
        for_bias = grad.sum([0, *range(2, grad.dim())])
    return for_x, for_weight, for_bias


def _each(dimensions: int) -> Callable[[Sequence[int]], tuple[int, ...]]:
    """One number for each dimension of space, where one may stand for all."""
    return lambda values: tuple(values) if len(values) == dimensions else tuple(values) * dimensions


CONVOLUTIONS: dict[str, Callable[..., Any]] = {
    "convolution": convolution,
    "convolution_backward": convolution_backward,
}
"""By the name of the operator, as function(partials, draws, *its arguments)."""
