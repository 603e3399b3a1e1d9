"""Slices of one tensor that were computed apart, as the heads of query, key and value are, joined without detours.

The gradient of `x[i]` is a tensor of zeros with one slice filled; adding up those of all i copies everything several
times.  Joining writes each slice once, where the permuted result has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bert_ipu.simulator.runtime.instructions import Instruction, Name
from bert_ipu.simulator.runtime.rounding import round_half, round_half_stochastic

ROUNDINGS = (round_half, round_half_stochastic)
SELECT_BACKWARD = torch.ops.aten.select_backward.default


@dataclass(frozen=True)
class JoinedSlices:
    """A sum of slices' gradients that together cover a dimension."""

    slices: list[Name]
    """The gradients in the order of their index."""
    dim: int
    swallowed: list[Instruction]
    """The instructions that the join stands for, the last addition apart."""


def find_joined_slices(
    last: Instruction, swallowed: Callable[..., Instruction | None]
) -> JoinedSlices | None:
    """The slices that a tree of additions joins; None where they do not cover their dimension once each.

    Roundings between the additions are none: each element is one of the slices' and zeros.
    """
    parts: list[Instruction] = []
    additions: list[Instruction] = []
    waiting: list[Any] = list(last.args)
    if last.kwargs or len(waiting) != 2:
        return None
    while waiting:
        value = waiting.pop()
        made = swallowed(value, torch.add, SELECT_BACKWARD, *ROUNDINGS)
        if made is None or made.kwargs:
            return None
        if made.function is SELECT_BACKWARD:
            parts.append(made)
            continue
        additions.append(made)
        waiting += made.args if made.function is torch.add else made.args[:1]
    shape, dim = list(parts[0].args[1]), parts[0].args[2] % len(parts[0].args[1])
    by_index = {part.args[3] % shape[dim]: part for part in parts}
    alike = all(list(p.args[1]) == shape and p.args[2] % len(shape) == dim for p in parts)
    if not alike or sorted(by_index) != list(range(shape[dim])) or len(parts) != shape[dim]:
        return None
    return JoinedSlices([by_index[i].args[0] for i in range(shape[dim])], dim, [*parts, *additions])


def join_slices(slices: list[Tensor], dim: int, order: list[int]) -> Tensor:
    """torch.stack(slices, dim).permute(order), contiguous."""
    shape = list(slices[0].shape)
    shape.insert(dim, len(slices))
    joined = slices[0].new_empty([shape[i] for i in order])
    place = order.index(dim)
    rest = [i - (i > dim) for i in order if i != dim]
    for index, part in enumerate(slices):
        joined.select(place, index).copy_(part.permute(rest))
    return joined
