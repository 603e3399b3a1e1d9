"""Several instances, through poprun and the script that users run, on Graphcore's sample records."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from poprun_jobs import Job
from safetensors.torch import load_file

from bert_ipu.checkpoint import newest_checkpoint
from bert_ipu.distributed import World, code_version, data_version
from bert_ipu.errors import DataError

REPLICAS = 4
ACCUMULATION = 10
ROWS_PER_STEP = REPLICAS * ACCUMULATION
SETTINGS = (
    "model.vocab_size=30522 ipu.precision=float32 ipu.backend=simulator optim.accumulation_type=float32 "
    f"ipu.replication_factor={REPLICAS} ipu.gradient_accumulation={ACCUMULATION} data.workers=0 "
    "recorder.progress_bar=false"
).split()
# A constant added to all keys' scores of a query changes no softmax, so the key's bias has no gradient but
# rounding errors, which optimizers that normalise by the gradient's size turn into steps.
WITHOUT_GRADIENT = "attention.self.key.bias"


@pytest.fixture(scope="session")
def records(shared_data: Path) -> str:
    """Graphcore's sample of 45 records of length 128, masked."""
    return str(shared_data / "graphcore_bert" / "sample_text.tfrecord")


def arguments(records: str, output: Path, *overrides: str) -> list[str]:
    """Of run_pretraining.py."""
    data = [f"data.train_data={records}", f"train.output_dir={output}"]
    return ["run_pretraining.py", "--config", "demo_tiny_128", *SETTINGS, *data, *overrides]


def pretrain(command: list[str], instances: int, timeout_s: float = 400.0, **more: str) -> Job:
    """A job of `instances` that share the replicas."""
    return Job(command, instances, ["--ipus-per-replica=4"], REPLICAS, timeout_s=timeout_s, environment=more)


def result(output: Path) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    """The weights of the newest checkpoint and the losses of every step."""
    weights = load_file(newest_checkpoint(output / "checkpoints") / "model.safetensors")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return weights, [[line["mlm_loss"], line["nsp_loss"]] for line in lines if line["kind"] == "train"]


class Gathered:
    """A communicator whose other instances have said something already."""

    def __init__(self, *others: dict[str, str]) -> None:
        self.others = others

    def allgather(self, mine: dict[str, str]) -> list[dict[str, str]]:
        return [mine, *self.others]


def test_instances_that_differ_are_named() -> None:
    same = {"code": "1a", "data": "2b"}
    World(0, 2, Gathered(same)).check_same(same)
    with pytest.raises(DataError, match=r"data: 2b on instances 0, 2; 3c on instance 1\n") as raised:
        World(0, 3, Gathered({"code": "1a", "data": "3c"}, same)).check_same(same)
    assert "code:" not in str(raised.value)


