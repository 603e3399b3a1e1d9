"""Which module and which line of the user's code an operator comes from, and how messages say it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import CodeType, FrameType
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
    """The origin of the operator being dispatched; `modules` names modules by identity."""
    return _origin(traceback.walk_stack(sys._getframe(1)), modules)


def note_origin(error: Exception, modules: Mapping[int, str]) -> None:
    """Add to an error that leaves the forward where it comes from: torch's own messages name no module.

    A note, and none on errors that the user's own code raises: programs compare messages (PopTorch's tests do).
    """
    calls = list(traceback.walk_tb(error.__traceback__))[::-1]
    origin = _origin(calls, modules)
    if not is_foreign(calls[0][0].f_code) or origin.source is None or origin.source in str(error):
        return
    functions = (frame.f_locals["func"] for frame, _ in calls if frame.f_code.co_name == "__torch_function__")
    name = torch.overrides.resolve_name(next(functions, None))  # type: ignore[no-untyped-call]
    error.add_note(f"It is raised{f' by {name}' if name else ''}{origin.place}.")


def _origin(calls: Iterable[tuple[FrameType, int]], modules: Mapping[int, str]) -> Origin:
    """The origin of the innermost of these calls, each a frame and its line; they come from the inside out."""
    module: Optional[str] = None
    source: Optional[str] = None
    in_function = False
    for frame, line in calls:
        code = frame.f_code
        if code is _APPLY_FUNCTION:
            in_function |= module is None
        elif code is _CALL_MODULE and module is None:
            module = modules.get(id(frame.f_locals.get("self")))
        elif source is None and not is_foreign(code):
            source = f"{code.co_filename}:{line}"
        if module is not None and source is not None:
            break
    return Origin(module or "", source, in_function)
