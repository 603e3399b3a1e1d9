"""An open PopTorch: compiles and runs PopTorch programs on any machine, with the IPU's meaning.

`python -m bert_ipu.simulator SCRIPT ARGS` runs an unmodified program; `install()` does the same from Python.
docs/simulator.md says what is exact, approximate and absent.
"""

from __future__ import annotations

from .installation import install
from .params import SimulatorParams

__all__ = ["SimulatorParams", "install"]
