"""How much of training's time goes to waiting for data: python bench/data_waiting.py RECORDS

RECORDS is a directory of packed records of 128 tokens (`data/prepare_wikipedia.py ... --pack`).  Twice, with each
way of loading (no worker, two workers, the asynchronous accessor, both):

* a real pretraining run in the simulator, its own loop, of a small model;
* the same loader before a device that eats 5,179 sequences per second, what a POD16 does with BERT-Large
  (phase 1, Graphcore's published throughput), played by sleeping.

What is counted is the time the loop spends in asking for the next batch.  The first batch of a run, for which
worker processes start, is reported apart.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from bert_ipu.backend import Backend, activate
from bert_ipu.config import PretrainConfig, load_config
from bert_ipu.records import Records

POD16_SEQUENCES_PER_S = 5179
POD16_ROWS_PER_STEP = 4096
WAYS = {
    "no worker": (0, "false"),
    "2 workers": (2, "false"),
    "asynchronous": (0, "true"),
    "asynchronous, 2 workers": (2, "true"),
}
ASKED = 0.01


class Waits(NamedTuple):
    """Seconds of one run."""

    first_s: float
    """Until the first batch came."""
    waited_s: float
    """For all others."""
    total_s: float
    """From the first batch on."""

    @property
    def share(self) -> float:
        """Of the time lost to waiting."""
        return self.waited_s / self.total_s


class Watched:
    """Batches, with the time that each is waited for."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self._waits: list[float] = []
        self._first_at = 0.0

    def __iter__(self) -> Watched:
        return self

    def __next__(self) -> Any:
        started = time.perf_counter()
        batch = next(self._batches)
        self._waits.append(time.perf_counter() - started)
        self._first_at = self._first_at or time.perf_counter()
        return batch

    def waits(self) -> Waits:
        """What was measured until now."""
        return Waits(self._waits[0], sum(self._waits[1:]), time.perf_counter() - self._first_at)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    activate(configured(options, 0, "false", Path()).ipu)
    lost = {}
    for name, (workers, asynchronous) in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            trained = training(configured(options, workers, asynchronous, Path(folder)))
        paced = device(configured(options, workers, asynchronous, Path(), POD16_ROWS_PER_STEP))
        lost[name] = trained.share, paced.share
        for what, waits in (("training", trained), ("POD16's pace", paced)):
            print(
                f"{name}, {what}: {waits.share:.2%} of {waits.total_s:.1f} s; first batch "
                f"{waits.first_s:.2f} s",
                flush=True,
            )
    best_training, best_paced = map(min, zip(*lost.values()))
    print(f"asked: below {ASKED:.0%}; load average {os.getloadavg()[0]:.1f}")
    return 0 if max(best_training, best_paced) < ASKED else 1


def configured(
    options: argparse.Namespace, workers: int, asynchronous: str, output: Path, rows_per_step: int = 64
) -> PretrainConfig:
    """The tiny configuration on the records."""
    layout = Records(options.records).layout
    return load_config(
        PretrainConfig,
        "demo_tiny_128",
        [
            *("ipu.backend=simulator", "recorder.progress_bar=false"),
            *("ipu.precision=float32", "optim.accumulation_type=float32"),
            *(f"ipu.gradient_accumulation={rows_per_step}", f"model.vocab_size={layout.vocab_size}"),
            *(f"data.train_data={options.records}", f"data.sequence_length={layout.sequence_length}"),
            f"data.max_sequences_per_pack={layout.max_sequences_per_pack}",
            *(f"data.workers={workers}", f"data.async_loader={asynchronous}"),
            *(f"train.steps={options.steps}", f"train.output_dir={output}"),
        ],
    )


def training(config: PretrainConfig) -> Waits:
    """A pretraining run in the simulator."""
    from bert_ipu import train

    batches, watched = train._batches, []

    def watching(*arguments: Any) -> Watched:
        watched.append(Watched(batches(*arguments)))
        return watched[0]

    waits: list[Waits] = []
    step = train.train_step

    def stepping(*arguments: Any) -> dict[str, float]:
        metrics = step(*arguments)
        waits.append(watched[0].waits())
        return metrics

    train._batches, train.train_step = watching, stepping
    try:
        with contextlib.redirect_stdout(None):
            train.pretrain(config, Backend("simulator", "for timing"))
    finally:
        train._batches, train.train_step = batches, step
    return waits[-1]


def device(config: PretrainConfig) -> Waits:
    """The loader of a run whose device takes as long for a step as a POD16."""
    from bert_ipu import train
    from bert_ipu.checkpoint import TrainingState
    from bert_ipu.distributed import World
    from bert_ipu.ipu_options import training_options
    from bert_ipu.pipeline import pretraining_model
    from bert_ipu.pretraining_data import PretrainDataset
    from bert_ipu.sampler import Position

    dataset = PretrainDataset(Records(Path(config.data.train_data)), config.data.mask_tokens)
    task = train.Task(config, pretraining_model(config), dataset, config.train.steps, World())
    watched = Watched(train._batches(task, training_options(config), TrainingState(0, Position(), [], {})))
    for batch in watched:
        time.sleep(int((batch.next_sentence_labels >= 0).sum()) / POD16_SEQUENCES_PER_S)
    return watched.waits()


if __name__ == "__main__":
    sys.exit(main())
