"""Signs of life of a running program, read from /proc: does it compute, read, write or touch memory?

Needs nothing from the program, so that any command can be watched. What only the program can know, that it
waits for the other instances or gets on in silence, it says itself (`runtime/heartbeat.py`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# Below these a process only turns over in its sleep: idle MPI and OpenMP threads wake up now and then.
CPU_TICKS = 5
PAGE_FAULTS = 16
BYTES = 4096


@dataclass(frozen=True)
class Signs:
    """Counters of a process and its descendants, summed."""

    cpu_ticks: int = 0
    page_faults: int = 0
    bytes: int = 0
    busy_disk: bool = False
    """A thread waits for a disk, which shows in no counter."""

    def differs_in_data(self, other: Signs) -> bool:
        """True where bytes were moved or memory was newly touched."""
        return (
            self.busy_disk
            or abs(self.bytes - other.bytes) >= BYTES
            or abs(self.page_faults - other.page_faults) >= PAGE_FAULTS
        )

    def differs(self, other: Signs) -> bool:
        """True where anything was done, computing included."""
        return self.differs_in_data(other) or abs(self.cpu_ticks - other.cpu_ticks) >= CPU_TICKS


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None where the process is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir(PROC) if entry.isdecimal())


def process_tree(root: int) -> dict[int, list[str]]:
    """The process and all its descendants with their /proc/PID/stat."""
    stats = {pid: stat for pid in _pids() if (stat := _stat(pid)) is not None}
    tree: dict[int, list[str]] = {}
    todo = [root]
    while todo:
        pid = todo.pop()
        if pid in stats:
            tree[pid] = stats[pid]
            todo += [child for child, stat in stats.items() if int(stat[1]) == pid]
    return tree


def _moved_bytes(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "io").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines[:2])


def signs_of(root: int) -> Signs:
    """What the process and its descendants have done so far."""
    tree = process_tree(root)
    return Signs(
        cpu_ticks=sum(int(stat[11]) + int(stat[12]) for stat in tree.values()),
        page_faults=sum(int(stat[7]) + int(stat[9]) for stat in tree.values()),
        bytes=sum(_moved_bytes(pid) for pid in tree),
        busy_disk=any(stat[0] == "D" for stat in tree.values()),
    )


def waits_for_file_lock(root: int) -> bool:
    """True where the process waits for a lock on a file.

    PopTorch programs do so while another instance compiles into their common cache.
    """
    try:
        waiting = [line.split() for line in (PROC / "locks").read_text().splitlines() if "->" in line]
    except OSError:
        return False
    # "1: -> FLOCK ADVISORY WRITE 4242 ..."
    return any(fields[5].isdecimal() and int(fields[5]) in process_tree(root) for fields in waiting)


class Pulse:
    """How long a process has shown no sign of life."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._computed = self._moved = signs_of(pid)
        self._computed_at = self._moved_at = time.monotonic()

    def beat(self) -> None:
        """The program itself said that it goes on."""
        self._computed_at = self._moved_at = time.monotonic()

    def feel(self) -> tuple[float, float]:
        """Seconds without any activity, and seconds with no other activity than computing."""
        signs, now = signs_of(self.pid), time.monotonic()
        if signs.differs(self._computed) or waits_for_file_lock(self.pid):
            self._computed, self._computed_at = signs, now
        if signs.differs_in_data(self._moved):
            self._moved, self._moved_at = signs, now
        return now - self._computed_at, now - self._moved_at


def kill_marked(mark: str) -> None:
    """Kills every process of this machine whose environment holds `mark` ("NAME=value").

    Process groups and parents do not reach everything: a program may start its own sessions, and children of
    a killed process are adopted.
    """
    for _ in range(3):
        found = [pid for pid in _pids() if _is_marked(pid, mark.encode())]
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not found:
            return
        time.sleep(0.02)


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
