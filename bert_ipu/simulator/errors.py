"""The errors that a PopTorch program can meet: PopTorch's own family, and one for what the simulator does not do."""

from __future__ import annotations


class Error(Exception):
    """A failure inside PopTorch; `type`, `message` and `location` say which, what and where.

    Errors made in PopTorch's Python have the type `poptorch_py_error` and print as `'type': message`.
    """

    def __init__(self, message: str, type: str = "poptorch_py_error", location: str = "") -> None:
        super().__init__(f"'{type}': {message}" + (f"\nError raised in:\n{location}" if location else ""))
        self.type = type
        self.message = message
        self.location = location


class RecoverableError(Error):
    """A failure after which the device can be used again; `recovery_action` says how."""

    def __init__(
        self,
        message: str,
        recovery_action: str,
        type: str = "poplar_recoverable_runtime_error",
        location: str = "",
    ) -> None:
        super().__init__(message, type, location)
        self.recovery_action = recovery_action


class UnrecoverableError(Error):
    """A failure that only a repair of the system ends."""


class SimulatorUnsupported(Error):
    """A part of PopTorch that the simulator does not have, and without which results would differ."""

    def __init__(self, name: str, why: str = "") -> None:
        super().__init__(
            f"{name} is not supported by the simulator{': ' + why if why else '.'}", "simulator_unsupported"
        )
        self.name = name


def poptorch_error(message: str) -> Error:
    """An `Error` of the type that PopTorch's Python raises."""
    return Error(message)


def poptorch_cpp_error(message: str) -> Error:
    """An `Error` of the type that PopTorch's C++ layer raises."""
    return Error(message, "poptorch_cpp_error")
