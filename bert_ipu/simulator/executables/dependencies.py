"""What a forward depended on besides the model and its inputs, seen while it ran: code, and global names.

Python cannot say beforehand what a function will read. So the functions that ran are noted, with their files and
the globals that they name; an executable is taken again only where these are still the same. It is not kept where
the forward did what no comparison can cover: it drew random numbers on the host, read the environment, a file or a
clock, or changed what it is made of.
"""

from __future__ import annotations

import builtins
import dis
import io
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType, ModuleType
from typing import Any

import torch

from .fingerprint import Fingerprint, NoFingerprint, digest_of_file, is_versioned, is_versioned_module

Texts = dict[str, str]

_UNREPEATABLE = frozenset(
    [builtins.open, builtins.input, io.open, os.urandom, os.getpid, os.listdir, os.stat]
    + [time.time, time.time_ns, time.perf_counter, time.monotonic, time.localtime]
)
_ENVIRONMENT = frozenset([os.getenv.__code__, type(os.environ).__getitem__.__code__])


class Observation:
    """The code that runs inside `watching`, and what it does that forbids keeping its outcome."""

    def __init__(self) -> None:
        self.obstacles: list[str] = []
        self._codes: dict[CodeType, dict[str, Any]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note every Python function that is entered, in this thread."""
        outer = sys.getprofile()
        before = _random_states()
        sys.setprofile(self._event)
        try:
            yield
        finally:
            sys.setprofile(outer)
        if _random_states() != before:
            self.obstacles.append("the forward draws random numbers on the host")

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            self._codes.setdefault(code, frame.f_globals)
            if code in _ENVIRONMENT:
                self._note_reader(frame.f_back, "reads the environment")
        elif event == "c_call" and argument in _UNREPEATABLE:
            self._note_reader(frame, f"calls {argument.__name__}()")

    def _note_reader(self, frame: FrameType | None, what: str) -> None:
        """Note an obstacle if the caller is the user's code, be it by one function of Python's (`os.environ.get`)."""
        for _ in range(2):
            if frame is not None and not is_versioned(frame.f_code.co_filename):
                self.obstacles.append(f"the forward {what} ({frame.f_code.co_filename}:{frame.f_lineno})")
                return
            frame = None if frame is None else frame.f_back

    def dependencies(self) -> Texts:
        """The files of the user's code that ran, and the globals it names, as they are now."""
        found: Texts = {}
        named: set[tuple[str, str]] = set()
        for code, names in self._codes.items():
            if is_versioned(code.co_filename) or _is_generated(code, names):
                continue
            where = f"{code.co_name} ({code.co_filename}:{code.co_firstlineno})"
            if not os.path.isfile(code.co_filename):
                self.obstacles.append(f"{where} is in no file, so that a change of it would not be seen")
                continue
            found[f"file {code.co_filename}"] = digest_of_file(code.co_filename)
            if any(instruction.opname == "STORE_GLOBAL" for instruction in dis.get_instructions(code)):
                self.obstacles.append(f"{where} changes a global variable")
            module = sys.modules.get(names.get("__name__", ""))
            if module is None or vars(module) is not names:
                self.obstacles.append(f"the globals of {where} are no module's")
            else:
                named.update(_reached(module, code.co_names))
        for owner, name in sorted(named):
            try:
                found[f"global {owner}.{name}"] = _current(owner, name)
            except NoFingerprint as error:
                self.obstacles.append(str(error))
        return found


def changed(recorded: Mapping[str, str]) -> Texts:
    """Which recorded dependencies are no longer what they were; what each of them is now."""
    found: Texts = {}
    for key, before in recorded.items():
        kind, _, name = key.partition(" ")
        try:
            now = digest_of_file(name) if kind == "file" else _current(*name.rsplit(".", 1))
        except (OSError, KeyError, NoFingerprint) as error:
            now = f"cannot be read: {error}"
        if now != before:
            found[key] = now
    return found


def _is_generated(code: CodeType, names: Mapping[str, Any]) -> bool:
    """Whether Python or torch wrote the code: for a named tuple, a dataclass, or itself."""
    if not code.co_filename.startswith("<"):
        return False
    module = names.get("__name__", "")
    is_special = code.co_name.startswith("__") and code.co_name.endswith("__")
    return is_special or module.startswith("namedtuple_") or is_versioned_module(module)


def _current(module: str, name: str) -> str:
    if module not in sys.modules:
        raise NoFingerprint(f"the module {module} is not imported")
    return Fingerprint().of(vars(sys.modules[module])[name], f"{module}.{name}")


def _reached(module: ModuleType, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Globals that code with these names may read: in its module, and in modules it reaches by name."""
    todo, seen = [module], set()
    while todo:
        owner = todo.pop()
        if owner.__name__ in seen or sys.modules.get(owner.__name__) is not owner:
            continue
        seen.add(owner.__name__)
        for name in names:
            if name not in vars(owner):
                continue
            value = vars(owner)[name]
            if isinstance(value, ModuleType):
                todo.append(value)
            yield owner.__name__, name


def _random_states() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    drawn = None if numpy is None else (numpy.random.get_state()[1].tobytes(), numpy.random.get_state()[2])
    return bytes(torch.get_rng_state().numpy().data), random.getstate(), drawn
