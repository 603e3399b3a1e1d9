"""The order of training samples, as arithmetic: no list of indices, no state but a position.

The samples of a run form one endless stream: epoch 0 in a pseudo-random order, then epoch 1 in another, and
so on.  Step k of a run takes the next `samples_per_step` of it, wherever that falls, so no epoch loses its
last incomplete batch.  All ranks share the stream and each takes its part of every step; the position is
therefore one number for the whole job, and a job saved on W instances resumes on any other number of them.

The order within an epoch is a permutation by formula, so it costs no memory and any place of it can be
computed at once.  A sample of the stream is named by `epoch * length + index`: the index says which row to
read, the epoch which masks to draw.
"""

from __future__ import annotations

import math
from typing import Iterator, NamedTuple, Optional

import numpy as np
import torch

from .errors import ConfigError

_FEISTEL_ROUNDS = 8
MAX_LENGTH = 1 << 40
"""The longest data set: sample names stay below 2^63 for 2^23 epochs."""


class Position(NamedTuple):
    """A place in the stream of samples: `consumed` samples of `epoch` have been taken by the whole job."""

    epoch: int = 0
    consumed: int = 0

    def advanced(self, samples: int, length: int) -> Position:
        """The position `samples` later in a data set of `length` samples."""
        epochs, consumed = divmod(self.consumed + samples, length)
        return Position(self.epoch + epochs, consumed)


def mixed(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 values: every input bit changes half of the output bits (splitmix64's finaliser).

    Source of the constants: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def stream_keys(seed: int, stream: int, count: int) -> np.ndarray:
    """`count` uint64 keys that depend on `seed` and `stream` and on nothing else."""
    base = mixed(np.array([seed % (1 << 64)], np.uint64)) ^ np.uint64(stream % (1 << 64))
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mixed(mixed(base) + counters)


def permuted(places: np.ndarray, length: int, seed: int, epoch: int) -> np.ndarray:
    """Map places of an epoch, [n] integers in [0, length), to distinct sample indices, [n] int64.

    A Feistel network over pairs (left, right) with left < rows, right < columns and rows * columns just above
    `length`.  A value that lands outside [0, length) is mapped again until it is inside: that is again a
    permutation (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    rows = math.isqrt(length - 1) + 1
    columns = -(-length // rows)
    keys = stream_keys(seed, epoch, _FEISTEL_ROUNDS)
    indices = _feistel(places.astype(np.uint64), rows, columns, keys)
    outside = np.flatnonzero(indices >= np.uint64(length))
    while outside.size:
        indices[outside] = _feistel(indices[outside], rows, columns, keys)
        outside = outside[indices[outside] >= np.uint64(length)]
    return indices.astype(np.int64)


def _feistel(values: np.ndarray, rows: int, columns: int, keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(values, np.uint64(columns))
    for number, key in enumerate(keys):
        if number % 2 == 0:
            left = (left + mixed(right ^ key) % np.uint64(rows)) % np.uint64(rows)
        else:
            right = (right + mixed(left ^ key) % np.uint64(columns)) % np.uint64(columns)
    return left * np.uint64(columns) + right


def stream_samples(length: int, seed: int, places: np.ndarray) -> np.ndarray:
    """Names, `epoch * length + index`, of the samples at absolute `places` of the stream; [n] int64 both."""
    epochs, offsets = np.divmod(places, length)
    names = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        names[here] = permuted(offsets[here], length, seed, int(epoch)) + epoch * length
    return names


def rank_places(
    start: int, samples_per_step: int, rank: int, world: int, block: Optional[int] = None
) -> np.ndarray:
    """The places of the stream, [samples_per_step / world] int64, that `rank` of `world` takes in a step.

    `start` is the absolute place of the step's first sample.  Ranks take turns of `block` consecutive samples
    (default: one turn per step), so that a step's samples meet the same replicas however these are spread
    over instances: with `block` = one micro-batch of each of an instance's replicas, every replica of
    every layout sees the same micro-batches.
    """
    if not 0 <= rank < world or samples_per_step % world:
        raise ConfigError(
            f"A step of {samples_per_step} samples cannot be shared by rank {rank} of {world}: ranks count "
            "from 0, and the samples of a step must divide evenly. Change the number of instances or the "
            "global batch."
        )
    share = samples_per_step // world
    block = block or share
    if share % block:
        raise ConfigError(
            f"A rank's {share} samples per step are no whole number of turns of {block} samples."
        )
    turns = np.arange(share // block, dtype=np.int64)[:, None] * (block * world)
    return (start + rank * block + turns + np.arange(block, dtype=np.int64)).reshape(-1)


class StreamSampler(torch.utils.data.Sampler):  # type: ignore[type-arg]
    """Yields, as ints, the names of the samples that one rank takes in `steps` steps from `position` on."""

    def __init__(
        self,
        length: int,
        seed: int,
        samples_per_step: int,
        steps: int,
        position: Position = Position(),  # noqa: B008 (immutable)
        rank: int = 0,
        world: int = 1,
        block: Optional[int] = None,
    ) -> None:
        if not 0 < length <= MAX_LENGTH:
            raise ConfigError(
                f"A data set of {length} samples cannot be sampled: 1 to {MAX_LENGTH:,} are allowed. "
                "Prepare the data again or name another directory."
            )
        rank_places(0, samples_per_step, rank, world, block)
        self.length, self.seed, self.position = length, seed, position
        self.samples_per_step, self.steps = samples_per_step, steps
        self.rank, self.world, self.block = rank, world, block

    def __len__(self) -> int:
        return self.steps * (self.samples_per_step // self.world)

    def step_samples(self, step: int) -> np.ndarray:
        """Names of this rank's samples, [samples_per_step / world] int64, in step `step` from `position`."""
        start = self.position.epoch * self.length + self.position.consumed + step * self.samples_per_step
        places = rank_places(start, self.samples_per_step, self.rank, self.world, self.block)
        return stream_samples(self.length, self.seed, places)

    def __iter__(self) -> Iterator[int]:
        for step in range(self.steps):
            yield from self.step_samples(step).tolist()
