"""PopTorch's private module of this name, as far as other packages use it: poptorch_geometric, Optimum Graphcore."""

from __future__ import annotations

from collections.abc import Callable

from . import torch_behaviour
from .executor import PoplarExecutor

__all__ = ["PoplarExecutor"]


class _OverwriteContextManager:
    """Knows what libraries exchange in themselves while a forward is captured."""

    @classmethod
    def registerSubsitutionManager(cls, type: Callable[[], torch_behaviour.Substitution]) -> None:
        """Make an object of `type` for each compile, and call its `replace` before and its `restore` after."""
        if type not in torch_behaviour.substitutions:
            torch_behaviour.substitutions.append(type)
