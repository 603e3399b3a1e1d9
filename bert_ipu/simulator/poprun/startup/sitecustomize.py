"""What every Python program under poprun does at its start, so that it leaves MPI in order at its end.

This folder comes first on the program's PYTHONPATH, where Python looks for a module of this name.  It knows
nothing of the rest of the simulator, as the program need not use it.

mpi4py would call MPI_Finalize at exit.  That waits for all instances, so that one which failed would wait for
ever for others which wait for its messages, and poprun would not hear of it; the guard turns that off.  But
two things need care then: what an instance sent last may still lie with it, and one that is in MPI a moment
longer than the others takes their closed connections for a failure.  So an instance that ends lets MPI work
until all are at their ends, for a while at most, and leaves its connections open behind it.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

WAIT_S = 3.0
"""The exit status is not known here, so an instance that fails by sys.exit waits as well: not for long."""


def leave_mpi(process: int) -> None:
    """Delivers the last messages and keeps the connections to the others open.

    `process` is the program's; what it forked has not joined MPI.
    """
    MPI = sys.modules.get("mpi4py.MPI")
    if MPI is None or os.getpid() != process or not MPI.Is_initialized() or MPI.Is_finalized():
        return
    if getattr(sys, "last_value", None) is None:  # else an exception ended it, and poprun ends the job
        try:
            all_at_end = MPI.COMM_WORLD.Ibarrier()
            give_up_at = time.monotonic() + WAIT_S
            while not all_at_end.Test() and time.monotonic() < give_up_at:
                time.sleep(0.005)
        except MPI.Exception as error:
            print(f"MPI at the end of the program: {error}", file=sys.stderr)
    keep_connections_open()


def keep_connections_open() -> None:
    """Hands the sockets to a process that only sleeps, until the guard ends it with the job."""
    connections = [number for number in map(int, os.listdir("/proc/self/fd")) if is_connection(number)]
    if connections:
        nothing = subprocess.DEVNULL
        subprocess.Popen(
            ["sleep", "infinity"],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            pass_fds=connections,
            start_new_session=True,
        )


def is_connection(number: int) -> bool:
    """True for the descriptor of an internet socket; False for one that is closed by now."""
    try:
        with socket.socket(fileno=os.dup(number)) as found:
            return found.family in (socket.AF_INET, socket.AF_INET6)
    except OSError:
        return False


def run_hidden_module() -> None:
    """Runs the module of this name that Python would have found without poprun, where there is one."""
    here = str(Path(__file__).parent)
    sys.path[:] = [place for place in sys.path if place != here]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


# Registered first, so called last: the program's own functions for its end may use MPI.
atexit.register(leave_mpi, os.getpid())
run_hidden_module()
