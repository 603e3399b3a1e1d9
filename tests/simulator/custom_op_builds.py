"""Compiled libraries that several tests of custom ops share; each is built once and cached."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from bert_ipu.simulator.custom_ops import load_library
from bert_ipu.simulator.native.build import compile_library

OPS = Path(__file__).parent / "ops"
STRICT = ("-std=c++14", "-Wall", "-Wextra", "-Werror")


@cache
def load_probe() -> None:
    """Load the op with many kinds of `ops/probe_ops.cpp`."""
    load_library(compile_library([OPS / "probe_ops.cpp"], flags=STRICT))
