"""Jobs over two hosts, played by two network namespaces of this machine, with names and addresses."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from poprun_jobs import Job
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.mpi]


class Hosts(NamedTuple):
    """Two machines that reach each other over a cable of their own."""

    names: tuple[str, str]
    addresses: tuple[str, str]
    shell: Path
    """Runs a command on a host, as ssh does: shell HOST COMMAND."""

    def options(self, addresses: Sequence[str] | None = None) -> list[str]:
        """poprun's, to launch on the two."""
        return [
            f"--host={','.join(addresses or self.addresses)}",
            f"--mpi-global-args=--prtemca plm_ssh_agent {self.shell}",
        ]

    def first(self) -> list[str]:
        """What runs a command on the first host."""
        name = self.names[0]
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', name]
        return ["ip", "netns", "exec", name, *named]


def ip(*arguments: str) -> None:
    """The ip command of iproute2."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two namespaces joined by a pair of virtual network cards."""
    number = os.getpid() % 250 + 1
    names = (f"bert{number}a", f"bert{number}b")
    addresses = (f"10.213.{number}.1", f"10.213.{number}.2")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", f"v{names[0]}", "type", "veth", "peer", "name", f"v{names[1]}")
        for name, address in zip(names, addresses):
            ip("link", "set", f"v{name}", "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", f"v{name}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"v{name}", "up")
        shell = tmp_path / "shell"
        shell.write_text(
            "#!/bin/sh\nhost=$1\nshift\ncase $host in\n"
            + "".join(f"{a}) name={n} ;;\n" for n, a in zip(names, addresses))
            + '*) echo "no route to host $host" >&2; exit 255 ;;\nesac\n'
            # Its own host name too, by which MPI tells hosts apart.
            + 'exec ip netns exec $name unshare --uts sh -c \'hostname "$0"; exec sh -c "$1"\' $name "$*"\n'
        )
        shell.chmod(0o755)
        subprocess.run([shell, addresses[0], "true"], check=True, capture_output=True, text=True)
        yield Hosts(names, addresses, shell)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine forbids network namespaces: {getattr(error, 'stderr', '') or error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_mpirun_reaches_both(hosts: Hosts) -> None:
    program = """
import os, socket
from mpi4py import MPI
world = MPI.COMM_WORLD
print(world.rank, socket.gethostname(), *world.allgather(os.environ["POPDIST_LOCAL_INSTANCE_INDEX"]))
"""
    job = Job(["-c", program], 4, [*hosts.options(), "--print-topology=yes"], prefix=hosts.first())
    assert job.status == 0, job.stderr
    said = sorted(line for line in job.stdout.splitlines() if line[:1].isdigit())
    assert said == [f"{rank} {hosts.names[rank // 2]} 0 1 0 1" for rank in range(4)]
    assert f"| {hosts.addresses[0]} | {hosts.addresses[1]} |" in job.stdout
    assert job.running() == []


def test_instance_that_is_done_long_before_the_others(hosts: Hosts) -> None:
    """MPI takes a connection that closes for a failure; the last instance on the second host leaves early."""
    program = """
import time
from mpi4py import MPI
world = MPI.COMM_WORLD
world.allgather(world.rank)
for turn in range(60 if world.rank != 3 else 0):
    if world.rank < 3:
        world.sendrecv(turn, dest=(world.rank + 1) % 3, source=(world.rank - 1) % 3)
    time.sleep(0.1)
print("done", flush=True)
"""
    job = Job(["-c", program], 4, hosts.options(), prefix=hosts.first())
    assert (job.status, job.stdout.split()) == (0, ["done"] * 4), job.stderr
    assert job.running() == []


def test_host_that_cannot_be_reached(hosts: Hosts) -> None:
    stranger = hosts.addresses[0].rpartition(".")[0] + ".9"
    job = Job(["-c", "pass"], 2, hosts.options([hosts.addresses[0], stranger]), prefix=hosts.first())
    assert job.status == 2 and job.seconds < 30
    assert f"poprun: host {stranger} cannot be reached" in job.stderr
    assert f"no route to host {stranger}" in job.stderr


def test_instance_that_dies_on_the_other_host(hosts: Hosts) -> None:
    program = """
import os, time
if os.environ["POPDIST_REPLICA_INDEX_OFFSET"] == "1":
    raise OSError("disk of the other host")
time.sleep(60)
"""
    job = Job(["-c", program], 2, hosts.options(), prefix=hosts.first())
    assert job.status == 1 and job.seconds < 30
    words = (
        f"instance 1 of 2 ({hosts.names[1]}, replica 1) ended with status 1: OSError: disk of the other host"
    )
    assert words in job.messages()[0] and len(job.messages()) == 1
    assert job.running() == []


def test_training_equals_one_host(hosts: Hosts, shared_data: Path, tmp_path: Path) -> None:
    """To the last bit: the order of the sum over instances does not depend on where they run."""
    results = []
    for place, options, prefix in (("one", [], []), ("two", hosts.options(), hosts.first())):
        output = tmp_path / place
        command = [
            *(
                "run_pretraining.py",
                "--config",
                "demo_tiny_128",
                f"train.output_dir={output}",
                "train.steps=5",
            ),
            f"data.train_data={shared_data / 'graphcore_bert' / 'sample_text.tfrecord'}",
            *("model.vocab_size=30522", "ipu.precision=float32", "optim.accumulation_type=float32"),
            *("ipu.replication_factor=2", "ipu.gradient_accumulation=10", "optim.name=lamb"),
            *("data.workers=0", "recorder.progress_bar=false", "ipu.backend=simulator"),
        ]
        job = Job(command, 2, ["--ipus-per-replica=4", *options], prefix=prefix, timeout_s=250)
        assert job.status == 0, job.stderr
        losses = [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
        results.append((losses, load_file(output / "checkpoints" / "step_00000005" / "model.safetensors")))
    (one_losses, one), (two_losses, two) = results
    assert one_losses == two_losses and len(one_losses) == 5
    assert all(one[name].equal(two[name]) for name in one)
