"""Builds, caches and loads the C++ kernels; every kernel has a plain torch counterpart beside its caller.

The library is compiled for this CPU with the compiler at hand and cached by the hash of its sources, flags
and CPU. It is linked without an OpenMP library of its own: the symbols resolve to the one torch has loaded,
so that both share one pool of threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("kernels")
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math", "-fPIC", "-Wall", "-Wextra", "-Wno-maybe-uninitialized",
)  # fmt: skip
CACHE_VARIABLE = "BERT_IPU_BUILD_DIR"

POINTER, INT, WORD, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32, ctypes.c_float
DRAW = (POINTER, WORD, POINTER)
"""Key, operator number, places: what makes a random draw, see `random.py`."""

SIGNATURES: dict[str, tuple[object, ...]] = {
    "random_words": (POINTER, INT, INT, *DRAW),
    "dropout_f32": (POINTER, POINTER, INT, INT, *DRAW, WORD, FLOAT),
    "dropout_bf16": (POINTER, POINTER, INT, INT, *DRAW, WORD, FLOAT),
    "cross_entropy_f32": (POINTER, POINTER, INT, INT, INT, POINTER, POINTER),
    "cross_entropy_bf16": (POINTER, POINTER, INT, INT, INT, POINTER, POINTER),
    "cross_entropy_grad_f32": (POINTER, POINTER, POINTER, POINTER, INT, INT, INT, POINTER),
    "cross_entropy_grad_bf16": (POINTER, POINTER, POINTER, POINTER, INT, INT, INT, POINTER),
    "argmax_f32": (POINTER, INT, INT, POINTER),
    "argmax_bf16": (POINTER, INT, INT, POINTER),
    "adam_f32": (POINTER, POINTER, POINTER, POINTER, INT, POINTER),
    "adam_bf16": (POINTER, POINTER, POINTER, POINTER, INT, POINTER),
    "lamb_f32": (POINTER, POINTER, POINTER, POINTER, INT, POINTER),
    "lamb_bf16": (POINTER, POINTER, POINTER, POINTER, INT, POINTER),
    "round_half": (POINTER, POINTER, INT),
    "round_half_stochastic": (POINTER, POINTER, INT, INT, *DRAW),
}


class Kernels:
    """The loaded library; each kernel of SIGNATURES is an attribute."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, arguments in SIGNATURES.items():
            function = getattr(library, f"bert_ipu_{name}")
            function.argtypes = arguments
            function.restype = None
            setattr(self, name, function)

    def __getattr__(self, name: str) -> ctypes._FuncPointer:
        raise AttributeError(f"no kernel is called {name}")


@functools.cache
def load_kernels() -> Kernels | None:
    """The kernels, built on first use; None, with one line in the log, where they cannot be built."""
    torch.get_num_threads()  # torch's OpenMP library must be in the process before ours looks for its symbols
    try:
        return Kernels(build())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning(
            "C++ kernels are not available, plain torch runs instead: %s", str(error).strip().split("\n")[0]
        )
        return None


def build() -> Path:
    """Compile the kernels once per version of their sources and return the library's path.

    Raises RuntimeError where there is no compiler or it refuses the sources.
    """
    compiler = shutil.which(os.environ.get("BERT_IPU_CXX", "g++"))
    if compiler is None:
        raise RuntimeError("no C++ compiler is on PATH (g++, or the one named in BERT_IPU_CXX)")
    library = _cache_root() / f"kernels-{_digest(compiler)}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = [Path(folder) / f"{source.stem}.o" for source in _sources()]
        jobs = [
            subprocess.Popen(
                [compiler, *FLAGS, "-c", str(source), "-o", str(target)], stderr=subprocess.PIPE, text=True
            )
            for source, target in zip(_sources(), objects)
        ]
        for job in jobs:
            _, complaint = job.communicate()
            if job.returncode:
                raise RuntimeError(f"{compiler} refused a kernel: {complaint}")
        whole = Path(folder) / "kernels.so"
        # Without -fopenmp here, so that no second OpenMP library comes in.
        subprocess.run(
            [compiler, "-shared", *map(str, objects), "-o", str(whole)], check=True, capture_output=True
        )
        whole.rename(library)
    return library


def _sources() -> list[Path]:
    return sorted(SOURCES.glob("*.cpp"))


def _cache_root() -> Path:
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override) if override else SOURCES.parents[3] / "build" / "simulator"


def _digest(compiler: str) -> str:
    digest = hashlib.sha256(" ".join((compiler, *FLAGS, platform.machine(), _cpu_flags())).encode())
    for file in sorted(SOURCES.glob("*.[ch]pp")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _cpu_flags() -> str:
    """What -march=native depends on, so that a cache on a shared disk serves several kinds of machine."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    return next(
        (line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))), ""
    )