@given(st.binary(min_size=1, max_size=200), st.integers(0, 199), st.integers(1, 255))
def test_data_version_sees_a_changed_byte(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int, change: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.tfrecord").write_bytes(content)
    before = data_version(str(folder)), data_version(str(folder / "*.tfrecord"))
    assert before == (data_version(str(folder)), data_version(str(folder / "a.tfrecord")))
    changed = bytearray(content)
    changed[place % len(content)] ^= change
    (folder / "a.tfrecord").write_bytes(changed)
    assert data_version(str(folder)) != before[0]


def test_code_version_names_python_and_torch() -> None:
    assert torch.__version__.split("+")[0] in code_version() and code_version() == code_version()


@pytest.mark.slow
@pytest.mark.mpi
def test_instances_with_different_data_are_refused_at_start(records: str, tmp_path: Path) -> None:
    content = Path(records).read_bytes()
    first_record = 16 + int.from_bytes(content[:8], "little")  # length, its checksum, data, their checksum
    for rank, kept in ((0, content), (2, content[first_record:])):
        folder = tmp_path / f"host{rank}"
        folder.mkdir()
        (folder / "a.tfrecord").write_bytes(kept)
    command = [*on_own_host(tmp_path), *arguments("a.tfrecord", tmp_path / "run", "train.steps=1")[1:]]
    job = pretrain(command, 2)
    assert job.status == 2 and not (tmp_path / "run").exists()
    assert "were not started on the same thing" in job.stderr
    assert re.search(r"a\.tfrecord: \w+ \(1 files\) on instance 0; \w+ \(1 files\) on instance 1", job.stderr)


def on_own_host(hosts: Path) -> list[str]:
    """Runs the script in a folder of the instance's first replica, as if on a host with its own files."""
    return [
        "-c",
        "import os, sys, run_pretraining\n"
        f"os.chdir({str(hosts)!r} + '/host' + os.environ['POPDIST_REPLICA_INDEX_OFFSET'])\n"
        "sys.exit(run_pretraining.main(sys.argv[1:]))",
    ]


@pytest.mark.slow
@pytest.mark.mpi
def test_instances_with_different_checkpoints_are_refused(records: str, tmp_path: Path) -> None:
    first, second = tmp_path / "host0/run", tmp_path / "host2/run"
    settings = ["train.steps=2", "checkpoint.every_steps=1"]
    assert pretrain(arguments(records, first, *settings), 1).status == 0
    shutil.copytree(first, second)
    shutil.rmtree(second / "checkpoints/step_00000002")
    command = [*on_own_host(tmp_path), *arguments(records, Path("run"), *settings, "--resume")[1:]]
    job = pretrain(command, 2)
    assert job.status == 2
    assert "steps taken before: 2 on instance 0; 1 on instance 1" in job.stderr


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("optimizer", "dropout", "tolerance"), [("sgd", 0.0, 5e-6), ("lamb", 0.0, 2e-5), ("lamb", 0.1, 2e-5)]
)
def test_layout_changes_nothing(
    optimizer: str, dropout: float, tolerance: float, records: str, tmp_path: Path
) -> None:
    """1 x 4, 2 x 2 and 4 x 1 instances x replicas: the same losses and weights after 20 steps."""
    results = []
    for instances in (1, 2, 4):
        output = tmp_path / str(instances)
        chosen = [f"optim.name={optimizer}", f"model.hidden_dropout_prob={dropout}", "train.steps=20"]
        chosen.append(f"model.attention_probs_dropout_prob={dropout}")
        job = pretrain(arguments(records, output, *chosen), instances)
        assert job.status == 0, job.stderr
        results.append(result(output))
    (weights, losses), *others = results
    assert len(losses) == 20 and losses[-1][0] < losses[0][0]
    for other_weights, other_losses in others:
        torch.testing.assert_close(torch.tensor(other_losses), torch.tensor(losses), rtol=1e-5, atol=1e-5)
        differences = {
            name: ((other_weights[name] - weight).norm() / weight.norm()).item()
            for name, weight in weights.items()
            if not name.endswith(WITHOUT_GRADIENT)
        }
        worst = max(differences, key=lambda name: differences[name])
        print(
            f"{optimizer} dropout {dropout}: largest relative difference {differences[worst]:.2e} ({worst})"
        )
        assert differences[worst] <= tolerance, (worst, differences[worst])


# Runs the script and writes the names of the rows this instance reads, in the order it trains on them.
RECORD_ROWS = """
import os, sys
from bert_ipu.tfrecords import TFRecordDataset
rank = os.environ["POPDIST_REPLICA_INDEX_OFFSET"]
log = open(os.environ["ROWS_LOG"] + "." + rank, "a")
read = TFRecordDataset.__getitems__
def reading(self, names):
    log.write("".join(f"{int(name)}\\n" for name in names))
    log.flush()
    return read(self, names)
TFRecordDataset.__getitems__ = reading
import run_pretraining
sys.exit(run_pretraining.main(sys.argv[1:]))
"""


def rows_read(log: Path, steps: int, instances: int) -> list[int]:
    """Names of the rows of the first `steps` steps, over all instances."""
    per_instance = ROWS_PER_STEP // instances * steps
    rows = []
    for file in sorted(log.parent.glob(log.name + ".*")):
        names = [int(line) for line in file.read_text().split()]
        assert len(names) >= per_instance
        rows += names[:per_instance]
    return rows


