"""Keeps compiled programs in the folder of `Options.enableExecutableCaching`, and takes them from there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from ..errors import poptorch_error
from ..executables.cache import ExecutableCache, Found, Key
from ..executables.container import UnusableFile
from ..executables.dependencies import Observation
from ..executables.fingerprint import NoFingerprint
from ..executables.serialization import NotSerializable
from ..graph.request import CompileRequest, parameters_and_buffers
from ._logging import logger
from .captured_program import CapturedProgram, read_captured, write_captured
from .compile_request import Subject
from .executable_key import executable_key, forward_changes
from .options import Options

Watching = Callable[[], AbstractContextManager[None]]
Compile = Callable[[Watching], CapturedProgram]
"""Compiles, with the user's code inside the given context."""


def cache_folder(options: Options) -> Path | None:
    """The folder that the options name; None where caching is off."""
    popart = options._Popart.options
    folder = popart.get("cachePath", "")
    return Path(folder) if folder and popart.get("enableEngineCaching") else None


def cached_program(
    folder: Path, subject: Subject, request: CompileRequest, compile_: Compile
) -> CapturedProgram:
    """The program from the cache; else compiled, and kept there unless an obstacle forbids it."""
    _make_folder(folder)
    try:
        key = executable_key(subject, request)
    except NoFingerprint as obstacle:
        logger.warning("Executable cache: not used, as no key can be made: %s", obstacle)
        return compile_(nullcontext)
    entry = _Entry(ExecutableCache(folder), subject, request, key)
    distributed = subject.options.Distributed
    if distributed.numProcesses > 1:
        with _in_turn(entry.lock_file, distributed.processId) as first:
            if first:
                return entry.found() or entry.compiled(compile_)
    return entry.found() or entry.compiled(compile_)


class _Entry:
    """A model's place in a cache, taken or to be taken."""

    def __init__(self, cache: ExecutableCache, subject: Subject, request: CompileRequest, key: Key) -> None:
        self._cache, self._subject, self._request, self._key = cache, subject, request, key
        model = subject.model
        self._name = getattr(model, "__qualname__", type(model).__qualname__)
        self._name += " (training)" if subject.training else " (inference)"

    @property
    def lock_file(self) -> Path:
        """Locked while one of several processes compiles this model."""
        return self._cache.lock_file(self._name, self._key)

    def found(self) -> CapturedProgram | None:
        """The program, where the cache has it."""
        found = self._cache.find(self._name, self._key)
        if found.contents is None:
            self._say(found)
            return None
        named = parameters_and_buffers(self._request.module)
        try:
            captured = read_captured(found.contents, named, self._subject.optimizer_description)
        except UnusableFile as error:
            logger.warning("Executable cache: miss: %s", error)
            return None
        self._say(found)
        return captured

    @staticmethod
    def _say(found: Found) -> None:
        (logger.warning if found.near else logger.info)("Executable cache: %s", found.message)

    def compiled(self, compile_: Compile) -> CapturedProgram:
        """Compile, and enter the program into the cache."""
        observation = Observation()
        captured = compile_(observation.watching)
        try:
            dependencies = observation.dependencies()
            changes = forward_changes(self._key, executable_key(self._subject, self._request))
            obstacles = [*observation.obstacles, *(f"the forward changes {item}" for item in changes)]
            contents = write_captured(captured)
        except (NoFingerprint, NotSerializable) as obstacle:
            obstacles = [str(obstacle)]
        if not obstacles:
            try:
                path = self._cache.store(self._name, self._key, dependencies, contents)
                logger.info("Executable cache: kept as %s", path)
            except OSError as error:
                obstacles = [f"{self._cache.folder} cannot be written to ({error.strerror})"]
        if obstacles:
            logger.warning("Executable cache: this executable is not kept: %s", "; ".join(obstacles[:3]))
        return captured


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise poptorch_error(
            f"The executable cache {folder} cannot be made ({error.strerror}): give enableExecutableCaching() or "
            "POPTORCH_CACHE_DIR another folder."
        ) from error
    if not os.access(folder, os.W_OK):
        raise poptorch_error(f"The executable cache {folder} is not writable.")


@contextmanager
def _in_turn(path: Path, process: int) -> Iterator[bool]:
    """Whether this process is the first to come: it holds the lock inside, and the others wait until it is done."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            first = True
        except BlockingIOError:
            fcntl.flock(file, fcntl.LOCK_SH)
            first = False
        logger.debug("Executable cache file locked for process %s", process)
        try:
            yield first
        finally:
            if first:
                path.unlink(missing_ok=True)
            logger.debug("Process %s has released the cache lock", process)
