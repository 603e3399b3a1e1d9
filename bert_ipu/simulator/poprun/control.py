"""poprun's side of the talk with the guards, and the verdict on the job.

Messages are lines of JSON over TCP. A guard says "hello", "alive" twice a second and "end"; poprun says
"start", "stop" and "leave".
"""

from __future__ import annotations

import contextlib
import hmac
import json
import selectors
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GRACE_S = 0.4
"""After a failure, how long to wait for one that happened before it and is told later."""
SILENCE_S = 10.0
"""A guard that says nothing for so long is as good as dead (it speaks twice a second)."""


@dataclass
class Instance:
    """What poprun knows of one instance; times are of time.monotonic()."""

    index: int
    host: str = ""
    heard_at: float | None = None
    """When its guard spoke last; None before the first time."""
    program: int = 0
    """Its process on its host."""
    idle_s: float = 0.0
    still_s: float = 0.0
    waits_for: str = ""
    waits_since: float = 0.0
    ended_at: float | None = None
    status: int | None = None
    """Exit status; negative for a signal. None while it runs, or where it was lost."""
    error: str = ""

    @property
    def runs(self) -> bool:
        """True from hello to the end."""
        return self.heard_at is not None and self.ended_at is None

    def hear(self, message: Mapping[str, Any], now: float) -> None:
        """Takes in one message of the guard."""
        self.heard_at = now
        if message["kind"] == "alive":
            self.program, self.idle_s, self.still_s = message["pid"], message["idle_s"], message["still_s"]
            if message["waits_for"] != self.waits_for:
                self.waits_for, self.waits_since = message["waits_for"], now
        elif message["kind"] == "end" and self.ended_at is None:
            self.ended_at, self.status, self.error = now, message["status"], message["error"]


@dataclass(frozen=True)
class Verdict:
    """How the job ended."""

    status: int
    instance: int | None = None
    """The instance at fault."""
    reason: str = ""
    hung: bool = False
    """It runs still, and can say where."""


def _how_it_ended(instance: Instance) -> Verdict:
    if instance.status is None:
        return Verdict(1, instance.index, "was lost: its guard or its host is gone")
    detail = f": {instance.error}" if instance.error else ""
    if instance.status < 0:
        name = signal.Signals(-instance.status).name
        return Verdict(128 - instance.status, instance.index, f"was killed by {name}{detail}")
    return Verdict(instance.status, instance.index, f"ended with status {instance.status}{detail}")


def judge(instances: Sequence[Instance], heartbeat_s: float, now: float) -> Verdict | None:
    """The verdict on a job, or None while it should go on. A `heartbeat_s` of 0 never finds a hang."""
    failed = [i for i in instances if i.ended_at is not None and i.status != 0]
    if failed:
        first = min(failed, key=lambda i: i.ended_at or now)
        if now - (first.ended_at or now) < GRACE_S:
            return None
        # Instances that fail for one reason do so in any order; then the first of them speaks.
        return _how_it_ended(next(i for i in failed if (i.status, i.error) == (first.status, first.error)))
    if all(i.ended_at is not None for i in instances):
        return Verdict(0)
    silent = [i for i in instances if i.runs and i.heard_at is not None and now - i.heard_at > SILENCE_S]
    if silent:
        return Verdict(124, silent[0].index, f"hangs: nothing was heard of its guard for {SILENCE_S:g} s")
    return _hang(instances, heartbeat_s, now) if heartbeat_s else None


def _hang(instances: Sequence[Instance], heartbeat_s: float, now: float) -> Verdict | None:
    waiting = [i for i in instances if i.runs and i.waits_for]
    active = [i for i in instances if i.runs and not i.waits_for]
    overdue = [i for i in waiting if now - i.waits_since > heartbeat_s]
    for instance in active:
        if instance.idle_s > heartbeat_s:
            return Verdict(
                124, instance.index, f"hangs: no sign of life for {instance.idle_s:.0f} s", hung=True
            )
        if overdue and instance.still_s > heartbeat_s:
            others = ", ".join(str(i.index) for i in overdue)
            reason = f"hangs: it goes round in a circle for {instance.still_s:.0f} s, while "
            return Verdict(
                124, instance.index, f"{reason}{others} wait for it in {overdue[0].waits_for}", hung=True
            )
    if overdue and not active:
        return _all_wait(instances, overdue)
    return None


