"""An instance dies, raises or hangs: the job ends soon, with one message, and nothing runs on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from poprun_jobs import Job

LIMIT_S = 30.0
# No torch and no MPI: what poprun does must not depend on them.
PLAIN = """
import os, signal, subprocess, sys, time
rank = int(os.environ["POPDIST_REPLICA_INDEX_OFFSET"])
print("started", rank, flush=True)
if rank == 1:
    {}
time.sleep(0.1 if rank == 1 else 60)
"""
JOINED = """
import os, signal, sys, time, torch
from bert_ipu.simulator import popdist
from bert_ipu.simulator.runtime import collectives
popdist.init()
group = collectives.current_group()
x = torch.ones(100_000)
group.all_reduce(x)
def here():
    print("deed", time.monotonic(), flush=True)
    {}
if group.index == 1:
    here()
group.all_reduce(x)
"""


def check_failed(job: Job, *words: str) -> str:
    """The one message of a failed job, which must name instance 1 and hold the words."""
    assert job.status != 0
    done_at = [float(line.split()[1]) for line in job.stdout.splitlines() if line.startswith("deed ")]
    assert job.started_at + job.seconds - (done_at or [job.started_at])[0] < LIMIT_S
    assert len(job.messages()) == 1, job.stderr
    message = job.stderr[job.stderr.index("poprun: ") :]
    assert message.startswith("poprun: instance 1 of 2 ("), message
    assert all(word in message for word in words), message
    assert job.running() == []
    return message


@pytest.mark.mpi
def test_exception_ends_the_job_with_its_message() -> None:
    job = Job(
        [
            "-c",
            PLAIN.format("subprocess.Popen(['sleep', '70'], start_new_session=True); raise ValueError('x')"),
        ],
        2,
    )
    check_failed(job, "ended with status 1: ValueError: x", "replica 1")
    assert job.status == 1
    assert "prterun" not in job.stderr


@pytest.mark.mpi
def test_hidden_output_does_not_hide_the_error() -> None:
    job = Job(["-c", PLAIN.format("sys.exit('the reason')")], 2, ["--only-output-from-instance=0"])
    check_failed(job, "ended with status 1: the reason")
    assert job.stdout.split() == ["started", "0"]
    assert job.stderr.count("the reason") == 1


@pytest.mark.mpi
def test_idle_instance_is_found_and_says_where_it_hangs() -> None:
    job = Job(
        ["-c", PLAIN.format("time.sleep(1e5)").replace("time.sleep(0.1", "x = (0.1")],
        2,
        ["--heartbeat-timeout=3"],
    )
    # Instance 0 sleeps as well, in its last line; the first of the two is named.
    assert job.status == 124 and job.seconds < LIMIT_S and job.running() == []
    assert (
        "hangs: no sign of life" in job.messages()[0]
        and 'it was at File "<string>", line' in job.messages()[0]
    )


@pytest.mark.mpi
def test_all_is_well() -> None:
    job = Job(["-c", "import os; print(os.environ['POPDIST_REPLICA_INDEX_OFFSET'])"], 2, ["-v"], replicas=4)
    assert (job.status, sorted(job.stdout.split()), job.running()) == (0, ["0", "2"], [])
    assert "running" in job.messages()[0] and len(job.messages()) == 1


@pytest.mark.mpi
@pytest.mark.parametrize(("end", "status"), [("sys.exit(3)", 3), ("raise OSError('disk full')", 1)])
def test_failed_instance_does_not_wait_for_others_in_mpi(end: str, status: int) -> None:
    program = f"""
import sys
from mpi4py import MPI
if MPI.COMM_WORLD.rank == 1:
    {end}
