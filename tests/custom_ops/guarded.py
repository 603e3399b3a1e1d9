"""Runs a compiled op on memory of its own, with guard bytes before and after every buffer."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch

from bert_ipu.simulator.custom_ops import CompiledOp
from bert_ipu.simulator.native import abi

GUARD_BYTES, GUARD = 64, 0xA5


class Guarded:
    """A tensor that is the middle of a longer buffer."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        size = math.prod(shape) * dtype.itemsize
        self.bytes = torch.full((2 * GUARD_BYTES + size,), GUARD, dtype=torch.uint8)
        self.tensor = self.bytes[GUARD_BYTES : GUARD_BYTES + size].view(dtype).view(tuple(shape))

    @classmethod
    def holding(cls, value: torch.Tensor) -> Guarded:
        made = cls(value.shape, value.dtype)
        made.tensor.copy_(value)
        return made

    def is_intact(self) -> bool:
        ends = torch.cat([self.bytes[:GUARD_BYTES], self.bytes[-GUARD_BYTES:]])
        return bool((ends == GUARD).all())


def run_guarded(
    op: CompiledOp, values: Sequence[torch.Tensor], *, in_place: bool = False
) -> list[torch.Tensor]:
    """The op's outputs; fails where it wrote outside a buffer, or to an input it does not update."""
    inputs = [Guarded.holding(value) for value in values]
    outputs = [Guarded(spec.shape, spec.dtype) for spec in op.output_specs]
    if in_place:
        for source, result in op.updates.items():
            outputs[result] = inputs[source]
    status = abi.runtime().popemu_run(
        op.engine.address, _pointers(inputs), _pointers(outputs), int(in_place), 0
    )
    assert status == 0, abi.last_error()
    for position, (buffer, value) in enumerate(zip(inputs, values, strict=True)):
        assert buffer.is_intact(), f"written outside input {position}"
        if not (in_place and position in op.updates):
            assert torch.equal(buffer.tensor, value), f"input {position} was changed"
    for position, buffer in enumerate(outputs):
        assert buffer.is_intact(), f"written outside output {position}"
    return [buffer.tensor for buffer in outputs]


def _pointers(buffers: Sequence[Guarded]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(buffers))(*(buffer.tensor.data_ptr() for buffer in buffers))