def _all_wait(instances: Sequence[Instance], overdue: Sequence[Instance]) -> Verdict:
    """Every instance that still runs waits for the others."""
    waiting = ", ".join(f"{i.index} in {i.waits_for}" for i in instances if i.runs)
    gone = [i for i in instances if i.ended_at is not None]
    if gone:
        return Verdict(124, gone[0].index, f"ended with status 0 while others wait for it: {waiting}")
    reason = f"hangs: it waits in {overdue[0].waits_for} for others that never come ({waiting})"
    return Verdict(124, overdue[0].index, reason, hung=True)


@dataclass
class _Peer:
    """One connection; it belongs to an instance once it has said hello."""

    connection: socket.socket
    unread: bytes = b""
    instance: Instance | None = None


@dataclass
class Control:
    """Listens to the guards of a job."""

    orders: Sequence[Mapping[str, Any]]
    """The order to start of each instance."""
    token: str
    local_only: bool = True
    instances: list[Instance] = field(init=False)

    def __post_init__(self) -> None:
        self.instances = [Instance(i) for i in range(len(self.orders))]
        self._server = socket.create_server(
            ("127.0.0.1" if self.local_only else "", 0), backlog=len(self.orders) + 8
        )
        self._peers = selectors.DefaultSelector()
        self._peers.register(self._server, selectors.EVENT_READ)

    @property
    def port(self) -> int:
        """Where the guards connect to."""
        return int(self._server.getsockname()[1])

    def serve(self, timeout_s: float) -> None:
        """Takes in what the guards say within `timeout_s`."""
        for key, _ in self._peers.select(timeout_s):
            if key.fileobj is self._server:
                connection, _ = self._server.accept()
                self._peers.register(connection, selectors.EVENT_READ, _Peer(connection))
            else:
                self._read(key.data)

    def _read(self, peer: _Peer) -> None:
        try:
            chunk = peer.connection.recv(65536)
        except OSError:
            chunk = b""
        *lines, peer.unread = (peer.unread + chunk).split(b"\n")
        for line in lines:
            if not self._take(peer, line):
                chunk = b""
        if not chunk:
            self._drop(peer)

    def _take(self, peer: _Peer, line: bytes) -> bool:
        """True where the message was one of a guard of this job."""
        try:
            message = json.loads(line)
            if peer.instance is None:
                if message["kind"] != "hello" or not hmac.compare_digest(message["token"], self.token):
                    return False
                peer.instance = self.instances[message["instance"]]
                peer.instance.host = message["host"]
                self._send(peer, self.orders[peer.instance.index])
            peer.instance.hear(message, time.monotonic())
        except (ValueError, KeyError, IndexError, TypeError):
            # Anyone may connect to a port; what does not speak the language is shown out.
            return False
        return True

    def _drop(self, peer: _Peer) -> None:
        self._peers.unregister(peer.connection)
        peer.connection.close()
        if peer.instance is not None and peer.instance.ended_at is None:
            peer.instance.ended_at = time.monotonic()

    def _send(self, peer: _Peer, order: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            peer.connection.sendall((json.dumps(order) + "\n").encode())

    def _guards(self) -> list[_Peer]:
        return [k.data for k in list(self._peers.get_map().values()) if k.data is not None]

    def stop(self, instance: int | None = None, show_where: bool = False, within_s: float = 4.0) -> None:
        """Orders one instance, or all, to end, and waits for it."""
        for peer in self._guards():
            if peer.instance is not None and instance in (None, peer.instance.index):
                self._send(peer, {"kind": "stop", "show_where": show_where})
        until = time.monotonic() + within_s
        while time.monotonic() < until and any(i.runs for i in self.instances if instance in (None, i.index)):
            self.serve(0.05)

    def close(self) -> None:
        """Lets the guards go."""
        for peer in self._guards():
            self._send(peer, {"kind": "leave"})
            peer.connection.close()
        self._peers.close()
        self._server.close()
