"""Pretraining steps per second: the simulator in "fast" numerics against Hugging Face's BERT, interleaved.

    python bench/simulator_speed.py [--models tiny mini base-128 base-512] [--rounds 3] [--settings fp32 ...]

Each side is a process of its own, which takes a few steps when its turn comes, so that what else runs on the
machine meets both alike.  A step is forward and backward of 16 sequences (base: 8, or 2 of 512 tokens),
hidden dropout 0.1, attention dropout 0; the simulator's includes its SGD update.  Both sides get the same
malloc settings in "tuned", and what a user gets without thinking in "default".  Hugging Face's side is its
quickest setting of those that --settings names; without it, these: float32, as it is and by torch.compile, the
same with bf16 autocast, and float32 with the sequences one by one.  Ratios of medians are printed, of wall time
and of CPU time; on a busy machine the second is the steadier one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from simulator_workloads import ROOT, VOCABULARY, WORKLOADS, Seconds, Step, Workload, medians, simulator_step

TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(256 << 20)}


ASKED: dict[tuple[str, str], float] = {
    ("tiny", "tuned"): 4.0, ("mini", "tuned"): 2.5, ("base-128", "tuned"): 1.5, ("base-512", "tuned"): 1.5,
    ("tiny", "default"): 7.0, ("base-128", "default"): 1.9,
}  # fmt: skip
"""Ratio asked for, by model and malloc; without a choice these are measured."""

USUAL_SETTINGS = ["fp32", "fp32-compiled", "bf16", "bf16-compiled", "fp32-one-by-one"]
SETTINGS = [
    dtype + compiled + batches
    for compiled in ("", "-compiled") for dtype in ("fp32", "bf16") for batches in ("", "-one-by-one")
]  # fmt: skip


def hugging_face_step(work: Workload, setting: str) -> Step:
    """Forward and backward of Hugging Face's BertForPreTraining; setting: one of SETTINGS."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(
        num_hidden_layers=work.layers, hidden_size=work.hidden, num_attention_heads=work.heads,
        intermediate_size=4 * work.hidden, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForPreTraining(config).train()
    run = torch.compile(model) if "compiled" in setting else model
    ids = torch.randint(0, VOCABULARY, (work.sequences, work.length))
    labels = torch.full_like(ids, -100)
    labels[:, : work.masked] = ids[:, : work.masked]
    given = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "next_sentence_label": torch.zeros(work.sequences, dtype=torch.long),
    }  # fmt: skip
    size = 1 if "one-by-one" in setting else work.sequences
    batches = [
        {key: value[i : i + size] for key, value in given.items()} for i in range(0, work.sequences, size)
    ]

    def step() -> None:
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.startswith("bf16")):
                loss = run(**batch).loss
            loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def work_for_parent(name: str, side: str, threads: int) -> None:
    """Answer each line on standard input with the wall and CPU seconds of one step."""
    import torch

    torch.set_num_threads(threads)
    work = WORKLOADS[name]
    if side == "simulator":
        step = simulator_step(work, tune_allocator="MALLOC_MMAP_MAX_" not in os.environ)
    else:
        step = hugging_face_step(work, side)
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(work.steps):
            step()
        taken = (time.perf_counter() - wall) / work.steps, (time.process_time() - cpu) / work.steps
        print(json.dumps(taken), flush=True)


class Worker:
    """One side's process."""

    def __init__(self, name: str, side: str, threads: int, environment: dict[str, str]) -> None:
        self.side = side
        command = [sys.executable, __file__, "--worker", name, side, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
            cwd=ROOT,
        )  # fmt: skip
        self.taken: list[Seconds] = []
        while self._line().strip() != "ready":
            pass

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.side} ended with status {self.process.wait()}")
        return line

    def turn(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.taken.append(Seconds(*json.loads(self._line())))
        # OpenMP's threads spin for a while when they have nothing left to do; the next side shall not meet them.
        time.sleep(0.1)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(name: str, allocator: str, rounds: int, threads: int, settings: list[str]) -> None:
    """Print the seconds of each setting of Hugging Face's, and the ratio to the quickest."""
    work = WORKLOADS[name]
    environment = TUNED if allocator == "tuned" else {}
    workers = [Worker(name, side, threads, environment) for side in ["simulator", *settings]]
    for _ in range(rounds):
        for worker in workers:
            worker.turn()
    ours, *theirs = [medians(worker.taken) for worker in workers]
    for worker in workers:
        worker.stop()
    wall = min(side.wall for side in theirs) / ours.wall
    cpu = min(side.cpu for side in theirs) / ours.cpu
    asked = ASKED.get((name, allocator))
    figures = ", ".join(f"{setting} {taken}" for setting, taken in zip(settings, theirs))
    print(
        f"| {name} | {allocator} | {f'{asked:.1f}x' if asked else '-'} | {wall:.2f}x | {cpu:.2f}x | "
        f"{work.sequences / ours.wall:.2f} | simulator {ours}, {figures} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument(
        "--allocators", nargs="+", choices=["tuned", "default"], help="without: those asked for"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=USUAL_SETTINGS, help="of Hugging Face's side"
    )
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work_for_parent(*args.worker, args.threads)
        return
    print("| model | malloc | asked | wall ratio | CPU ratio | sequences/s | seconds per step: wall (CPU) |")
    print("|---|---|---|---|---|---|---|")
    for name in args.models:
        for allocator in args.allocators or [malloc for model, malloc in ASKED if model == name]:
            compare(name, allocator, args.rounds, args.threads, args.settings)


if __name__ == "__main__":
    main()
