"""Sequences per second with and without packing: the same sequences, model and training step, both ways.

    python bench/packing_speed.py [--steps 16] [--hidden 256] [--layers 3]

Lengths are drawn from the histogram of Wikipedia's sequences of up to 512 tokens (Graphcore's, in
`../shared/data/packing`); which tokens stand in them changes no time.  Steps with packs and with single
sequences take turns, in one process, so that what else the machine does meets both alike.  A step is all that
training does for it: order, reading, masking, batching, the micro-batches forward and backward, the update.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import numpy as np
from packing import assign, pack_histogram
from pairs import SPECIAL_TOKENS_PER_SEQUENCE, Sequences
from preparation import build_rows

from bert_ipu.backend import activate
from bert_ipu.config import PretrainConfig, load_config
from bert_ipu.pretraining_data import PretrainDataset
from bert_ipu.records import Layout, Records
from bert_ipu.records_writer import write_records
from bert_ipu.sampler import Position, StreamSampler
from bert_ipu.tokenizer import read_vocab

SHARED = Path(os.environ.get("BERT_IPU_SHARED", Path(__file__).parents[2] / "shared")) / "data"
HISTOGRAMS = SHARED / "packing/sequence_length_histograms.json"
VOCAB = SHARED / "models/all-MiniLM-L6-v2/vocab.txt"
S = 512
PACK = 3
SEQUENCES = 20_000
ASKED = 0.95


class Step(NamedTuple):
    """One measured training step."""

    sequences: int
    seconds: float
    cpu_seconds: float


def main() -> int:
    """Measures, prints the table, and returns 1 where less than what was asked is reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=16, help="measured steps of each kind")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--layers", type=int, default=3, help="its encoder layers")
    options = parser.parse_args()
    sequences = wikipedia_sequences(SEQUENCES)
    with tempfile.TemporaryDirectory() as folder:
        single, packed = take_turns(
            [
                training_step(written(sequences, per_row, Path(folder) / str(per_row)), options)
                for per_row in (1, PACK)
            ],
            options.steps,
        )
    for way, steps in (("single", single), ("packed", packed)):
        count, seconds, cpu_seconds = (statistics.mean(values) for values in zip(*steps))
        print(
            f"{way}: {count / options.rows:.3f} sequences a row, {seconds:.3f} s ({cpu_seconds:.3f} CPU-s) a "
            f"step of {options.rows} rows, {count / seconds:.2f} sequences/s"
        )
    factor = sum(step.sequences for step in packed) / sum(step.sequences for step in single)
    share = statistics.median(one.seconds / other.seconds for one, other in zip(single, packed))
    cpu_share = statistics.median(one.cpu_seconds / other.cpu_seconds for one, other in zip(single, packed))
    print(f"packing factor {factor:.3f}, speed-up {factor * share:.3f}: {share:.3f} of it (asked: {ASKED});")
    print(f"by CPU-seconds {cpu_share:.3f} of it; load average {os.getloadavg()[0]:.1f}")
    return 0 if max(share, cpu_share) >= ASKED else 1


def take_turns(ways: list[Callable[[int], int]], steps: int) -> list[list[Step]]:
    """Each way's `steps` steps, taken in turn, after one of each that is not counted."""
    measured: list[list[Step]] = [[] for _ in ways]
    for number in range(steps + 1):
        for way, taken in zip(ways, measured):
            started, started_cpu = time.perf_counter(), time.process_time()
            sequences = way(number)
            taken.append(Step(sequences, time.perf_counter() - started, time.process_time() - started_cpu))
    return [taken[1:] for taken in measured]


def wikipedia_sequences(count: int) -> Sequences:
    """Sequences of Wikipedia's lengths and of random tokens."""
    generator = np.random.default_rng(0)
    histogram = np.array(json.loads(HISTOGRAMS.read_text())["wikipedia_histogram"])
    lengths = generator.choice(np.arange(1, S + 1), p=histogram / histogram.sum(), size=count)
    tokens = np.maximum(lengths, SPECIAL_TOKENS_PER_SEQUENCE + 2) - SPECIAL_TOKENS_PER_SEQUENCE
    first = tokens // 2
    ids = generator.integers(1000, len(read_vocab(VOCAB)), tokens.sum(), np.uint16)
    labels = generator.integers(0, 2, count)
    return Sequences(
        ids, first.astype(np.uint16), (tokens - first).astype(np.uint16), labels.astype(np.uint8)
    )


def written(sequences: Sequences, per_row: int, directory: Path) -> Records:
    """Records of the sequences, at most `per_row` in a row."""
    vocab = read_vocab(VOCAB)
    layout = Layout(S, per_row, len(vocab))
    lengths = (
        sequences.first_lengths.astype(np.int64) + sequences.second_lengths + SPECIAL_TOKENS_PER_SEQUENCE
    )
    strategies = pack_histogram(np.bincount(lengths, minlength=S + 1), S, per_row)
    members = assign(lengths, strategies, per_row, seed=0)
    rows = build_rows(sequences, members, layout, vocab["[CLS]"], vocab["[SEP]"])
    write_records(directory, rows, layout, VOCAB)
    return Records(directory)


def training_step(records: Records, options: argparse.Namespace) -> Callable[[int], int]:
    """A function that takes training step `number` on the records and returns how many sequences it saw."""
    config = load_config(PretrainConfig, "demo_tiny_128", settings(records, options))
    activate(config.ipu)
    import poptorch  # which now is the simulator's

    from bert_ipu.ipu_options import training_options
    from bert_ipu.optim import make_optimizer
    from bert_ipu.pipeline import pretraining_model

    model = pretraining_model(config)
    optimizer = make_optimizer(model, config.optim)
    executor = poptorch.trainingModel(model.train(), training_options(config), optimizer)
    dataset = PretrainDataset(records, config.data.mask_tokens)
    sampler = StreamSampler(len(dataset), 0, config.samples_per_step, 1 << 20, Position())

    def step(number: int) -> int:
        batch = dataset.batch(sampler.step_samples(number))
        executor(*batch)
        return int((batch.next_sentence_labels >= 0).sum())

    return step


def settings(records: Records, options: argparse.Namespace) -> list[str]:
    """Overrides of the tiny configuration."""
    layout = records.layout
    return [
        *("ipu.backend=simulator", "ipu.precision=float32", "optim.accumulation_type=float32"),
        *(f"model.vocab_size={layout.vocab_size}", f"model.hidden_size={options.hidden}"),
        *(f"model.num_attention_heads={options.hidden // 64}", f"model.num_hidden_layers={options.layers}"),
        f"ipu.layers_per_ipu=[0, {options.layers}]",
        *(
            "model.max_position_embeddings=512",
            f"data.sequence_length={S}",
            f"data.mask_tokens={S * 15 // 100}",
        ),
        f"data.max_sequences_per_pack={layout.max_sequences_per_pack}",
        f"ipu.gradient_accumulation={options.rows}",
    ]


if __name__ == "__main__":
    sys.exit(main())
