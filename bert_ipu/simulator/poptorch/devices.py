"""The simulated IPUs: how many a program takes, whether they can be had, and which are taken."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ..errors import poptorch_cpp_error
from ..graph.ir import Program
from ._logging import TRACE, compiler_logger
from .enums import ConnectionType
from .options import Options
from .placement import forward_ipus

MAX_IPUS = 64
"""IPUs one process can have: a Pod64."""


def model_is_asked_for() -> bool:
    """Whether POPTORCH_IPU_MODEL asks for the IPU Model; options that say what to use come before it."""
    asked = os.environ.get("POPTORCH_IPU_MODEL", "0")
    if not asked.strip().isdecimal():
        raise poptorch_cpp_error(f"POPTORCH_IPU_MODEL is {asked!r}; set it to 1 for the IPU Model, or to 0.")
    return int(asked) != 0


IPU_VERSIONS = (1, 2, 21)
"""What `Options.useOfflineIpuTarget` may compile for."""


def _is_device(options: Options) -> bool:
    """Whether the target is a device, rather than the IPU Model or one that is only compiled for."""
    is_model = options.use_model if options.exists("use_model") else model_is_asked_for()
    offline = options.connection_type == ConnectionType.Never
    popart = options._Popart.options
    if (is_model or offline) and popart["instrumentWithHardwareCycleCounter"]:
        raise poptorch_cpp_error(
            "Cycle count logging is only supported on actual IPU hardware: leave logCycleCount() out for "
            f"{'the IPU model' if is_model else 'an offline target'}."
        )
    if is_model and popart.get("enableEngineCaching"):
        compiler_logger.warning(
            "Graphcore's IPU Model has no executable cache; the simulator keeps its programs anyway"
        )
    if not offline:
        return not is_model
    if is_model:
        raise poptorch_cpp_error(
            "useOfflineIpuTarget() and ConnectionType.Never compile for an IPU, but useIpuModel or POPTORCH_IPU_MODEL "
            "asks for the IPU Model: leave out one or the other."
        )
    if options.exists("ipu_id"):
        raise poptorch_cpp_error(
            f"useIpuId({options.ipu_id}) names a device, but the program is only compiled: leave it out, or "
            "useOfflineIpuTarget() and ConnectionType.Never."
        )
    if options.exists("ipu_version") and options.ipu_version not in IPU_VERSIONS:
        raise poptorch_cpp_error(
            f"useOfflineIpuTarget() was given version {options.ipu_version}; there are "
            f"{', '.join(map(str, IPU_VERSIONS))}."
        )
    return False


def reserved_ipus(program: Program, options: Options) -> int:
    """IPUs to reserve for all replicas: a power of 2 of a real device, whose rounding the options allow.

    Raises Error for too many, where rounding is off, and for a target that there is not.
    """
    needed: int = (max(forward_ipus(program)) + 1) * options.replication_factor
    if needed > MAX_IPUS:
        raise poptorch_cpp_error(
            f"Too many IPUs requested ({needed}). Experiments that need over {MAX_IPUS} run as several instances, "
            "with poprun; or use fewer stages or replicas."
        )
    if not _is_device(options):
        return needed
    reserved: int = 1 << (needed - 1).bit_length()
    if reserved != needed:
        if not options.auto_round_num_ipus:
            raise poptorch_cpp_error(
                f"The model specifies the use of {needed} IPUs, however PopTorch must reserve a minimum of {reserved} "
                "in order to allow the model to run, because PopTorch must reserve a power of 2 or maximum of 64 IPUs "
                "per process. Please reconfigure your model to use a different number of IPUs or set "
                "poptorch.Options().autoRoundNumIPUs(True)."
            )
        compiler_logger.warning(
            "The model uses %d IPUs; %d are reserved, the next power of 2, and the others stay idle.",
            needed,
            reserved,
        )
    return reserved


@dataclass
class DevicePool:
    """The devices of this process, and which of those asked for by their id are taken."""

    taken: set[int] = field(default_factory=set)
    _acquired: int = 0

    def acquire(self, ipus: int, ipu_id: int | None) -> int:
        """Take a device of so many IPUs, or a certain one; its id. Raises Error where that one is taken."""
        if ipu_id is None:
            number, self._acquired = self._acquired, self._acquired + 1
            compiler_logger.debug("Acquired %d IPU(s): running on device Id %d.", ipus, number)
        else:
            if ipu_id in self.taken:
                raise poptorch_cpp_error(
                    f"Failed to acquire device Id {ipu_id}: another model of this process is attached to it. Call "
                    "its detachFromDevice() or destroy(), or leave the choice of the device to PopTorch."
                )
            self.taken.add(ipu_id)
            number = ipu_id
            compiler_logger.debug("Acquired the device with id %d", number)
        compiler_logger.log(TRACE, "Attached to device %d", number)
        return number

    def release(self, number: int) -> None:
        """Give a device back."""
        compiler_logger.debug("Detached from device %d", number)
        self.taken.discard(number)


pool = DevicePool()
"""Devices are exclusive across all models of a process."""
