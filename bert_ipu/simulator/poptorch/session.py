"""A compiled model on its device: PopTorch's verbs for moving weights and states, and for running."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..compiler import optimizer_scalars
from ..errors import SimulatorUnsupported, poptorch_error
from ..graph.ir import Program, Role
from ..graph.program_text import program_text
from ..graph.tensor_names import tensors_by_name
from ..popart import SyntheticDataMode
from ..runtime.engine import Executable
from . import devices
from ._logging import TRACE, compiler_logger, logger
from .enums import CommGroupType
from .optimizer_description import log_lines
from .options import Options

MASTER = "MasterWeight___"
"""Before the name of a parameter: its float32 copy in `ipu_state`, with numerics "fast"."""


class Session:
    """Holds an executable; knows which variables are weights, optimizer states and optimizer scalars."""

    def __init__(self, program: Program, executable: Executable, ipus: int, options: Options) -> None:
        self.program = program
        self.executable = executable
        self._written_parameters: dict[str, torch.Tensor] = {}
        """The `ipu_param` last written, until the optimizer is updated: PopART's host copies, which no run reads."""
        self._ipus = ipus
        self._ipu_id: int | None = options.ipu_id if options.exists("ipu_id") else None
        self._synthetic_data = SyntheticDataMode(options._Popart.options.get("syntheticDataMode", 0))
        self._replica_inputs = _replica_inputs(options)
        self._release: weakref.finalize[[int], Session] | None = None
        """Gives the device back: when it is called, or when the session is gone."""
        self._run_began = self._run_ended = 0.0

    # -- device --------------------------------------------------------------------------------

    def attach(self) -> None:
        """Take a device."""
        device = devices.pool.acquire(self._ipus, self._ipu_id)
        self._release = weakref.finalize(self, devices.pool.release, device)
        self._release.atexit = False

    def detach(self) -> None:
        """Give the device back, if there is one."""
        if self._release is not None:
            self._release()
        self._release = None

    @property
    def attached(self) -> bool:
        """Whether the session has a device."""
        return self._release is not None

    # -- weights -------------------------------------------------------------------------------

    def write_weights(self, named: Mapping[str, torch.Tensor]) -> None:
        """Copy weights and buffers to the device."""
        if not self.attached:
            compiler_logger.log(TRACE, "No device: the weights stay where they are.")
            return
        compiler_logger.info("Writing weights from host to IPU memory.")
        self._load(named, named)

    def write_buffers(self, named: Mapping[str, torch.Tensor], names: Iterable[str]) -> None:
        """Copy some buffers to the device."""
        if not self.attached:
            compiler_logger.log(TRACE, "No device: the buffers stay where they are.")
            return
        compiler_logger.info("Copying the updatable buffers to the IPU.")
        self._load(named, names)

    def _load(self, named: Mapping[str, torch.Tensor], names: Iterable[str]) -> None:
        for name in names:
            variable = self.program.variables.get(name)
            if variable is not None and variable.role is not Role.CONSTANT:
                self.executable.load_variable(name, named[name].detach())

    @torch.no_grad()
    def read_weights(self, named: Mapping[str, torch.Tensor]) -> None:
        """Copy weights and buffers to the host's tensors."""
        if not self.attached:
            compiler_logger.log(TRACE, "No device: the host's weights are the newest.")
            return
        compiler_logger.info("Writing weights from IPU to host.")
        for name, tensor in named.items():
            variable = self.program.variables.get(name)
            if variable is not None and variable.role in (Role.PARAMETER, Role.BUFFER):
                tensor.copy_(self.executable.read_variable(name))

    # -- optimizer -----------------------------------------------------------------------------

    def _names(self, role: Role) -> list[str]:
        return [name for name, variable in self.program.variables.items() if variable.role is role]

    def update_optimizer(self, description: dict[str, Any]) -> None:
        """Give the optimizer's variable attributes new values."""
        for line in log_lines(description):
            compiler_logger.debug("Updating %s", line)
        self._written_parameters = {}
        for name, value in optimizer_scalars(self.program, description).items():
            self.executable.set_scalar(name, value)

    def read_optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """`ipu_state` and `ipu_param`, by PopART's names."""
        compiler_logger.info("Writing optimiser state tensors from IPU to host.")
        read = self.executable.read_state if self.attached else self._initial
        state = {name: read(name) for name in self._names(Role.STATE)}
        if self.attached:
            state.update((MASTER + name, read(name)) for name in self.executable.master_weights())
        parameters = {name: read(name) for name in self._names(Role.SCALAR)}
        return {"ipu_state": state, "ipu_param": {**parameters, **self._written_parameters}}

    def _initial(self, name: str) -> torch.Tensor:
        variable = self.program.variables[name]
        return torch.full(variable.shape, variable.fill, dtype=variable.dtype)

    def write_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """Copy a state dict's `ipu_state` to the device; what it lacks stays as it is.

        `ipu_param` is kept to be read back: runs go by the optimizer's own attributes (`writeOptimizerState` of
        PopTorch's `poptorch.cpp` copies it to PopART's host tensors, which only an update of the optimizer sends).
        """
        if not self.attached:
            raise poptorch_error("The optimizer's state goes to a device: call attachToDevice() before.")
        groups = (("ipu_state", Role.STATE, "state"), ("ipu_param", Role.SCALAR, "parameter"))
        for key, role, kind in groups:
            for name in self._names(role):
                if name not in state[key]:
                    logger.warning(
                        "The optimizer's state dict has no %s %s; the IPU keeps its own", kind, name
                    )
                elif role is Role.SCALAR:
                    self._written_parameters[name] = state[key][name].clone()
                else:
                    self.executable.load_variable(name, state[key][name])
        for name in self.executable.master_weights():
            if MASTER + name in state["ipu_state"]:
                self._load_master(name, state["ipu_state"][MASTER + name])
        compiler_logger.info("Writing optimiser state tensors from host to IPU memory.")

    def _load_master(self, name: str, master: torch.Tensor) -> None:
        """Take over a master copy where it still rounds to its weight, which may have been replaced since."""
        weight = self.executable.read_variable(name)
        self.executable.load_variable(name, torch.where(master.half() == weight, master, weight.float()))

    # -- random numbers ------------------------------------------------------------------------

    @property
    def random_state(self) -> list[int]:
        """The seed, then the number of steps drawn for since it was set."""
        compiler_logger.debug("Reading random seed")
        compiler_logger.debug("Reading RNG state")
        return [self.executable.seed, self.executable.step]

    @random_state.setter
    def random_state(self, state: Sequence[int]) -> None:
        compiler_logger.debug("Setting random seed to: %d", state[0])
        self.executable.seed, self.executable.step = state[0], 0
        if len(state) > 1:
            compiler_logger.debug("Setting RNG state")
            self.executable.step = state[1]

    # -- running -------------------------------------------------------------------------------

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """One call: all micro-batches in, the flat results and the anchors by name out.

        Inputs that the program writes in place are updated.
        """
        self._run_began = time.time()
        results = self.executable.run([self._for_replicas(self._received(tensor)) for tensor in inputs])
        self._run_ended = time.time()
        outputs: list[torch.Tensor] = []
        anchors: dict[str, torch.Tensor] = {}
        for spec, value in zip(self.program.outputs, results):
            if spec.kind == "input_update":
                inputs[spec.index].copy_(value)
            elif spec.kind == "anchor":
                anchors[spec.name] = value
            else:
                outputs.append(value)
        if self._synthetic_data:
            outputs = [torch.full_like(output, _nothing(output.dtype)) for output in outputs]
        return outputs, anchors

    def _received(self, tensor: torch.Tensor) -> torch.Tensor:
        """What the device gets for an input of the host: the same, or synthetic data."""
        if not self._synthetic_data:
            return tensor
        if self._synthetic_data == SyntheticDataMode.Zeros or not tensor.is_floating_point():
            return torch.zeros_like(tensor)
        drawn = (
            torch.randn_like if self._synthetic_data == SyntheticDataMode.RandomNormal else torch.rand_like
        )
        return drawn(tensor)

    def _for_replicas(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give the replicas of an input group the same rows: [.., groups, rows] to [.., replicas, rows]."""
        groups = len(set(self._replica_inputs))
        if groups == len(self._replica_inputs) or not tensor.dim():
            return tensor
        settings = self.executable.settings
        micro_batches = settings.device_iterations * settings.gradient_accumulation
        by_group = tensor.reshape(micro_batches, groups, -1, *tensor.shape[1:])
        return by_group[:, self._replica_inputs].reshape(-1, *tensor.shape[1:])

    def timestamps(self) -> tuple[list[list[float]], ...]:
        """Input, input complete, output, output complete: for each tensor the times of its micro-batches.

        The host hands over all micro-batches of a call at once, so they share the call's times.
        """
        if not self._run_ended:
            return [], [], [], []
        settings = self.executable.settings
        micro_batches = settings.device_iterations * settings.gradient_accumulation
        by_mode = {"final": 1, "sum": 1, "every_n": micro_batches // settings.output_period}
        returned = by_mode.get(settings.output_mode, micro_batches)
        replicas = 0 if self._synthetic_data else settings.replication_factor  # Synthetic data does not move.
        results = sum(spec.kind == "result" for spec in self.program.outputs)
        inputs = [[self._run_began] * (micro_batches * replicas)] * len(self.program.inputs)
        outputs = [[self._run_ended] * (returned * replicas)] * results
        return inputs, inputs, outputs, outputs

    # -- looking inside ------------------------------------------------------------------------

    def tensor_names(self) -> list[str]:
        """Names of the program's tensors."""
        return list(tensors_by_name(self.program))

    def popart_ir(self) -> str:
        """The program as text."""
        return program_text(self.program)

    def cycle_count(self) -> int:
        """Cycles of the last run; raises SimulatorUnsupported, as none are counted."""
        raise SimulatorUnsupported(
            "PoplarExecutor.cycleCount()",
            "there is no model of how long an IPU takes. getLatency() and its kin give this machine's seconds.",
        )


def _replica_inputs(options: Options) -> list[int]:
    """The input group of each replica."""
    size, replicas = options.input_group_size, options.replication_factor
    if options.input_cgt == CommGroupType.Orthogonal:
        return [replica % (replicas // size) for replica in range(replicas)]
    return [replica // size for replica in range(replicas)]


def _nothing(dtype: torch.dtype) -> float:
    """What memory that nobody has written holds."""
    return math.nan if dtype.is_floating_point else 0
