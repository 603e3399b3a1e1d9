"""Which module and which line of the user's code an operator comes from, and how messages say it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import NamedTuple, Optional

import torch
from torch._ops import OpOverload

_FOREIGN = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
_CALL_MODULE = torch.nn.Module._call_impl.__code__
_APPLY_FUNCTION = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


def is_foreign(code: CodeType) -> bool:
    """Whether code is not the user's but torch's or the simulator's."""
    return code.co_filename.startswith(_FOREIGN)


class Origin(NamedTuple):
    """The user's place an operator was called from."""

    module: str
    """Dotted path of the innermost module; empty for the root."""
    source: Optional[str]
    """`file:line` of the innermost frame that is neither torch's nor the simulator's."""
    in_function: bool
    """Inside the forward of a `torch.autograd.Function`, which runs with gradients off."""

    @property
    def place(self) -> str:
        """What messages append to a name: " in module 'encoder' (model.py:12)", as far as it is known."""
        module = f" in module '{self.module}'" if self.module else ""
        return f"{module} ({self.source})" if self.source else module


def describe(func: object, origin: Origin) -> str:
    """An operator and where it was called, as messages have them."""
    name = func._schema.name if isinstance(func, OpOverload) else getattr(func, "name", "An operator")
    return f"{name}{origin.place}"


def locate(modules: Mapping[int, str]) -> Origin:
    """The origin of the operator being dispatched, by a walk up Python's stack; `modules` names modules by identity."""
    source: Optional[str] = None
    in_function = False
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is _APPLY_FUNCTION:
            in_function = True
        elif code is _CALL_MODULE:
            module = modules.get(id(frame.f_locals.get("self")))
            if module is not None:
                return Origin(module, source or _first_users_line(frame.f_back), in_function)
        elif source is None and not is_foreign(code):
            source = f"{code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return Origin("", source, in_function)


def _first_users_line(frame: object) -> Optional[str]:
    while frame is not None:
        code = frame.f_code  # type: ignore[attr-defined]
        if not is_foreign(code):
            return f"{code.co_filename}:{frame.f_lineno}"  # type: ignore[attr-defined]
        frame = frame.f_back  # type: ignore[attr-defined]
    return None
