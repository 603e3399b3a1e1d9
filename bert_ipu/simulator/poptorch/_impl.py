"""Names of PopTorch's own that programs use all the same."""

from __future__ import annotations

from ..errors import Error
from .recording import is_recording
from .wrapping import isWrapped, rewrapModelIfNecessary, unwrapModelIfNecessary

__all__ = [
    "createPoptorchError",
    "isDispatchTracing",
    "isRunningOnIpu",
    "isWrapped",
    "rewrapModelIfNecessary",
    "unwrapModelIfNecessary",
]


def createPoptorchError(msg: str) -> Error:
    """An error as PopTorch's Python raises it."""
    return Error(msg)


def isRunningOnIpu() -> bool:
    """True inside the forward of a model that is being compiled, False in ordinary execution."""
    return is_recording()


def isDispatchTracing() -> bool:
    """The same as `isRunningOnIpu`: a program is captured by dispatching its operators."""
    return is_recording()
