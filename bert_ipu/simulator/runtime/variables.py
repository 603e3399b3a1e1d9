"""The values of a program's variables on the device, one per replica where replicas differ."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from bert_ipu.simulator.graph.ir import Program, Role, Variable
from bert_ipu.simulator.runtime.numerics import Numerics
from bert_ipu.simulator.runtime.replication import Replication

LAZY_BYTES = 1 << 20
"""From this size on, zeros are pages that the system hands out when they are first written."""


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros; on the CPU a large one costs nothing before its first use."""
    count = math.prod(shape)
    if device.type != "cpu" or count * dtype.itemsize < LAZY_BYTES:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype).reshape(shape)


class VariableStore:
    """Device memory: `values[name]` has one tensor, or one per replica of this instance."""

    def __init__(
        self, program: Program, replication: Replication, numerics: Numerics, device: torch.device, nan: bool
    ) -> None:
        self.program, self.replication, self.numerics, self.device = program, replication, numerics, device
        self.values: dict[str, list[Tensor]] = {}
        with torch.inference_mode(False):  # A program may be compiled in such a block, and used after it.
            for variable in program.variables.values():
                width = replication.width(variable.name)
                self.values[variable.name] = [self._allocate(variable, nan) for _ in range(width)]
        for variable in program.variables.values():
            if variable.tensor is not None:
                self.load(variable.name, variable.tensor)
            elif variable.initial is not None:
                self._reset(variable)

    def _allocate(self, variable: Variable, nan: bool) -> Tensor:
        """Memory with a variable's first value; NaN, where asked for, if it has none before it is loaded."""
        dtype = self.numerics.stored(variable.dtype)
        if variable.tensor is not None:
            return torch.empty(variable.shape, dtype=dtype, device=self.device)
        has_first_value = variable.role in (Role.STATE, Role.SCALAR)
        if has_first_value and variable.fill == 0:
            return zeros(variable.shape, dtype, self.device)
        missing = torch.nan if nan and dtype.is_floating_point else 0
        fill = variable.fill if has_first_value else missing
        return torch.full(variable.shape, fill, dtype=dtype, device=self.device)

    def reset_states(self) -> None:
        """Give optimizer states and scalars their first values; a state may start from its parameter."""
        for variable in self.program.variables.values():
            if variable.role in (Role.STATE, Role.SCALAR) and variable.tensor is None:
                self._reset(variable)

    def _reset(self, variable: Variable) -> None:
        for replica, value in enumerate(self.values[variable.name]):
            value.fill_(variable.fill)
            if variable.initial is not None:
                parameter, factor = variable.initial
                source = self.values[parameter]
                value.add_(source[min(replica, len(source) - 1)], alpha=factor)

    def load(self, name: str, tensor: Tensor) -> None:
        """Copy a host tensor to the device; with replica groups its first dimension counts the groups.

        Raises ValueError for an unknown name or another shape.
        """
        variable = self._variable(name)
        shape = (self.groups(variable), *variable.shape) if self.groups(variable) > 1 else variable.shape
        grouped = tuple(tensor.shape) == shape and self.groups(variable) > 1
        if tuple(tensor.shape) not in (shape, variable.shape):
            raise ValueError(
                f"{name} has shape {tuple(variable.shape)} on the device, was given {tuple(tensor.shape)}"
            )
        for replica, value in enumerate(self.values[name]):
            source = tensor.detach()
            if grouped:
                assert variable.groups is not None, f"{name} has groups"
                source = source[self.replication.group_of(variable.groups, self.replication.first + replica)]
            value.copy_(source.to(variable.dtype) if self.numerics.rounds else source)

    def groups(self, variable: Variable) -> int:
        """How many values the host has of a variable."""
        return 1 if variable.groups is None else self.replication.total // variable.groups.size

    def read(self, name: str, whole: bool = False) -> Tensor:
        """A copy for the host in the device's dtype: [groups, ...] with replica groups, else replica 0's
        value.

        `whole`: with all bits that "fast" numerics keep of a float16 value.
        """
        variable = self._variable(name)
        values = self.values[name]
        dtype = values[0].dtype if whole and not self.numerics.rounds else variable.dtype
        if variable.groups is None or self.groups(variable) == 1:
            return _to_host(values[0], dtype)
        if variable.groups.retrieve_all:
            return torch.stack([_to_host(value, dtype) for value in values])
        first: dict[int, Tensor] = {}
        for replica, value in enumerate(values):
            first.setdefault(
                self.replication.group_of(variable.groups, self.replication.first + replica), value
            )
        return torch.stack([_to_host(first[group], dtype) for group in sorted(first)])

    def _variable(self, name: str) -> Variable:
        if name not in self.program.variables:
            raise ValueError(
                f"the program has no variable {name!r}; it has {', '.join(self.program.variables)}"
            )
        return self.program.variables[name]

    def of_replica(self, names: list[str], replica: int) -> list[Tensor]:
        """The values one replica sees, in the order of `names`."""
        return [self.values[name][replica if len(self.values[name]) > 1 else 0] for name in names]


def _to_host(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to(device="cpu", dtype=dtype, copy=True)
