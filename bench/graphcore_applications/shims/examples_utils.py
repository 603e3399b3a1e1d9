"""Stands for Graphcore's examples_utils: builds and loads a library of custom operators."""

from __future__ import annotations

import ctypes
from pathlib import Path

from bert_ipu.simulator.native.build import compile_library


def load_lib(source: str) -> ctypes.CDLL:
    """Compile a source against the simulator's headers and load the library."""
    return ctypes.cdll.LoadLibrary(str(compile_library([Path(source).resolve()])))
