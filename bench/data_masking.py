"""Reading, masking and loading: sequences per second and core.

    python bench/data_masking.py DIR [DIR...]

DIR is a directory of records; rates are counted in sequences, several to a packed row.  The loader is
torch's, which PopTorch's is built on; what it yields are stacked micro-batches.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from bert_ipu.pretraining_data import PretrainDataset, collate
from bert_ipu.records import Records
from bert_ipu.sampler import Position, StreamSampler

BATCH_ROWS = 1024
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="+", type=Path)
    torch.set_num_threads(1)
    for directory in parser.parse_args().directory:
        records = Records(directory)
        rows = min(len(records), 50_000)
        per_row = float((records.read(np.arange(rows)).lengths > 0).sum()) / rows
        length = records.layout.sequence_length
        print(f"{directory}: {len(records)} rows of {length} tokens, {per_row:.3f} sequences each")
        mask_tokens = length * 15 // 100 + 1
        report("reading", per_row, partial(read, records, rows), rows)
        for whole_words in (False, True):
            data = PretrainDataset(records, mask_tokens, whole_words=whole_words)
            kind = "whole words" if whole_words else "tokens"
            report(f"reading, masking ({kind}) and batching", per_row, partial(mask, data, rows), rows)
        data = PretrainDataset(records, mask_tokens)
        for workers in (0, 2):
            report(f"loader, {workers} workers", per_row, partial(load, data, rows, workers), rows)


def report(what: str, per_row: float, work: Callable[[], float], rows: int) -> None:
    rates = [rows * per_row / work() for _ in range(ROUNDS)]
    every = ", ".join(f"{rate:,.0f}" for rate in rates)
    print(f"  {what}: {max(rates):,.0f} sequences per second and core (rounds: {every})")


def read(records: Records, rows: int) -> float:
    started = time.process_time()
    for indices in shuffled(rows):
        records.read(indices)
    return time.process_time() - started


def mask(data: PretrainDataset, rows: int) -> float:
    started = time.process_time()
    for indices in shuffled(rows):
        data.batch(indices)
    return time.process_time() - started


def load(data: PretrainDataset, rows: int, workers: int) -> float:
    """Seconds of all processes: own CPU-seconds without workers, wall-clock times workers with them."""
    steps = rows // BATCH_ROWS
    sampler = StreamSampler(len(data), 0, BATCH_ROWS, steps, Position())
    loader = torch.utils.data.DataLoader(
        data, BATCH_ROWS, sampler=sampler, collate_fn=collate, num_workers=workers
    )
    started_cpu, started = time.process_time(), time.perf_counter()
    for _ in loader:
        pass
    seconds = (time.perf_counter() - started) * workers if workers else time.process_time() - started_cpu
    return seconds * rows / (steps * BATCH_ROWS)


def shuffled(rows: int) -> list[np.ndarray]:
    return np.array_split(np.random.default_rng(0).permutation(rows), max(rows // BATCH_ROWS, 1))


if __name__ == "__main__":
    main()
