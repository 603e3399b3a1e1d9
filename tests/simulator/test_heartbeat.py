"""What an instance says of its life: that it waits, that it gets on, nothing when it goes in circles."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bert_ipu.simulator.runtime import heartbeat
from bert_ipu.simulator.runtime.heartbeat import Heartbeat, current_place


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The guard's end of the pipe."""
    reading, writing = os.pipe()
    monkeypatch.setenv(heartbeat.DESCRIPTOR, str(writing))
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.01)
    os.set_blocking(reading, False)
    yield reading
    os.close(reading)
    os.close(writing)


def said(pipe: int) -> list[str]:
    """What has been said since the last time."""
    try:
        return os.read(pipe, 65536).decode().split("\n")[:-1]
    except BlockingIOError:
        return []


def test_without_a_guard_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(heartbeat.DESCRIPTOR, raising=False)
    before = threading.active_count()
    Heartbeat().watch()
    with Heartbeat().waiting("anything"):
        pass
    assert threading.active_count() == before


def test_a_wait_is_framed(pipe: int) -> None:
    with pytest.raises(KeyError), Heartbeat().waiting("all_reduce"):
        assert said(pipe) == ["wait all_reduce"]
        raise KeyError
    assert said(pipe) == ["go"]


def straight_line(seconds: float) -> None:
    """Never at one place for long, as the generated code of a step."""
    lines = "\n".join(f"x = sum(range({n % 500 + 2000}))" for n in range(5000))
    code = compile(lines, "generated", "exec")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        exec(code)


def circle(seconds: float) -> None:
    """At few places only."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def asleep(seconds: float) -> None:
    """At one place."""
    time.sleep(seconds)


@pytest.mark.parametrize(("deed", "gets_on"), [(straight_line, True), (circle, False), (asleep, False)])
def test_getting_on_is_told_from_standing_still(
    pipe: int, deed: Callable[[float], None], gets_on: bool
) -> None:
    watched = Heartbeat()
    watched.watch()
    deed(0.3)
    said(pipe)
    deed(0.5)
    beats = said(pipe)
    watched._pipe = None
    assert (len(beats) >= 5) == gets_on, beats


def test_place_leaves_the_watcher_out() -> None:
    place = current_place(threading.get_ident())
    assert all(code is not current_place.__code__ for code, _ in place)
