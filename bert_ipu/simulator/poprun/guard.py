"""Runs the program of one instance, passes its output on and reports its life and its end to poprun.

Started by mpirun, once per instance. The program is the guard's child and joins MPI under the guard's rank:
mpirun looks only at the guard, so that an instance that dies does not make mpirun end the job before poprun
knows why.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_ipu.simulator.poprun.plan import numa_cores, share_of_cores
from bert_ipu.simulator.poprun.vital import Pulse, kill_marked

CONTROL = "BERT_IPU_POPRUN_CONTROL"
TOKEN = "BERT_IPU_POPRUN_TOKEN"
MARK = "BERT_IPU_POPRUN_JOB"
HEARTBEAT = "BERT_IPU_HEARTBEAT_FD"
REPORT_EVERY_S = 0.5
TERMINATE_WITHIN_S = 1.5
KEPT_LINES = 60
PR_SET_PDEATHSIG = 1


def connect(addresses: str, timeout_s: float = 5.0) -> socket.socket:
    """The connection to poprun, over the first of its addresses ("host:port,host:port") that answers."""
    problems = []
    for address in addresses.split(","):
        host, _, port = address.rpartition(":")
        try:
            return socket.create_connection((host, int(port)), timeout=timeout_s)
        except OSError as error:
            problems.append(f"{address}: {error}")
    raise ConnectionError("poprun cannot be reached: " + "; ".join(problems))


def last_error(lines: Sequence[str]) -> str:
    """What the end of a program's stderr says went wrong.

    The exception of the last traceback with its message, the place in a dump of faulthandler, or the last
    line.
    """
    text = [line.rstrip() for line in lines]
    starts = [i for i, line in enumerate(text) if line.startswith("Traceback (most recent call last)")]
    if starts:
        raised = [i for i in range(starts[-1] + 1, len(text)) if re.match(r"[A-Za-z_][\w.]*(:|$)", text[i])]
        if raised:
            return "\n".join(text[raised[0] : raised[0] + 8]).strip()
    place = _place_in_dump(text)
    if place:
        return f"it was at {place}"
    return next((line.strip() for line in reversed(text) if line.strip()), "")


def _place_in_dump(text: Sequence[str]) -> str:
    """Where a dump of faulthandler finds the main thread, which it lists last; empty where there is none."""
    if not any(line.startswith("Fatal Python error") for line in text):
        return ""
    threads = [i for i, line in enumerate(text) if line.startswith(("Thread 0x", "Current thread 0x"))]
    lines = text[threads[-1] :] if threads else []
    return next((line.strip() for line in lines if line.startswith('  File "')), "")


class Program:
    """The running program: its process, the end of its stderr and what it says about itself."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], silent: bool) -> None:
        self.stderr_tail: deque[str] = deque(maxlen=KEPT_LINES)
        self.waits_for = ""
        self._silent = silent
        heartbeat, heartbeat_end = os.pipe()
        self.process = subprocess.Popen(
            command,
            env={**environment, HEARTBEAT: str(heartbeat_end)},
            stdout=subprocess.DEVNULL if silent else None,
            stderr=subprocess.PIPE,
            pass_fds=(heartbeat_end,),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        os.close(heartbeat_end)
        self.pulse = Pulse(self.process.pid)
        self._readers = [
            threading.Thread(target=self._pass_stderr_on, daemon=True),
            threading.Thread(target=self._listen, args=(heartbeat,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _pass_stderr_on(self) -> None:
        assert self.process.stderr is not None, "stderr is a pipe"
        unfinished = b""
        # Bytes, not lines: a progress bar writes for minutes without ending its line.
        while chunk := os.read(self.process.stderr.fileno(), 65536):
            if not self._silent:
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()
            *lines, unfinished = (unfinished + chunk)[-65536:].split(b"\n")
            self.stderr_tail.extend(line.decode(errors="replace") for line in lines)
        if unfinished:
            self.stderr_tail.append(unfinished.decode(errors="replace"))

    def _listen(self, heartbeat: int) -> None:
        """Reads the program's lines "wait WHAT", "go" and "beat" (runtime/heartbeat.py writes them)."""
        with os.fdopen(heartbeat, errors="replace") as lines:
            for line in lines:
                verb, _, what = line.strip().partition(" ")
                if verb != "beat":
                    self.waits_for = what
                self.pulse.beat()

    def report(self) -> dict[str, Any]:
        """How the instance is."""
        idle_s, still_s = self.pulse.feel()
        return {"idle_s": idle_s, "still_s": still_s, "waits_for": self.waits_for}

    def finish_reading(self) -> None:
        """Waits for the rest of stderr; a surviving grandchild that holds the pipe is not waited for."""
        self._readers[0].join(timeout=1.0)

    def end(self, show_where: bool) -> None:
        """Ends the program and what it started; with `show_where` Python says first where it was."""
        group = self.process.pid
        first = signal.SIGABRT if show_where else signal.SIGTERM
        for sent in (first, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(TERMINATE_WITHIN_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.process.wait()


def die_with_parent() -> None:
    """Between fork and exec: the kernel ends the child when its parent is killed. No core file is written."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Guard:
    """The talk with poprun: hello, the order to start, reports, the end."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.connection = connect(os.environ[CONTROL])
        self.connection.settimeout(None)
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        """Orders of poprun, and the end of the program."""
        threading.Thread(target=self._read_orders, daemon=True).start()

    def _read_orders(self) -> None:
        with contextlib.suppress(OSError):
            for line in self.connection.makefile("r"):
                self.events.put(json.loads(line))
        self.events.put({"kind": "leave"})

    def send(self, kind: str, **content: Any) -> None:
        """One message to poprun; that it is gone is noticed when reading."""
        with contextlib.suppress(OSError):
            self.connection.sendall((json.dumps({"kind": kind, **content}) + "\n").encode())

    def run(self) -> None:
        """Serves until poprun lets go, which it does once no instance runs any more."""
        local = int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"])
        self.send(
            "hello",
            token=os.environ.pop(TOKEN),
            instance=int(os.environ["OMPI_COMM_WORLD_RANK"]),
            host=socket.gethostname(),
        )
        order = self.events.get()
        if order["kind"] == "start":
            if order["numa_aware"] and (cores := numa_cores(local)):
                os.sched_setaffinity(0, cores)
            self._run_program(program_environment(order, local), silent=order["silent"])
            while self.events.get()["kind"] != "leave":
                pass
        kill_marked(f"{MARK}={os.environ[MARK]}-program")

    def _run_program(self, environment: dict[str, str], silent: bool) -> None:
        try:
            program = Program(self.command, environment, silent)
        except OSError as error:
            self.send(
                "end", status=127, error=f"{self.command[0]} cannot be started: {error.strerror or error}"
            )
            return
        signal.signal(signal.SIGTERM, lambda *_: self.events.put({"kind": "leave"}))
        threading.Thread(target=self._announce_end, args=(program,), daemon=True).start()
        event = {"kind": "report"}
        while event["kind"] == "report":
            self.send("alive", pid=program.process.pid, **program.report())
            try:
                event = self.events.get(timeout=REPORT_EVERY_S)
            except queue.Empty:
                continue
        if event["kind"] != "ended":
            program.end(show_where=bool(event.get("show_where")))
        program.finish_reading()
        self.send("end", status=program.process.returncode, error=last_error(list(program.stderr_tail)))
        if event["kind"] == "leave":
            self.events.put(event)

    def _announce_end(self, program: Program) -> None:
        program.process.wait()
        self.events.put({"kind": "ended"})


def program_environment(order: dict[str, Any], local_instance: int) -> dict[str, str]:
    """The program's environment: this process's, poprun's variables, a fair share of the cores."""
    environment = {**os.environ, **order["environment"]}
    environment["POPDIST_LOCAL_INSTANCE_INDEX"] = str(local_instance)
    environment[MARK] = os.environ[MARK] + "-program"
    on_host = int(os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"])
    environment.setdefault("OMP_NUM_THREADS", str(share_of_cores(on_host)))
    # A process that raises must not wait in MPI_Finalize for the others; one that ends well leaves in order.
    environment.setdefault("MPI4PY_RC_FINALIZE", "0")
    # A program that is started by its own Python finds the facades after anything else of their names.
    simulator = Path(__file__).parents[1]
    before, after = simulator / "poprun" / "startup", (simulator / "importable", simulator.parents[1])
    paths = [before, environment.get("PYTHONPATH", ""), *after]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, map(str, paths)))
    # A hung process says where it is.
    environment.setdefault("PYTHONFAULTHANDLER", "1")
    environment.setdefault("PYTHONUNBUFFERED", "1")
    if on_host > len(os.sched_getaffinity(0)):
        environment.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    return environment


if __name__ == "__main__":
    Guard(sys.argv[1:]).run()
