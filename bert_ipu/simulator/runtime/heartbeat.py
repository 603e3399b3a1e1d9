"""What an instance says of its own life to the guard that poprun has set beside it.

The guard sees from outside whether a process computes, moves bytes or touches memory. It cannot see that
an instance only waits for the others, nor tell a long computation in memory it has from a loop that goes
nowhere; this does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import CodeType

DESCRIPTOR = "BERT_IPU_HEARTBEAT_FD"
"""Names the pipe to the guard; absent where there is none."""
EVERY_S = 0.5
PLACES = 8
"""A program that was at no other place than these lately goes round in a small circle."""

Place = tuple[tuple[CodeType, int], ...]


class Heartbeat:
    """Says "wait WHAT" and "go" around a wait for the others, and "beat" while the program gets on."""

    def __init__(self) -> None:
        number = os.environ.get(DESCRIPTOR, "")
        self._pipe = int(number) if number else None

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Says for the time of the block that this instance waits."""
        self._say(f"wait {what}")
        try:
            yield
        finally:
            self._say("go")

    def watch(self) -> None:
        """Starts to look, now and then, at where the program is; once per process, where there is a guard."""
        if self._pipe is not None:
            threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()

    def _watch(self) -> None:
        recent: deque[Place] = deque(maxlen=PLACES)
        while self._pipe is not None:
            place = current_place(threading.get_ident())
            if place not in recent:
                self._say("beat")
            recent.append(place)
            time.sleep(EVERY_S)

    def _say(self, line: str) -> None:
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, f"{line}\n".encode())
        except OSError:
            # Whoever listened is gone, and with it the need to tell.
            self._pipe = None


def current_place(apart_from: int) -> Place:
    """The instruction that each thread executes, but the given one."""
    return tuple(
        (frame.f_code, frame.f_lasti)
        for thread, frame in sys._current_frames().items()
        if thread != apart_from
    )
