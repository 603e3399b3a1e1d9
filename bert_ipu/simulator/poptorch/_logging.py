"""PopTorch's loggers, levels and line format."""

from __future__ import annotations

import datetime
import logging
import os
import sys

logger = logging.getLogger("poptorch::python")
"""What PopTorch's Python says."""
compiler_logger = logging.getLogger("poptorch::compiler")
"""What PopTorch's C++ layer says."""
popart_logger = logging.getLogger("popart")
"""What PopART says; its children are PopART's modules (`popart.ir`, `popart.devicex`, ...)."""

TRACE = logging.DEBUG - 5
"""Below DEBUG, as in PopTorch's C++ layer."""

# Level name -> (PopTorch's number, level of the Python logger, level of the C++ loggers).
_LEVELS: dict[str, tuple[int, int, int]] = {
    "TRACE": (0, logging.DEBUG, TRACE),
    "TRACE_ALL": (0, logging.DEBUG, TRACE),
    "DEBUG": (1, logging.DEBUG, logging.DEBUG),
    "DEBUG_IR": (1, logging.DEBUG, logging.DEBUG),
    "INFO": (2, logging.INFO, logging.INFO),
    "WARN": (3, logging.WARNING, logging.WARNING),
    "ERR": (4, logging.ERROR, logging.ERROR),
    "OFF": (6, logging.CRITICAL, logging.CRITICAL),
}
_INTERNAL_LEVELS = ("TRACE_ALL", "DEBUG_IR")

_LETTERS = {TRACE: "T", logging.DEBUG: "D", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E"}


def setPopartLogLevel(level: str) -> None:
    """Set how much PopART says; `level` is one of the names that `setLogLevel` takes."""
    if not isinstance(level, str) or level not in _LEVELS:
        raise ValueError(f"Level must be one of {', '.join(_LEVELS)}, not {level!r}")
    popart_logger.setLevel(_LEVELS[level][2])


def setLogLevel(level: str | int) -> None:
    """Set how much PopTorch says: TRACE, DEBUG, INFO, WARN, ERR, OFF, or its number for one of them."""
    if isinstance(level, int):
        names = [name for name, (number, _, _) in _LEVELS.items() if number == level]
        if not names:
            raise ValueError(f"Invalid log level integer: {level}")
        level = names[0]
    if level not in _LEVELS:
        public = sorted(name for name in _LEVELS if name not in _INTERNAL_LEVELS)
        raise ValueError(
            f"Unknown log level: {level}. Valid values are {', '.join(public[:-1])} and {public[-1]}"
        )
    logger.setLevel(_LEVELS[level][1])
    compiler_logger.setLevel(_LEVELS[level][2])


class _PoptorchFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        created = datetime.datetime.fromtimestamp(record.created)
        level = "trace" if record.levelno == TRACE else record.levelname.lower()
        stamp = f"{created:%H:%M:%S}.{int(record.msecs):03d}"
        return f"[{stamp}] [{record.name}] [{level}] {record.getMessage()}"


class _PopartFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        created = datetime.datetime.fromtimestamp(record.created)
        module = record.name.replace(".", ":") if "." in record.name else "popart:popart"
        letter = _LETTERS.get(record.levelno, "I")
        process = f"{os.getpid()}.{os.getpid()}"
        return f"{created:%Y-%m-%dT%H:%M:%S.%f}Z {module} {process} {letter}: {record.getMessage()}"


class _StderrHandler(logging.Handler):
    """Writes to whatever `sys.stderr` is at the time, so a redirection after the import is followed."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def configure() -> None:
    """Give the loggers their handlers and the levels of POPTORCH_LOG_LEVEL and POPART_LOG_LEVEL, once."""
    if logger.handlers:
        return
    formatters = {
        logger: _PoptorchFormatter(),
        compiler_logger: _PoptorchFormatter(),
        popart_logger: _PopartFormatter(),
    }
    for each, formatter in formatters.items():
        handler = _StderrHandler()
        handler.setFormatter(formatter)
        each.addHandler(handler)
    # On the device these speak from C++: handlers that the program gives Python's root logger do not hear them.
    compiler_logger.propagate = popart_logger.propagate = False
    setLogLevel(os.environ.get("POPTORCH_LOG_LEVEL", "WARN"))
    setPopartLogLevel(os.environ.get("POPART_LOG_LEVEL", "WARN"))
