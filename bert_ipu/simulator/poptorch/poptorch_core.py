"""What programs and tests reach of PopTorch's C++ extension: the errors and the check of options."""

from __future__ import annotations

import enum

from ..errors import Error, RecoverableError, UnrecoverableError
from .recording import is_recording
from .session_options import validate as _validateOptions

__all__ = [
    "Error",
    "RecoverableError",
    "TestErrorType",
    "UnrecoverableError",
    "_throwTestError",
    "_validateOptions",
    "isCompilingWithDispatcher",
]


def isCompilingWithDispatcher() -> bool:
    """Whether a program is being captured."""
    return is_recording()


class TestErrorType(enum.Enum):
    """An error that the parts of PopTorch can raise, as its type and message."""

    Poptorch = ("poptorch_cpp_error", "This is a PopTorch error")
    Popart = ("popart_exception", "This is an error of PopART")
    PopartInternal = ("popart_internal_exception", "This is an internal error of PopART")
    Poplibs = ("poplibs_exception", "This is an error of Poplibs")
    PoplarUnrecoverable = ("poplar_unrecoverable_runtime_error", "Nothing can be done")
    PoplarUnknown = ("poplar_unknown_runtime_error", "Nobody knows what happened")
    PoplarRecoverableFullReset = ("poplar_recoverable_runtime_error", "The machine must start anew")
    PoplarLinkError = ("poplar_link_error", "Codelets do not link. Output: Library -lfoo not found")


def _throwTestError(kind: TestErrorType) -> None:
    """Raise an error of a kind, for programs to test what they do about it."""
    name, message = kind.value
    location = " [0] throwTestError::bottomLevel\n [1] throwTestError::topLevel"
    if kind is TestErrorType.PoplarRecoverableFullReset:
        raise RecoverableError(message, "FULL_RESET", name, location)
    family = UnrecoverableError if kind is TestErrorType.PoplarUnrecoverable else Error
    raise family(message, name, location)
