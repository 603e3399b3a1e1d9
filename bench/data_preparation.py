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
import resource
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from articles import articles
from sentences import SentenceSplitter
from sources import Reader

SCRIPT = Path(__file__).parents[1] / "data/prepare_wikipedia.py"
DUPLICATION = 5
_SPEED_BYTES = 50_000_000
_UPSTREAM_BYTES = 8_000_000
"""Upstream holds all instances in memory and takes a minute for this much."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("text", nargs="+", type=Path)
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--upstream", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes-mb", type=int, nargs="+", default=[50, 500, 2000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        (speed if options.what == "speed" else memory)(options, Path(directory))


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
    ours.write_text("\n\n".join("\n".join(paragraphs) for paragraphs in texts))
    texts = documents(options.text, _UPSTREAM_BYTES)
    split = SentenceSplitter().split
    theirs.write_text("\n\n".join("\n".join(s for p in paragraphs for s in split(p)) for paragraphs in texts))
    size_mb, upstream_mb = ours.stat().st_size / 1e6, theirs.stat().st_size / 1e6
    for number in range(options.rounds):
        for workers in (1, 2):
            cpu_s, wall_s, _ = prepared(ours, options.vocab, directory / f"out{number}{workers}", workers)
            print(f"ours, {workers} processes: {size_mb / cpu_s:.2f} MB/CPU-s, {size_mb / wall_s:.2f} MB/s")
        if options.upstream:
            started = time.process_time()
            instances = upstream_instances(options.upstream, theirs, options.vocab)
            cpu_s = time.process_time() - started
            print(
                f"upstream, duplication {DUPLICATION}: {upstream_mb / cpu_s:.2f} MB/CPU-s, "
                f"{instances / cpu_s:,.0f} instances/CPU-s"
            )


def prepared(text: Path, vocab: Path, out: Path, workers: int) -> tuple[float, float, float]:
    """CPU-seconds, seconds and peak MB of one process, start-up included, of our script."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, str(SCRIPT), str(text), "--vocab", str(vocab)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--out", str(out), "--pack", "--workers", str(workers)],
        check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    after, wall_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu_s, wall_s, after.ru_maxrss / 1024


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
        # A process of its own: the peak that the system reports for children only grows.
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import data_preparation as b; "
            f"from pathlib import Path; print(*b.prepared(Path({str(path)!r}), Path({str(options.vocab)!r}), "
            f"Path({str(directory)!r}) / 'out{size_mb}', 1))"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        cpu_s, _, peak_mb = map(float, done.stdout.split())
        size_mb = path.stat().st_size / 1e6
        print(f"{size_mb:.0f} MB of text: peak {peak_mb:.0f} MB, {size_mb / cpu_s:.2f} MB/CPU-s", flush=True)


if __name__ == "__main__":
    main()
