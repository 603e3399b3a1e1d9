"""What programs and tests reach of PopTorch's C++ extension: the errors and the check of options."""

from __future__ import annotations

from ..errors import Error, RecoverableError, UnrecoverableError
from .recording import is_recording
from .session_options import validate as _validateOptions

__all__ = ["Error", "RecoverableError", "UnrecoverableError", "_validateOptions", "isCompilingWithDispatcher"]


def isCompilingWithDispatcher() -> bool:
    """Whether a program is being captured."""
    return is_recording()