@pytest.mark.slow
@pytest.mark.mpi
def test_every_sample_once_when_resumed_with_fewer_instances(records: str, tmp_path: Path) -> None:
    """4 instances killed at a random step, resumed with 2, then with 1: no row of 8 epochs lost or twice."""
    output, total = tmp_path / "run", 9  # 9 steps of 40 rows are 8 epochs of 45 records
    settings = ["checkpoint.every_steps=1", f"train.steps={total}"]
    draw = random.Random(5)
    rows: list[int] = []
    done = 0
    for instances, stop_after in ((4, draw.randint(1, 3)), (2, draw.randint(4, 6)), (1, total)):
        log = tmp_path / f"rows{instances}"
        command = ["-c", RECORD_ROWS, *arguments(records, output, *settings)[1:]]
        job = pretrain([*command, *(["--resume"] if done else [])], instances, timeout_s=0, ROWS_LOG=str(log))
        wait_for_step(output, stop_after, job)
        if stop_after < total:
            kill_one_instance(job, draw)
        job.wait(400)
        saved = int(newest_checkpoint(output / "checkpoints").name.split("_")[1])
        rows += rows_read(log, saved - done, instances)
        done = saved
    assert done == total
    counts = Counter(rows)
    assert set(counts.values()) == {1} and sorted(counts) == list(range(total * ROWS_PER_STEP))


def wait_for_step(output: Path, step: int, job: Job) -> None:
    """Returns once the checkpoint of that step is there, or the job has ended."""
    until = time.monotonic() + 400
    while time.monotonic() < until and job.process.poll() is None:
        if (output / "checkpoints" / f"step_{step:08d}").is_dir():
            return
        time.sleep(0.05)


def instance_programs(job: Job) -> list[int]:
    """Processes of the instances; not their guards, mpirun and poprun, nor data workers and compilers."""
    found = [pid for pid in job.running() if b"run_pretraining" in words(pid) and b"poprun" not in words(pid)]
    return [pid for pid in found if os.getsid(pid) == pid]


def kill_one_instance(job: Job, draw: random.Random) -> None:
    """Kills the program of a random instance."""
    os.kill(draw.choice(instance_programs(job)), signal.SIGKILL)


def words(pid: int) -> bytes:
    """The command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("seed", range(20))
def test_random_kill(seed: int, records: str, tmp_path: Path) -> None:
    """One of two instances is killed at start, in compile, in a step or in a checkpoint."""
    draw = random.Random(seed)
    settings = ["checkpoint.every_steps=1", "train.steps=1000"]
    command = arguments(records, tmp_path / "run", *settings)
    job = pretrain(command, 2, timeout_s=0)
    moment = ("start", "compile", "step", "checkpoint")[seed % 4]
    wait_for_moment(moment, tmp_path / "run", draw, job)
    killed_at = time.monotonic()
    kill_one_instance(job, draw)
    job.wait(60)
    assert time.monotonic() - killed_at < 30
    assert job.status == 137 and len(job.messages()) == 1, job.stderr
    assert "was killed by SIGKILL" in job.messages()[0]
    assert job.running() == []
    if list((tmp_path / "run" / "checkpoints").glob("step_*")):
        step = int(newest_checkpoint(tmp_path / "run" / "checkpoints").name.split("_")[1])
        resumed = pretrain([*command, f"train.steps={step + 1}", "--resume"], 1)
        assert resumed.status == 0, resumed.stderr
        assert f"after step {step}" in resumed.stdout


def wait_for_moment(moment: str, output: Path, draw: random.Random, job: Job) -> None:
    """Returns when one of the instances can be killed in that phase."""
    until = time.monotonic() + 100
    while time.monotonic() < until and not instance_programs(job):
        time.sleep(0.02)
    if moment == "start":
        time.sleep(draw.uniform(0.0, 1.5))
    elif moment == "compile":
        time.sleep(draw.uniform(4, 9))
    else:
        wait_for_step(output, 1 + draw.randint(0, 1), job)
        if moment == "step":
            time.sleep(draw.uniform(0.0, 1.5))
        else:
            wait_for_partial_checkpoint(output, until)


def wait_for_partial_checkpoint(output: Path, until: float) -> None:
    """Returns while a checkpoint is being written under its temporary name."""
    while time.monotonic() < until:
        if [p for p in (output / "checkpoints").iterdir() if not p.name.startswith("step_")]:
            return
        time.sleep(0.002)
