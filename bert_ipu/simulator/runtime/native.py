"""Loads the C++ kernels; every kernel has a plain torch counterpart beside its caller.

They are linked without an OpenMP library of their own: the symbols resolve to the one torch has loaded, so
that both share one pool of threads.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import torch

from bert_ipu.simulator.native.build import build_kernels

logger = logging.getLogger(__name__)

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
    **{f"softmax_{t}": (POINTER,) * 5 for t in ("f32", "bf16")},
    **{f"softmax_grad_{t}": (POINTER,) * 4 for t in ("f32", "bf16")},
    **{f"add_norm_{t}": (POINTER,) * 9 for t in ("f32", "bf16")},
    **{f"norm_grad_{t}": (POINTER,) * 11 for t in ("f32", "bf16")},
    **{f"gelu_{t}": (POINTER, POINTER, INT) for t in ("f32", "bf16")},
    **{f"gelu_grad_{t}": (POINTER, POINTER, POINTER, INT) for t in ("f32", "bf16")},
    **{f"sgd_{t}": (POINTER, POINTER, INT, FLOAT, FLOAT) for t in ("f32", "bf16")},
    "add_rows_f32": (POINTER, POINTER, INT, INT, INT, POINTER),
    "half_products": (POINTER,),
    "half_matmul": (POINTER,),
    "half_partials_matmul": (POINTER, FLOAT, *DRAW),
    "round_half": (POINTER, POINTER, INT, FLOAT),
    "round_half_stochastic": (POINTER, INT, INT, FLOAT, *DRAW),
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
        return Kernels(build_kernels())
    except (OSError, RuntimeError, AttributeError) as error:  # The last of a library of other kernels.
        logger.warning(
            "C++ kernels are not available, plain torch runs instead: %s", str(error).strip().split("\n")[0]
        )
        return None