MPI.COMM_WORLD.recv(source=1)
"""
    job = Job(["-c", program], 2)
    check_failed(job, f"ended with status {status}")
    assert job.status == status and job.seconds < LIMIT_S


@pytest.mark.mpi
def test_sitecustomize_of_the_users_environment_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.of_the_user = 'here'")
    program = "import sys, sitecustomize; print(of_the_user, sitecustomize.__file__, *sys.path, sep='\\n')"
    job = Job(["-c", program], 1, environment={"PYTHONPATH": str(tmp_path)})
    said = job.stdout.splitlines()
    assert (job.status, said[:2]) == (0, ["here", str(tmp_path / "sitecustomize.py")]), job.stderr
    assert not any(place.endswith("startup") for place in said)


@pytest.mark.mpi
def test_program_that_does_not_exist() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bert_ipu.simulator.poprun", "--num-instances=1", "no-such-program"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 127
    assert "no-such-program cannot be started: No such file or directory" in done.stderr


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("raise ValueError('one reason')", ["ended with status 1: ValueError: one reason"]),
        ("os._exit(7)", ["ended with status 7"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", ["was killed by SIGKILL"]),
        ("os.kill(os.getpid(), signal.SIGSEGV)", ["was killed by SIGSEGV", "in here"]),
        ("os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)", ["was lost"]),
        ("time.sleep(1e5)", ["hangs: no sign of life", "in here"]),
        ("os.kill(os.getpid(), signal.SIGSTOP)", ["hangs: no sign of life", "in here"]),
        ("while True: pass", ["hangs: it goes round in a circle", "0 wait for it in all_reduce", "in here"]),
        ("os._exit(0)", ["ended with status 0 while others wait for it: 0 in all_reduce"]),
        ("collectives.current_group().communicator.recv(source=0)", ["hangs", "in here"]),
    ],
)
def test_failure_in_a_job_that_reduces(deed: str, words: list[str]) -> None:
    """With the default heartbeat: 30 seconds from the deed must do."""
    job = Job(["-c", JOINED.format(deed)], 2)
    check_failed(job, *words)


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_poprun_itself_is_ended(number: signal.Signals) -> None:
    job = Job(["-c", PLAIN.format("time.sleep(60)")], 2, timeout_s=0)
    time.sleep(3)
    assert len(job.running()) >= 5
    os.kill(job.process.pid, number)
    job.wait(LIMIT_S)
    assert job.status == (-number if number is signal.SIGKILL else 128 + number)
    until = time.monotonic() + 10
    while job.running() and time.monotonic() < until:
        time.sleep(0.1)
    assert job.running() == []


@pytest.mark.slow
@pytest.mark.mpi
def test_long_wait_for_a_file_lock_is_no_hang(tmp_path: Path) -> None:
    """Programs let one instance compile into a shared cache while the others wait for the lock."""
    program = f"""
import fcntl, os, time
rank = int(os.environ["POPDIST_REPLICA_INDEX_OFFSET"])
time.sleep(rank)
with open({str(tmp_path / "lock")!r}, "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    end = time.monotonic() + (8 if rank == 0 else 0)
    while time.monotonic() < end:
        sum(range(10000))
"""
    job = Job(["-c", program], 2, ["--heartbeat-timeout=3"])
    assert job.status == 0, job.stderr


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("seed", range(20))
def test_random_kill(seed: int) -> None:
    """One instance of three is killed at a random moment: at start, in an import, in a reduction, between."""
    draw = random.Random(seed)
    endless = "\nwhile True: group.all_reduce(x); time.sleep(0.01)"
    job = Job(["-c", JOINED.format("pass") + endless], 3, timeout_s=0)
    time.sleep(draw.uniform(0.3, 8))
    victims = [pid for pid in job.running() if is_instance(pid)]
    if not victims:
        time.sleep(2)
        victims = [pid for pid in job.running() if is_instance(pid)]
    killed_at = time.monotonic()
    os.kill(draw.choice(victims), signal.SIGKILL)
    job.wait(60)
    assert time.monotonic() - killed_at < LIMIT_S
    assert job.status == 137 and len(job.messages()) == 1, job.stderr
    assert "was killed by SIGKILL" in job.messages()[0]
    assert job.running() == []


def is_instance(pid: int) -> bool:
    """True for the program of an instance, as opposed to its guard, mpirun and poprun."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[1:2] == [b"-c"]
