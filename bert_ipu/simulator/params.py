"""How a simulation is carried out: one frozen, validated record, apart from what the program means."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass

NUMERICS = ("ipu", "fast")
HALF_OVERFLOWS = ("saturate", "infinity")


@dataclass(frozen=True)
class SimulatorParams:
    """Switches of the simulator itself; the defaults are the strict ones.

    None of them changes what a program means, apart from `numerics` and `half_overflow`, which choose how half
    precision is rounded. Raises ValueError for a value that is not allowed.
    """

    numerics: str = "ipu"
    """"ipu": fp16 values, rounded to fp16 at the output of each operator, fp32 arithmetic inside. "fast":
    half precision is bf16 (fp32 where the CPU has no fast bf16, multiplied in fp16 where that is quicker), with
    fp32 master copies of the weights."""
    half_overflow: str = "saturate"
    """What numerics "ipu" makes of a finite value beyond fp16's range: "saturate": +-65504, as an IPU does while
    floating-point exceptions are off; "infinity": infinity, as IEEE 754 and GPUs do."""
    device: str = "cpu"
    """"cpu", "cuda" (or "cuda:N"), or "null", which compiles and never allocates or runs."""
    threads: int | None = None
    """Threads of torch and of our kernels; None keeps torch's setting."""
    batch_micro_batches: bool = True
    """Run independent micro-batches and replicas as one; False loops over them as the device would."""
    chunk_bytes: int = 2 << 30
    """Bytes of activations that micro-batches run together may hold; more are run in several chunks."""
    fuse: bool = True
    """Let kernels stand for several operators: attention's softmax, layer norm with dropout, optimizers."""
    native_kernels: bool = True
    """Use the C++ kernels; without a compiler the plain torch way runs, with a line in the log."""
    tune_allocator: bool = True
    """Have malloc keep freed memory, as a device with planned buffers does; False leaves the process alone.
    """
    nan_uninitialised: bool = True
    """Device memory nobody has written reads as NaN, so that a missing initialisation shows."""

    def __post_init__(self) -> None:
        if self.numerics not in NUMERICS:
            raise ValueError(f"numerics={self.numerics!r} is unknown; choose one of {', '.join(NUMERICS)}")
        if self.half_overflow not in HALF_OVERFLOWS:
            raise ValueError(
                f"half_overflow={self.half_overflow!r} is unknown; choose one of {', '.join(HALF_OVERFLOWS)}"
            )
        if not re.fullmatch(r"cpu|null|cuda(:\d+)?", self.device):
            raise ValueError(f"device={self.device!r} is unknown; choose cpu, cuda, cuda:N or null")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads={self.threads} must be at least 1, or None for torch's own setting")
        if self.chunk_bytes < 1:
            raise ValueError(f"chunk_bytes={self.chunk_bytes} must be at least 1")

    @property
    def is_null(self) -> bool:
        """True when programs are compiled but cannot run."""
        return self.device == "null"


def params_from_environment(variable: str = "BERT_IPU_SIMULATOR") -> SimulatorParams:
    """Parameters from an environment variable such as "numerics=fast,threads=2"; defaults where it is unset.

    Raises ValueError for an unknown name or value.
    """
    text = os.environ.get(variable, "")
    fields = {field.name: field for field in dataclasses.fields(SimulatorParams)}
    values: dict[str, object] = {}
    try:
        for entry in filter(None, text.split(",")):
            name, _, value = entry.partition("=")
            if name not in fields:
                raise ValueError(f"{name!r} is none of {', '.join(fields)}")
            values[name] = _parse(value, fields[name].default)
        return dataclasses.replace(SimulatorParams(), **values)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"The environment has {variable}={text}: {error}.") from error


def _parse(text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in {"0", "1", "false", "true"}:
            raise ValueError(f"{text!r} is not a truth value; write true or false")
        return text.lower() in {"1", "true"}
    if isinstance(default, int) or default is None:
        return int(text)
    return text
