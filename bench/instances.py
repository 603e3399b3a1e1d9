"""How much faster two instances on two cores train than one instance on one core: python bench/instances.py.

The same script, model, rows and global batch, launched by poprun; runs of the two kinds take turns, so that
what else the machine does meets both. Steps are timed by the script itself, without compilation; the medians
are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("BERT_IPU_SHARED", ROOT.parent / "shared"))
RECORDS = SHARED / "data" / "graphcore_bert" / "sample_text.tfrecord"
ASKED = 1.7
WARM_UP_STEPS = 2


def steps_seconds(instances: int, settings: list[str], steps: int) -> list[float]:
    """Seconds of each step after the warm-up; one core for each instance, two replicas in all."""
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:instances])
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("taskset", "--cpu-list", cores, sys.executable, "-m", "bert_ipu.simulator.poprun"),
            *("--num-instances", str(instances), "--num-replicas=2", "--ipus-per-replica=4"),
            *(sys.executable, "run_pretraining.py", "--config", "demo_tiny_128", *settings),
            *(f"train.output_dir={folder}", f"train.steps={WARM_UP_STEPS + steps}"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"training on {instances} instances failed:\n{done.stderr}")
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines if '"kind": "train"' in line]
    return seconds[WARM_UP_STEPS:]


def main() -> int:
    """Measures, prints the table, and returns 1 where less than what was asked is reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=6, help="steps measured in a run")
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--accumulation", type=int, default=32, help="micro-batches of a replica in a step")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed to measure two instances")
    settings = [
        *(f"data.train_data={RECORDS}", "model.vocab_size=30522", "data.workers=0"),
        "ipu.backend=simulator",
        *(f"model.hidden_size={arguments.hidden}", "ipu.precision=float32", "ipu.replication_factor=2"),
        *(f"ipu.gradient_accumulation={arguments.accumulation}", "recorder.progress_bar=false"),
        "optim.accumulation_type=float32",
    ]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for instances, measured in seconds.items():
            measured += steps_seconds(instances, settings, arguments.steps)
    medians = {instances: statistics.median(measured) for instances, measured in seconds.items()}
    rows = 2 * arguments.accumulation
    for instances, median in medians.items():
        print(f"{instances} instances and cores: {median:.3f} s a step, {rows / median:.1f} sequences/s")
    speed_up = medians[1] / medians[2]
    print(f"speed-up {speed_up:.2f} (asked: {ASKED}); load average {os.getloadavg()[0]:.1f}")
    return 0 if speed_up >= ASKED else 1


if __name__ == "__main__":
    sys.exit(main())
