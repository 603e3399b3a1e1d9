"""Text to packed records: CPU-seconds against Graphcore's script, scaling over processes, memory.

    python bench/data_preparation.py speed TEXT... --vocab VOCAB [--upstream create_pretraining_data.py]
    python bench/data_preparation.py memory TEXT... --vocab VOCAB [--sizes-mb 50 500 2000]

TEXT is WikiExtractor output (folder or files).  `speed` times our script and upstream's functions in turn, on
the same text, several times; upstream's are called without its writing of TFRecords, which needs TensorFlow.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from articles import articles
from sentences import SentenceSplitter
from sources import Reader

SCRIPTS = Path(__file__).parents[1] / "data"
DUPLICATION = 5
_SPEED_BYTES = 50_000_000
_UPSTREAM_BYTES = 8_000_000
"""Upstream holds all instances in memory and takes a minute for this much."""
_RUN_AND_REPORT = """
import re, resource, sys
import prepare_wikipedia
status = prepare_wikipedia.main()
own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
# Not own.ru_maxrss: the kernel starts it at the peak of the process that this one was forked from.
own_peak_kb = re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]
print(*(used.ru_utime + used.ru_stime for used in (own, workers)), own_peak_kb, workers.ru_maxrss)
sys.exit(status)
"""
"""Our script, and at the end what it used: CPU-seconds and peak kB, of itself and of its workers."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("text", nargs="+", type=Path)
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--upstream", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1, help="times that ours gets the text (speed)")
    parser.add_argument("--sizes-mb", type=int, nargs="+", default=[50, 500, 2000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        (speed if options.what == "speed" else memory)(options, Path(directory))


class Usage(NamedTuple):
    """What one run of our script used."""

    wall_s: float
    own_cpu_s: float
    """CPU-seconds of the process that the user starts."""
    workers_cpu_s: float
    peak_mb: float
    """Of the largest process."""

    @property
    def cpu_s(self) -> float:
        """CPU-seconds of all processes."""
        return self.own_cpu_s + self.workers_cpu_s


def documents(paths: list[Path], limit: int) -> list[list[str]]:
    """Paragraphs of whole articles, about `limit` bytes of text."""
    found, size = [], 0
    for piece in Reader(paths).pieces():
        for paragraphs, _ in articles(piece):
            if paragraphs and size < limit:
                found.append(paragraphs)
                size += sum(len(paragraph.encode()) + 1 for paragraph in paragraphs) + 1
    return found


def speed(options: argparse.Namespace, directory: Path) -> None:
    """Upstream reads one sentence a line; splitting the sentences is not counted for it, but is for us."""
    ours, theirs = directory / "ours.txt", directory / "theirs.txt"
    texts = documents(options.text, _SPEED_BYTES)
    with open(ours, "w") as file:
        for paragraphs in texts * options.repeat:
            file.write("\n".join(paragraphs) + "\n\n")
    texts = documents(options.text, _UPSTREAM_BYTES)
    split = SentenceSplitter().split
    theirs.write_text("\n\n".join("\n".join(s for p in paragraphs for s in split(p)) for paragraphs in texts))
    size_mb, upstream_mb = ours.stat().st_size / 1e6, theirs.stat().st_size / 1e6
    runs: dict[int, list[Usage]] = {1: [], 2: []}
    for number in range(options.rounds):
        for workers, usages in runs.items():
            used = prepared(ours, options.vocab, directory / f"out{number}{workers}", workers)
            usages.append(used)
            print(
                f"ours, {workers} processes: {size_mb / used.cpu_s:.2f} MB/CPU-s, "
                f"{size_mb / used.wall_s:.2f} MB/s; {used.cpu_s:.2f} CPU-s, "
                f"{used.own_cpu_s:.2f} of them in the process that shares out the work",
                flush=True,
            )
        if options.upstream:
            started = time.process_time()
            instances = upstream_instances(options.upstream, theirs, options.vocab)
            cpu_s = time.process_time() - started
            print(
                f"upstream, duplication {DUPLICATION}: {upstream_mb / cpu_s:.2f} MB/CPU-s, "
                f"{instances / cpu_s:,.0f} instances/CPU-s"
            )
    by_clock = [one.wall_s / two.wall_s for one, two in zip(*runs.values())]
    # What two cores would take that nobody else uses, if the work divided evenly.
    by_cpu = [one.cpu_s / (two.own_cpu_s + two.workers_cpu_s / 2) for one, two in zip(*runs.values())]
    print(
        f"2 processes against 1: {statistics.median(by_clock):.2f}x by the clock, "
        f"{statistics.median(by_cpu):.2f}x by CPU-seconds; load average {os.getloadavg()[0]:.1f}"
    )


def prepared(text: Path, vocab: Path, out: Path, workers: int) -> Usage:
    """Run our script as a user does and return what it used, start-up included."""
    command = [sys.executable, "-c", _RUN_AND_REPORT, str(text), "--vocab", str(vocab)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS)}
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--out", str(out), "--pack", "--workers", str(workers)],
        check=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    wall_s = time.perf_counter() - started
    own_s, workers_s, own_kb, workers_kb = map(float, done.stdout.splitlines()[-1].split())
    return Usage(wall_s, own_s, workers_s, max(own_kb, workers_kb) / 1024)


def upstream_instances(script: Path, text: Path, vocab: Path) -> int:
    """Run upstream's reading, tokenising and masking; its import of TensorFlow is met by an empty module."""
    from transformers import BertTokenizerFast

    sys.modules.setdefault("tensorflow", types.ModuleType("tensorflow"))
    sys.modules.setdefault("six", types.SimpleNamespace(PY3=True, PY2=False))
    specification = importlib.util.spec_from_file_location("upstream", script)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    tokenizer = BertTokenizerFast(vocab_file=str(vocab), do_lower_case=True)
    with open(os.devnull, "w") as nothing:
        sys.stdout, kept = nothing, sys.stdout
        try:
            instances = module.create_training_instances(
                [str(text)], tokenizer, 128, DUPLICATION, 0.1, 0.15, 20, random.Random(1)
            )
        finally:
            sys.stdout = kept
    return len(instances)


def memory(options: argparse.Namespace, directory: Path) -> None:
    """Peak memory of one process at growing inputs: the text repeated."""
    texts = documents(options.text, 50_000_000)
    block = "\n\n".join("\n".join(paragraphs) for paragraphs in texts).encode()
    for size_mb in options.sizes_mb:
        path = directory / "text.txt"
        with open(path, "wb") as file:
            while file.tell() < size_mb * 1_000_000:
                file.write(block[: size_mb * 1_000_000 - file.tell()].rsplit(b"\n\n", 1)[0] + b"\n\n")
        used = prepared(path, options.vocab, directory / f"out{size_mb}", 1)
        size_mb = path.stat().st_size / 1e6
        rate = size_mb / used.cpu_s
        print(f"{size_mb:.0f} MB of text: peak {used.peak_mb:.0f} MB, {rate:.2f} MB/CPU-s", flush=True)


if __name__ == "__main__":
    main()
