"""The only place that chooses between the Poplar SDK and the simulator.

`activate` must run before any module is imported that imports poptorch: it decides what that name means.
"""
from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

from bert_ipu.config import IpuConfig
from bert_ipu.errors import ConfigError

CUSTOM_OPS = Path(__file__).resolve().parents[1] / "custom_ops"
NUMERICS = {
    "fast": "half precision is computed in the format this CPU multiplies fastest, not rounded as on an IPU",
    "ipu": "half precision is rounded to float16 after every operator, as on an IPU, at the CPU's cost",
}


class Backend(NamedTuple):
    """What runs the program."""

    name: str
    """simulator, ipu_model or ipu."""
    reason: str
    """Why it was chosen, and which numerics it has, for the first lines of a run."""


def activate(ipu: IpuConfig, compile_only: bool = False) -> Backend:
    """Make `import poptorch` mean what `ipu.backend` asks for, and say what it is.

    Raises ConfigError where it cannot be had.
    """
    if ipu.backend == "simulator":
        return _simulator(ipu, compile_only, "asked for by ipu.backend")
    if ipu.backend == "auto":
        if not _sdk_is_installed():
            return _simulator(ipu, compile_only, "no Poplar SDK is installed")
        if not _hardware_is_there():
            return _simulator(ipu, compile_only, "the Poplar SDK finds no IPU")
        return Backend("ipu", "the Poplar SDK finds an IPU; numerics: the hardware's")
    if not _sdk_is_installed():
        raise ConfigError(
            f"ipu.backend = {ipu.backend} needs the Poplar SDK, but Python finds no package poptorch. Enable "
            f"the SDK's environment and install its poptorch wheel, or set ipu.backend=simulator.")
    if ipu.backend == "ipu_model":
        _check_ipu_model(ipu)
        # Read by PopTorch when options are made, which keeps every other module free of this case.
        os.environ["POPTORCH_IPU_MODEL"] = "1"
        return Backend("ipu_model", "asked for by ipu.backend; numerics: no random numbers of the hardware's")
    if not compile_only and not _hardware_is_there():
        raise ConfigError(
            "ipu.backend = ipu, but the Poplar SDK finds no IPU (gc-info --list-devices shows what it sees). "
            "Attach one, add --compile-only, or set ipu.backend=simulator.")
    return Backend("ipu", "asked for by ipu.backend; numerics: the hardware's")


def custom_op_library(backend: Backend, name: str) -> Path:
    """The library of one of our custom ops: compiled on first use for the simulator, found for the SDK.

    Raises ConfigError where it cannot be compiled, or was not built.
    """
    if backend.name == "simulator":
        from bert_ipu.simulator.native import build

        try:
            return build.compile_library([CUSTOM_OPS / name / f"{name}.cpp"])
        except build.BuildError as error:
            raise ConfigError(f"custom_ops.{name} cannot be compiled: {error}") from error
    path = CUSTOM_OPS.parent / "build" / "custom_ops_sdk" / f"lib{name}.so"
    if not path.exists():
        raise ConfigError(
            f"custom_ops.{name} needs {path}. Build it with cmake -S custom_ops -B build/custom_ops_sdk && "
            f"cmake --build build/custom_ops_sdk, or set custom_ops.{name}=false.")
    return path


def _sdk_is_installed() -> bool:
    spec = importlib.util.find_spec("poptorch")  # the simulator's lies in this package, also under poprun
    return spec is not None and Path(__file__).parent not in Path(spec.origin or "").parents


def _hardware_is_there() -> bool:
    import poptorch

    return bool(poptorch.ipuHardwareIsAvailable())


def _check_ipu_model(ipu: IpuConfig) -> None:
    """Refuse what the SDK's IPU Model cannot run (PopART: replication; PopTorch: executable caching)."""
    if ipu.replication_factor > 1:
        raise ConfigError(
            f"ipu.backend = ipu_model cannot replicate; ipu.replication_factor = {ipu.replication_factor}. "
            f"Set it to 1, or set ipu.backend=simulator, which replicates.")
    if ipu.executable_cache_dir:
        raise ConfigError(
            f"ipu.backend = ipu_model cannot cache executables, but ipu.executable_cache_dir = "
            f"{ipu.executable_cache_dir}. Set it to nothing, or set ipu.backend=simulator.")


def _simulator(ipu: IpuConfig, compile_only: bool, why: str) -> Backend:
    import bert_ipu.simulator as simulator

    device = "null" if compile_only else "cpu"
    simulator.install(simulator.SimulatorParams(numerics=ipu.numerics, device=device))
    return Backend("simulator", f"{why}; numerics {ipu.numerics}: {NUMERICS[ipu.numerics]}")
