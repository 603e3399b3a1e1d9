"""Stands for librosa, with which FastPitch reads sound; its tests read none."""

from __future__ import annotations

import sys
import types
from typing import Any


class _Absent(types.ModuleType):
    """A module whose functions can be imported and not be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"{self.__name__}.{name} is a stand-in: install librosa to read sound")

        return absent


for _name in ("librosa.filters", "librosa.util"):
    sys.modules[_name] = _Absent(_name)
