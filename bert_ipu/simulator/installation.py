"""Makes `import poptorch`, `popdist` and `popart` mean the simulator, in this process only."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from .params import SimulatorParams, params_from_environment

FACADES = ("poptorch", "popdist", "popart")

OFFLINE = "BERT_IPU_POPRUN_OFFLINE"
"""Set to 1 by `poprun --offline-mode`: no program gets a device, whatever it asks for."""

_params: SimulatorParams | None = None


def install(params: SimulatorParams | None = None) -> None:
    """Register the facades under the SDK's names, and choose how models compiled from now on are simulated.

    Without `params`, the environment variable BERT_IPU_SIMULATOR counts, else the defaults.
    """
    global _params
    _params = params
    if not any(isinstance(finder, _FacadeFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FacadeFinder())
    for name in FACADES:
        if sys.modules.get(name) is None or not sys.modules[name].__name__.startswith(__package__):
            sys.modules.pop(name, None)
            importlib.import_module(name)
    sys.modules["poptorch"].registerGeometricCustomArgParsers()


def current_params() -> SimulatorParams:
    """How models that are compiled now will be simulated."""
    params = params_from_environment() if _params is None else _params
    return dataclasses.replace(params, device="null") if os.environ.get(OFFLINE) == "1" else params


class _FacadeFinder(importlib.abc.MetaPathFinder):
    """Finds `poptorch.x` as the module `bert_ipu.simulator.poptorch.x`: one object under both names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if (
            fullname.split(".")[0] not in FACADES
            or importlib.util.find_spec(f"{__package__}.{fullname}") is None
        ):
            return None
        return importlib.machinery.ModuleSpec(fullname, _FacadeLoader(fullname))


class _FacadeLoader(importlib.abc.Loader):
    """Loads one module that the finder found."""

    _own_spec: importlib.machinery.ModuleSpec | None = None

    def __init__(self, name: str) -> None:
        self._name = name

    def load_module(self, fullname: str | None = None) -> ModuleType:
        """The module, by its own name where none is given, as loaders of files allow."""
        return importlib.import_module(fullname or self._name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{__package__}.{spec.name}")
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: the module is loaded. It keeps its own spec, by which its relative imports work."""
        module.__spec__ = self._own_spec
