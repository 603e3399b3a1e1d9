"""The verdict on a job, from what the guards say; no processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_ipu.simulator.poprun.control import Instance, Verdict, judge
from bert_ipu.simulator.poprun.guard import last_error
from bert_ipu.simulator.poprun.launch import Relay, failure_message
from bert_ipu.simulator.poprun.plan import Plan
from bert_ipu.simulator.poprun.vital import Signs, signs_of

NOW = 1000.0
TIMEOUT_S = 20.0


def running(index: int, **said: float | str) -> Instance:
    """An instance that was heard just now."""
    instance = Instance(index, host="node", heard_at=NOW)
    for name, value in said.items():
        setattr(instance, name, value)
    return instance


def ended(index: int, status: int | None, seconds_ago: float = 5.0, error: str = "") -> Instance:
    """An instance that is over."""
    return running(index, ended_at=NOW - seconds_ago, status=status, error=error)  # type: ignore[arg-type]


def verdict(*instances: Instance, timeout_s: float = TIMEOUT_S) -> Verdict | None:
    """What poprun makes of them."""
    return judge(instances, timeout_s, NOW)


def test_running_instances_go_on() -> None:
    assert verdict(running(0), running(1)) is None
    assert verdict(running(0), ended(1, 0)) is None
    assert verdict(Instance(0), running(1)) is None


def test_all_done_is_success() -> None:
    assert verdict(ended(0, 0), ended(1, 0)) == Verdict(0)


@pytest.mark.parametrize(
    ("status", "error", "code", "reason"),
    [
        (3, "ValueError: x", 3, "ended with status 3: ValueError: x"),
        (-9, "", 137, "was killed by SIGKILL"),
        (None, "", 1, "was lost: its guard or its host is gone"),
    ],
)
def test_failures(status: int | None, error: str, code: int, reason: str) -> None:
    assert verdict(running(0), ended(1, status, error=error)) == Verdict(code, 1, reason)


def test_first_failure_counts_and_a_later_message_of_an_earlier_one_is_awaited() -> None:
    assert verdict(ended(0, 1, seconds_ago=2), ended(1, 2, seconds_ago=3)) == Verdict(
        2, 1, "ended with status 2"
    )
    assert verdict(running(0), ended(1, 2, seconds_ago=0.1)) is None


def test_common_failure_is_told_by_the_first_instance() -> None:
    assert verdict(ended(0, 2, 1.0, "bad config"), ended(1, 2, 1.1, "bad config")) == Verdict(
        2, 0, "ended with status 2: bad config"
    )


def test_idle_instance_hangs_whatever_the_others_do() -> None:
    found = verdict(running(0), running(1, idle_s=21.0))
    assert found is not None and (found.status, found.instance, found.hung) == (124, 1, True)
    assert verdict(running(0), running(1, idle_s=19.0)) is None


def test_idle_because_it_waits_for_others_is_no_hang() -> None:
    waiting = running(0, idle_s=100.0, waits_for="all_reduce", waits_since=NOW - 100)
    assert verdict(waiting, running(1)) is None


def test_busy_loop_hangs_only_when_others_wait_and_nothing_else_moves() -> None:
    waiting = running(0, waits_for="all_reduce", waits_since=NOW - 25)
    found = verdict(waiting, running(1, still_s=25.0))
    assert found is not None and (found.instance, found.hung) == (1, True)
    assert "0 wait for it in all_reduce" in found.reason
    assert verdict(running(0), running(1, still_s=25.0)) is None
    assert verdict(waiting, running(1, still_s=5.0)) is None


def test_everyone_waiting_is_a_hang() -> None:
    waits = [running(i, waits_for=w, waits_since=NOW - 25) for i, w in enumerate(("barrier", "all_reduce"))]
    found = verdict(*waits)
    assert found is not None and "0 in barrier, 1 in all_reduce" in found.reason
    left = verdict(waits[0], ended(1, 0))
    assert left is not None and (left.instance, left.status) == (1, 124)


def test_silent_guard_is_a_hang() -> None:
    found = verdict(running(0), running(1, heard_at=NOW - 11))
    assert found is not None and found.instance == 1 and "nothing was heard" in found.reason


def test_timeout_of_zero_finds_no_hang() -> None:
    assert verdict(running(0, idle_s=1e6), running(1), timeout_s=0) is None


def test_message_names_instance_host_replicas_and_error() -> None:
    instances = [running(0), running(1)]
    message = failure_message(
        Verdict(1, 1, "ended with status 1: ValueError: x"), Plan(8, 1, 2), instances, ""
    )
    assert message == (
        "poprun: instance 1 of 2 (node, replicas 4-7) ended with status 1: ValueError: x. "
        "The other instances were ended."
    )


def test_last_error_of_a_traceback_is_its_exception() -> None:
    lines = [
        "step 1",
        "Traceback (most recent call last):",
        '  File "a.py", line 1, in <module>',
        "KeyError: 'a'",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "Traceback (most recent call last):",
        '  File "a.py", line 3, in <module>',
        '    raise ValueError("one\\ntwo")',
        "package.errors.ConfigError: one",
        "two",
    ]
    assert last_error(lines) == "package.errors.ConfigError: one\ntwo"


def test_last_error_otherwise_is_the_last_line() -> None:
    assert last_error(["a", "config.yaml: unknown key", "", " "]) == "config.yaml: unknown key"
    assert last_error([]) == ""


def test_last_error_of_a_hang_is_its_place() -> None:
    """The oracle is faulthandler itself."""
    source = """
import faulthandler, os, threading, time
faulthandler.enable()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
def here():
    os.abort()
here()
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert last_error(done.stderr.splitlines()) == 'it was at File "<string>", line 6 in here'


MPIRUN_SAYS = "-" * 74 + "\nprterun has exited due to process rank 1\nimproperly.\n" + "-" * 74 + "\n"


@pytest.mark.parametrize("chunk", [1, 7, 100, 10_000])
def test_relay_keeps_back_what_mpirun_says_and_nothing_else(chunk: int) -> None:
    text = ("progress 10%\rprogress 20%\n-- dashes --\n---\n" + MPIRUN_SAYS + "after\n---- end").encode()
    with Path(os.devnull).open("rb") as nothing:
        relay = Relay(nothing)
        relay.finish()
        passed = b"".join(relay.feed(text[i : i + chunk]) for i in range(0, len(text), chunk))
    assert passed + relay._held == text.replace(MPIRUN_SAYS.encode(), b"")
    assert relay.said == ["prterun has exited due to process rank 1\nimproperly."]


def test_signs_of_life_tell_work_from_sleep() -> None:
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1
    )
    spinner = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=-1)
    writer = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: open('/dev/null', 'w').write('x' * 9999)"],
        stdout=-1,
    )
    programs = [sleeper, spinner, writer]
    try:
        for program in programs:
            assert program.stdout is not None
            program.stdout.readline()
        before = [signs_of(program.pid) for program in programs]
        time.sleep(0.6)
        after = [signs_of(program.pid) for program in programs]
    finally:
        for program in programs:
            program.kill()
            program.communicate()
    assert [a.differs(b) for a, b in zip(after, before)] == [False, True, True]
    assert [a.differs_in_data(b) for a, b in zip(after, before)] == [False, False, True]


def test_signs_of_a_process_that_is_gone() -> None:
    assert signs_of(2**22 + 1) == Signs()
