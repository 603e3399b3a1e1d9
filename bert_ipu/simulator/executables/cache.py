"""A folder of compiled programs: found again by a key, and where none fits, the reason.

A key is made of named parts (the model's classes, its parameters, the inputs, the settings, ...), each a table
of texts, so that the nearest entry can be held against it, text by text.  What the forward reads beyond that
is recorded with the entry and looked at again (`dependencies.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import container
from .container import Contents, UnusableFile
from .dependencies import Texts, changed

Key = dict[str, Texts]

SUFFIX = ".executable"
_COMPARED = 50
"""Entries that a miss is compared with, the newest first, so that a full folder does not slow it down."""
_SHOWN = 4
"""Differences that a message names."""


@dataclass(frozen=True)
class Found:
    """The outcome of a look-up: contents, or why there are none."""

    contents: Contents | None
    message: str
    near: bool = False
    """There is an entry of the same model that does not fit."""


class ExecutableCache:
    """The executables in a folder, which processes may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str, key: Key) -> Found:
        """The entry of a model with this key whose dependencies are unchanged, or the reason for none."""
        reasons: list[str] = []
        for path in self._newest(f"{_file_stem(name)}-{_digest(key)}-*{SUFFIX}"):
            try:
                headers = container.read_headers(path)
                differences = changed(json.loads(headers["dependencies"]))
                if json.loads(headers["key"]) == key and not differences:
                    return Found(container.read(path), f"hit: {path}")
                reasons += [f"{what} has changed" for what in differences]
            except (UnusableFile, OSError, ValueError, KeyError) as error:
                reasons.append(f"{path} cannot be used, {error}")
        if reasons:
            return Found(None, f"miss: {_listed(reasons)}", near=True)
        return self._nearest(name, key)

    def store(self, name: str, key: Key, dependencies: Texts, contents: Contents) -> Path:
        """Enter a program; returns where."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"{_file_stem(name)}-{_digest(key)}-{_digest(dependencies)[:8]}"
        contents.headers.update(name=name, key=json.dumps(key), dependencies=json.dumps(dependencies))
        path = self.folder / f"{stem}{SUFFIX}"
        container.write(path, contents)
        return path

    def lock_file(self, name: str, key: Key) -> Path:
        """A file for the processes that compile this model to agree by."""
        return self.folder / f"{_file_stem(name)}-{_digest(key)}.lock"

    def _newest(self, pattern: str) -> list[Path]:
        found = []
        for path in self.folder.glob(pattern):
            try:
                found.append((path.stat().st_mtime_ns, path))
            except OSError:  # removed by another process
                continue
        return [path for _, path in sorted(found, reverse=True)]

    def _nearest(self, name: str, key: Key) -> Found:
        """Which part of the key differs from that of the entry that has most in common with it."""
        best: list[str] | None = None
        for path in self._newest(f"{_file_stem(name)}-*{SUFFIX}")[:_COMPARED]:
            try:
                headers = container.read_headers(path)
                differences = describe_differences(json.loads(headers["key"]), key)
            except (UnusableFile, ValueError, KeyError):
                continue
            if headers.get("name") == name and (best is None or len(differences) < len(best)):
                best = differences
        if best is None:
            return Found(None, f"miss: {self.folder} holds no executable of {name}")
        return Found(None, f"miss: the nearest executable of {name} differs in {_listed(best)}", near=True)


def describe_differences(before: Mapping[str, Texts], now: Mapping[str, Texts]) -> list[str]:
    """One line for each text that differs between two keys."""
    lines = []
    for part in [*now, *(part for part in before if part not in now)]:
        old, new = before.get(part, {}), now.get(part, {})
        for item in [*new, *(item for item in old if item not in new)]:
            if old.get(item) != new.get(item):
                lines.append(f"{part}: {item} {_difference(old.get(item), new.get(item))}")
    return lines


def _difference(old: str | None, new: str | None) -> str:
    if old is None:
        return "is new"
    if new is None:
        return "is gone"
    if old.startswith("sha256:") or new.startswith("sha256:"):
        return "has changed"
    return f"was {old}, is {new}"


def _listed(reasons: list[str]) -> str:
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return "; ".join(reasons[:_SHOWN]) + more


def _file_stem(name: str) -> str:
    return re.sub(r"[^\w.]+", "_", name)[:60]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
