"""Keeps compiled programs in the folder of `Options.enableExecutableCaching`, and takes them from there."""

from __future__ import annotations

import fcntl
import hashlib
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
    with _only_one_compiles(folder, subject) as first:
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
        if obstacles:
            logger.warning("Executable cache: this executable is not kept: %s", "; ".join(obstacles[:3]))
        else:
            path = self._cache.store(self._name, self._key, dependencies, contents)
            logger.info("Executable cache: kept as %s", path)
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
def _only_one_compiles(folder: Path, subject: Subject) -> Iterator[bool]:
    """Of the processes of a distributed job, the first to come here compiles, and the others wait for it.

    Each adds a byte to the lock's file, so that the first knows itself, and the last removes the file.
    """
    distributed = subject.options.Distributed
    if distributed.numProcesses == 1:
        yield False
        return
    path = folder / f"{hashlib.md5(repr(subject.model).encode()).hexdigest()}.lock"
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("0")
        file.flush()
        position, count = file.tell(), distributed.numProcesses
        logger.debug(
            "Executable cache file locked: process %s is number %d of %d",
            distributed.processId,
            position,
            count,
        )
        try:
            yield position == 1
        finally:
            logger.debug("Process %s released the cache lock", distributed.processId)
            if position == count:
                path.unlink(missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_UN)
